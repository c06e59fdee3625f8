"""The data page: what it makes of good folders, and of folders in which something is wrong."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.contract import SkippedClip, clip_paths
from data.inspection.clip import ClipView, view_clip
from data.inspection.folder import PreparedFolder, prepared_folder
from data.inspection.measures import (
    BAD,
    DOUBT,
    GOOD,
    NOTE,
    Verdict,
    check_files,
    choose_clips,
    shown,
    table_of,
    verdicts,
)
from scripts import inspect_data
from tests.faces import REPO, reference
from tests.prepared import prepare_portrait
from tests.rocking_clips import RECORDS, ROLL_DEG, N, opening, table, write_folder, write_index
from util.audio import write_wav
from util.errors import run_script
from util.jpeg_video import JpegWriter
from util.types import FPS, SAMPLE_RATE, Voice
from util.video import read_frames


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def spoilt(prepared: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(prepared, tmp_path / "spoilt"))


def test_worst_clips_come_on_top_and_once() -> None:
    columns = table(
        50, lambda k: {"yaw": -float(k), "brightness": 200.0 - k, "jitter": float("nan") if k else 1.0}
    )
    chosen = choose_clips(columns, 2, 0)
    assert [k for _, k in chosen][2:] == [49, 0]
    assert "darkest of 50" in chosen[2][0]
    assert "most turned of 50: -49" in chosen[2][0]
    assert chosen[3][0].startswith("most jitter of 1:")
    assert choose_clips(columns, 0, 0) == []
    assert sorted(k for _, k in choose_clips(columns, 200, 0)) == list(range(50))


def _by_title(found: Sequence[Verdict]) -> dict[str, Verdict]:
    return {v.title: v for v in found}


def _judged(root: Path) -> dict[str, Verdict]:
    folder = prepared_folder(root)
    columns = table_of(folder.records)
    return _by_title(verdicts(folder, columns, check_files(folder)))


def test_verdicts_of_a_good_folder(prepared: Path) -> None:
    found = _judged(prepared)
    assert found["Amount"] == Verdict(GOOD, "Amount", "3 clips, 0.0 minutes, 2 speakers")
    assert (found["Kept"].level, found["Kept"].text) == (DOUBT, "3 of 4 clips (75%), 1 skipped")
    assert found["Splits"] == Verdict(GOOD, "Splits", "test 1, train 2; no speaker is in two of them")
    assert found["Files"].level == GOOD
    assert "the face is too dark" in found["Skipped: too_dark"].text
    assert "align/s3/x: luma" in found["Skipped: too_dark"].text
    assert (found["Sound"].level, found["Sound"].text) == (BAD, "1 of 3 clips have it")
    assert not {"Unknown files", "Leftovers", "Damaged"} & found.keys()


def test_verdicts_of_a_bad_folder(spoilt: Path) -> None:
    paths = clip_paths(spoilt, "align/s1/a", "grid")
    paths.rt.unlink()
    (spoilt / "audio/align/s1/a.wav").unlink()
    (paths.rt.parent / ".part-1234.mp4").touch()
    mixed = [replace(RECORDS[0], split="test"), RECORDS[1]]
    write_index(spoilt, mixed, [SkippedClip(str(k), "", 1, "no_such_reason", "") for k in range(18)])
    found = _judged(spoilt)
    assert found["Files"].level == BAD
    assert (
        "1 clips of the index lack files; the first: align/s1/a lacks a_rt.npy, a.wav" in found["Files"].text
    )
    assert found["Unknown files"].level == DOUBT
    assert "1 prepared videos are not in clips.jsonl: align/s2/" in found["Unknown files"].text
    assert "align/s1/.part-1234.mp4" in found["Leftovers"].text
    assert found["Splits"].level == BAD
    assert "1 speakers are in more than one (s1)" in found["Splits"].text
    assert found["Kept"] == Verdict(BAD, "Kept", "2 of 20 clips (10%), 18 skipped")
    assert found["Skipped: no_such_reason"].level == BAD
    assert found["Amount"].level == DOUBT


def test_only_sure_lags_count() -> None:
    lags = [0.0, 40.0, 120.0, 400.0]
    sure = {"lip_r": 0.8, "lip_r_0": 0.3}
    columns = table(
        4, lambda k: {"lip_lag_ms": lags[k], **(sure if k < 3 else {"lip_r": 0.4, "lip_r_0": 0.3})}
    )
    np.testing.assert_array_equal(columns.measures["lip_lag_ms"], [0, 40, 120, np.nan])
    (found,) = [
        v
        for v in verdicts(PreparedFolder(Path(), [], None, None, "shards"), columns, None)
        if "voice" in v.title
    ]
    assert found.level == DOUBT
    assert "more than 80 ms apart in 1 of 4 clips" in found.text
    assert "correlate by 0.30" in found.text
    assert any("largest lip lag of 3: 120 ms" in why for why, _ in choose_clips(columns, 1, 0))


def _view(root: Path, k: int = 0) -> ClipView:
    return view_clip(prepared_folder(root), k)


def test_view_of_a_good_clip(prepared: Path) -> None:
    view = _view(prepared)
    assert [r.name for r in view.rows] == ["landmarks", "sketch", "ani", "crop and ani", "frontal"]
    assert len({r.picture.shape for r in view.rows[:4]}) == 1
    assert view.frames.tolist() == [0, 4, 8, 11, 15, 19]
    roll = view.curves.angles_deg[:, 2]
    assert roll[-1] - roll[0] == pytest.approx(ROLL_DEG, abs=0.2)
    assert np.corrcoef(view.curves.lips, opening())[0, 1] > 0.999
    assert {v.level for v in view.remarks} == {GOOD, NOTE}, view.remarks
    assert _together(view) > 0.9


def test_really_prepared_clip_of_another_size(tmp_path: Path) -> None:
    prepare_portrait(tmp_path)
    view = _view(tmp_path / "out")
    judged = {v.title: v.level for v in view.remarks}
    assert judged == {"Frames": GOOD, "Pose": GOOD, "Frontal face": GOOD, "Ani": GOOD, "Sound": DOUBT}
    assert np.ptp(view.curves.angles_deg[:, 2]) == pytest.approx(16, abs=1)


def _together(view: ClipView) -> float:
    return float(_by_title(view.remarks)["Lips and loudness"].text.split()[1].rstrip(";"))


def test_sound_out_of_step_and_too_short_is_seen(spoilt: Path) -> None:
    _change(spoilt, "front", lambda a: np.roll(a, 3, 0))
    assert _together(_view(spoilt)) < 0.3
    write_wav(spoilt / "audio/align/s1/a.wav", Voice(np.full(8000, 0.1, np.float32)))
    found = _by_title(_view(spoilt).remarks)
    assert found["Length of sound"] == Verdict(DOUBT, "Length of sound", "0.48 s beside 0.80 s of pictures")
    assert found["Lips and loudness"].text.startswith("too short, still or silent")


def test_film_has_the_clips_frames_and_sound(prepared: Path, tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(_view(prepared).film)
    frames = list(read_frames(path, "film"))
    assert len(frames) == N
    assert frames[0].shape == (160, 320, 3)
    crop = next(read_frames(clip_paths(prepared, "align/s1/a", "grid").video, "clip"))
    off = np.abs(cv2.resize(crop, (160, 160)).astype(float) - frames[0][:, :160])
    assert np.median(off) < 6
    assert b"mp4a" in path.read_bytes()


def test_film_starts_where_its_sound_does(spoilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _change(spoilt, "landmarks", lambda a: a * ~np.isin(np.arange(N), [0, 5])[:, None, None])
    given = []
    monkeypatch.setattr("data.inspection.clip.film", lambda *what: given.append(what) or b"")
    view = _view(spoilt)
    ((crops, landmarks, anis, voice),) = given
    assert len(crops) == len(landmarks) == len(anis) == N - 6
    np.testing.assert_array_equal(voice.samples, view.curves.samples[6 * SAMPLE_RATE // FPS :])


def _change(root: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    path = getattr(clip_paths(root, "align/s1/a", "grid"), name)
    np.save(path, change(np.load(path)).astype(np.float32))


def _other_way(rt: np.ndarray) -> np.ndarray:
    return rt * np.array([-1, -1, -1, 1, 1, 1])


def _with_noise(front: np.ndarray) -> np.ndarray:
    return front + np.random.default_rng(0).normal(0, 4, front.shape)


@pytest.mark.parametrize(
    ("name", "change", "title", "level"),
    [
        ("rt", _other_way, "Pose", BAD),
        ("front", _with_noise, "Frontal face", DOUBT),
        ("landmarks", lambda a: a * np.linspace(0, 1, N).astype(int)[:, None, None], "Frames", BAD),
    ],
)
def test_faults_are_seen(spoilt: Path, name: str, change: Callable, title: str, level: str) -> None:
    _change(spoilt, name, change)
    assert _by_title(_view(spoilt).remarks)[title].level == level


def test_ani_of_another_clip_is_seen(spoilt: Path) -> None:
    paths = clip_paths(spoilt, "align/s1/a", "grid")
    paths.track.unlink()
    with JpegWriter(paths.ani, (256, 256)) as ani:
        for k in range(N):
            ani.write(np.roll(reference().ani.image, 40 + k, 1)[:, ::-1].copy())
    assert _by_title(_view(spoilt).remarks)["Ani"].level != GOOD


def test_unusable_frames_are_gaps(spoilt: Path) -> None:
    _change(spoilt, "landmarks", lambda a: a * ~np.isin(np.arange(N), [5, 6])[:, None, None])
    view = _view(spoilt)
    assert np.flatnonzero(~view.curves.seen).tolist() == [5, 6]
    assert np.isnan(view.curves.lips[5:7]).all()
    assert "2 of 20 cannot be used" in _by_title(view.remarks)["Frames"].text


def test_damaged_sound_is_a_remark(spoilt: Path) -> None:
    (spoilt / "audio/align/s1/a.wav").write_bytes(b"RIFF....")
    view = _view(spoilt)
    assert _by_title(view.remarks)["Sound"].level == BAD
    assert view.curves.samples is None


def test_shown_text_is_harmless_and_short() -> None:
    assert shown("a\x00b\udce4\u202ec\n") == "a\ufffdb\ufffd\ufffdc\ufffd"
    assert shown("a\nb", lines=True) == "a\nb"
    assert len(shown("x" * 10_000)) == 201


def _run(monkeypatch: pytest.MonkeyPatch, *words: object) -> str:
    """The script's error, which is one line; status 2."""
    err = io.StringIO()
    monkeypatch.setattr(sys, "argv", ["inspect_data.py", *map(str, words)])
    monkeypatch.setattr(sys, "stderr", err)
    with pytest.raises(SystemExit) as exit_:
        run_script(inspect_data.main)
    assert exit_.value.code == 2
    assert err.getvalue().count("\n") == 1, err.getvalue()
    return err.getvalue()


def test_errors_are_one_line(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nowhere: no such folder" in _run(monkeypatch, tmp_path / "nowhere")
    assert "run: python scripts/preprocess.py --dataroot RAW --out" in _run(monkeypatch, tmp_path)
    assert "--split val" in (line := _run(monkeypatch, prepared, "--split", "val"))
    assert "choose test, train or all" in line
    assert "--clips -1: choose 0 to 200" in _run(monkeypatch, prepared, "--clips", "-1")
    assert "--page" in _run(
        monkeypatch, prepared, "--clips", 0, "--page", prepared / "clips.jsonl" / "page.html"
    )
    (tmp_path / "clips.jsonl").write_text('{"id": 1}\n')
    assert "clips.jsonl, line 1: damaged" in _run(monkeypatch, tmp_path)


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, scripts.inspect_data as s; print({'numpy', 'cv2', 'torch'} & set(sys.modules)); "
    code += "s.read_arguments(['-h'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("set()\nusage:")
    assert "--dataset_name" in done.stdout
