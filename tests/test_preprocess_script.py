"""scripts/preprocess.py as it is called: a tree with broken clips from end to end, its flags, its exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from broken_tree import N_FRAMES, REASONS, make_tree
from conftest import REPO

from data.clip_index import read_index
from data.contract import DATASET_NAMES, SKIPPED, clip_paths
from data.layouts import LAYOUTS
from data.preprocessing.prepare_clip import CROPS, VIDEOS, ClipSettings
from data.preprocessing.summary import RunFigures, Summary
from options import parse_preprocess
from options.preprocess import CROPS as CROP_WORDS
from options.preprocess import RAW_DATASETS, n_cores
from options.preprocess import VIDEOS as VIDEO_WORDS
from scripts import preprocess
from util.errors import UserError

N_CLIPS = 35  # each kind of breakage once


def call(*argv: str | Path) -> subprocess.CompletedProcess:
    words = [sys.executable, "scripts/preprocess.py", *map(str, argv)]
    return subprocess.run(words, cwd=REPO, capture_output=True, text=True)


def test_good_clips_come_out_and_bad_ones_have_their_reason(tmp_path):
    tree, out, shards = make_tree(tmp_path / "raw", N_CLIPS), tmp_path / "out", tmp_path / "shards"
    argv = ["--dataset_name", "folder", "--dataroot", tmp_path / "raw", "--out", out, "--nThreads", 2]
    done = call(*argv, "--shards", shards, "--shard_clips", 20)
    assert done.returncode == 1, done.stderr  # some were broken
    good = sorted(f"clips/{name}" for name, kind in tree.items() if kind == "good")
    records = read_index(out)
    assert [r.id for r in records] == good
    for record in records:
        files = [*vars(clip_paths(out, record.id, record.dataset)).values(), out / record.audio]
        assert all(path.stat().st_size for path in files)
        assert record.frames == N_FRAMES
    lines = map(json.loads, (out / SKIPPED).read_text().splitlines())
    assert {line["id"]: line["reason"] for line in lines} == {
        f"clips/{name}": REASONS[kind] for name, kind in tree.items() if kind != "good"
    }
    assert "unreadable               5" in done.stdout
    assert f"why, clip by clip: {out}/skipped.jsonl" in done.stdout
    saved = json.loads((out / "summary.json").read_text())
    assert (saved["kept"], saved["broken"]) == (28, 5)
    assert saved["skipped"] == {"audio_missing": 1, "no_face": 1, "unreadable": 5}
    assert not list(out.rglob(".*"))
    assert len(list(shards.glob("*.tar"))) == 2
    again = call(*argv)
    assert again.returncode == 1  # the same folder, the same status
    assert "0 kept, 0 skipped, 35 were done before" in again.stdout


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """asked(summary, *flags): the script's exit status where the run ends like this."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.mp4").touch()

    def ask(summary: Summary, *flags: str) -> int:
        monkeypatch.setattr("data.preprocessing.run.prepare_clips", lambda *_: summary)
        paths = ["--dataroot", str(tmp_path / "raw"), "--out", str(tmp_path / "out")]
        return preprocess.preprocess(parse_preprocess(["--dataset_name", "folder", *paths, *flags]))

    return ask


def summary(skipped: dict[str, int], **run: object) -> Summary:
    return Summary(3, 75, 1, skipped, {}, RunFigures(**run))


def test_the_exit_status_says_how_it_went(asked, capsys):
    assert asked(summary({})) == 0
    assert asked(summary({"too_dark": 2, "no_face": 1})) == 0  # gates are there to be closed
    for reason in ("unreadable", "crashed", "timeout"):
        assert asked(summary({"too_dark": 1, reason: 1})) == 1
    capsys.readouterr()
    assert asked(summary({"crashed": 1}, stopped=True), "--shards", "never_written") == 130
    assert capsys.readouterr().err == "note: stopped; give the same command again to go on\n"


def test_flags_are_what_the_library_knows():
    assert set(RAW_DATASETS) == set(LAYOUTS) == {*DATASET_NAMES, "pack"}
    assert (set(CROP_WORDS), set(VIDEO_WORDS)) == (set(CROPS), set(VIDEOS))
    options = parse_preprocess([])
    assert ClipSettings(**options.settings, gates=options.gates) == ClipSettings()
    assert options.work.nThreads == n_cores() >= 1
    assert parse_preprocess(["--nThreads", "3"]).work.nThreads == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset_name", "lrw"], "--dataset_name lrw: needs one of grid, crema, vox, lrs, folder"),
        (["--engine", "ray", "--nThreads", "0"], "--nThreads 0: Ray needs processes"),
        (["--min_brightness", "200", "--max_brightness", "9"], "--min_brightness 200.0: is above"),
        (["--jpeg_quality", "7"], "--jpeg_quality 7: needs a whole number from 50 to 100"),
        (["--n_shot", "7"], "unknown flag --n_shot: it belongs to"),
    ],
)
def test_refused(flags, message):
    with pytest.raises(UserError) as caught:
        parse_preprocess(flags)
    assert message in str(caught.value)


def test_folders_are_looked_at_before_work_begins(tmp_path):
    raw, out = str(tmp_path), str(tmp_path / "out")
    for flags, message in (
        ([], "--dataset_name: not given"),
        (["--dataset_name", "grid"], "--dataroot: not given"),
        (["--dataset_name", "grid", "--dataroot", "none"], "--dataroot none: no such folder"),
        (["--dataset_name", "grid", "--dataroot", raw], "--out: not given"),
        (
            ["--dataset_name", "grid", "--dataroot", raw, "--out", out, "--shards", f"{out}/s"],
            "lies in --out",
        ),
    ):
        with pytest.raises(UserError, match=message):
            parse_preprocess(flags).check_ready()
    done = call("--dataset_name", "grid", "--dataroot", raw, "--out", out)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --dataroot")
    assert done.stderr.count("\n") == 1
    assert not Path(out).exists()


def test_remarks_of_flags_that_change_nothing(capsys):
    parse_preprocess(["--address", "auto", "--shard_clips", "5", "--video", "h264", "--jpeg_quality", "90"])
    assert capsys.readouterr().err.splitlines() == [
        "note: --address changes nothing without --engine ray",
        "note: --shard_clips changes nothing without --shards",
        "note: --jpeg_quality changes nothing without --video jpeg",
    ]
