"""Which clips there are: by index, by the public code's names, by a list; splits by speaker; pickles never."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.clip_list import IndexRecords, audio_of, clip_records, is_prepared, prepared_videos
from data.contract import INDEX, ClipRecord, clip_paths
from data.layouts.folder import in_test
from util.errors import UserError

RECORD = ClipRecord("align/s3/a", "grid", "s3", "train", 75, 70, 4, "audio/s3/a.wav", "a.mpg", 1, 25.0)


def touch(root: Path, id_: str, dataset: str, n_frames: int = 5, ani: bool = True) -> None:
    """A prepared clip's files; only the landmarks have something in them."""
    paths = clip_paths(root, id_, dataset)
    paths.video.parent.mkdir(parents=True, exist_ok=True)
    for path in (paths.video, paths.rt, paths.front, *([paths.ani] if ani else [])):
        path.write_bytes(b"x")
    np.save(paths.landmarks, np.zeros((n_frames, 68, 3), np.float32))


def ids(root: Path, *how: object, **more: object) -> list[str]:
    return [r.id for r in clip_records(root, *how, **more)]


def write_index(root: Path, records: list[ClipRecord]) -> None:
    (root / INDEX).write_text("".join(r.line() + "\n" for r in records))


def test_index_is_read_line_by_line(tmp_path: Path) -> None:
    made = [
        RECORD,
        replace(RECORD, id="align/s1/b", speaker="s1", split="test"),
        replace(
            RECORD, id="align/s3/c", speaker="s3", frames=20, longest_run=9, redistributable="no", text="ö"
        ),
        replace(RECORD, id="align/s4/d", speaker="s4"),
    ]
    write_index(tmp_path, made)
    records = clip_records(tmp_path, "vox")  # the index says what they are
    assert isinstance(records, IndexRecords)
    assert list(records) == [made[0], made[2], made[3]]
    assert records.frames.tolist() == [75, 20, 75]
    assert records.runs.tolist() == [70, 9, 70]
    assert records.speakers.tolist() == [0, 0, 1]
    assert records[-1] == made[3]
    with pytest.raises(IndexError):
        records[3]
    assert ids(tmp_path, free_only=True) == ["align/s3/a", "align/s4/d"]
    assert ids(tmp_path, split="dev") == ids(tmp_path, split="test") == ["align/s1/b"]
    with (tmp_path / INDEX).open("a") as file:
        file.write('{"id": "align/s4/e", \n')
    with pytest.raises(UserError, match=r"clips.jsonl, line 5: damaged"):
        clip_records(tmp_path)


def test_public_vox_is_found_by_its_folders(tmp_path: Path) -> None:
    for id_ in ("unzip/dev_video/id1/v/00002", "unzip/dev_video/id1/v/00001", "unzip/test_video/id2/w/00001"):
        touch(tmp_path, id_, "vox", n_frames=int(id_[-1]))
    touch(tmp_path, "unzip/dev_video/id1/v/00003", "vox")
    clip_paths(tmp_path, "unzip/dev_video/id1/v/00003", "vox").rt.unlink()  # not whole: no clip
    (tmp_path / "unzip/dev_video/id1/v/00004.mp4").write_bytes(b"a raw clip")
    train = clip_records(tmp_path, "vox")
    assert [r.id for r in train] == ["unzip/dev_video/id1/v/00001", "unzip/dev_video/id1/v/00002"]
    assert (train[0].speaker, train[0].split, train[0].frames, train[0].key_frame) == ("id1", "train", 1, -1)
    assert train.runs.tolist() == [1, 2]
    assert ids(tmp_path, "vox", "test") == ["unzip/test_video/id2/w/00001"]
    assert ids(tmp_path / "unzip/test_video", "vox") == ids(tmp_path / "unzip/test_video") == ["id2/w/00001"]
    shutil.rmtree(tmp_path / "unzip/dev_video")
    assert ids(tmp_path, "vox") == []  # what is for tests is never trained on
    assert ids(tmp_path, "grid") == []
    assert not is_prepared(tmp_path, "grid")
    assert is_prepared(tmp_path)


@pytest.mark.parametrize(
    ("dataset", "train", "test"),
    [
        ("grid", ["align/s3/a", "align/s34/b"], ["align/s1/a", "align/s22/c"]),
        ("crema", ["VideoFlash/1001_DFA_ANG_XX", "VideoFlash/1073_X"], ["VideoFlash/1074_DFA_ANG_XX"]),
        ("lrs", ["pretrain/abc/00001", "trainval/abc/00001"], ["test/xyz/00001"]),
    ],
)
def test_splits_of_public_trees(tmp_path: Path, dataset: str, train: list[str], test: list[str]) -> None:
    for id_ in train + test:
        touch(tmp_path, id_, dataset, ani=False)
    assert ids(tmp_path, dataset) == train
    assert ids(tmp_path, dataset, "test") == test
    speakers = [{r.speaker for r in clip_records(tmp_path, dataset, s)} for s in ("train", "test")]
    assert not speakers[0] & speakers[1]


def test_a_folder_that_tells_nothing_is_split_by_speaker(tmp_path: Path) -> None:
    """A public LRS tree has everything in test/."""
    talks = [f"talk{k}" for k in range(30)]
    for talk in talks:
        for clip in ("00001", "00002"):
            touch(tmp_path, f"test/{talk}/{clip}", "lrs")
    left_out = {t for t in talks if in_test(t)}
    assert 0 < len(left_out) < 10
    assert {r.speaker for r in clip_records(tmp_path, "lrs", "test")} == left_out
    assert {r.speaker for r in clip_records(tmp_path, "lrs")} == {*talks} - left_out


def test_damaged_headers_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for id_ in ("align/s3/a", "align/s3/b"):
        touch(tmp_path, id_, "grid", n_frames=50)
    clip_paths(tmp_path, "align/s3/b", "grid").landmarks.write_bytes(b"nothing")
    assert clip_records(tmp_path, "grid").frames.tolist() == [50, 0]
    told = capsys.readouterr().err
    assert "1 clips are left out; the first: " in told
    assert "b_original.npy" in told


LISTS = [
    ("vox", [["id1", "v", "00001", 7, "more"]], "unzip/dev_video/id1/v/00001", 7),
    ("lrs", [["abc", "00001_crop.mp4", 3]], "test/abc/00001", 3),
    ("grid", [["s3", "bbaf2n", 1]], "align/s3/bbaf2n", -1),
    ("crema", [["1001_DFA_ANG_XX_front.npy"]], "VideoFlash/1001_DFA_ANG_XX", -1),
    ("crema", ["1001_DFA_ANG_XX"], "VideoFlash/1001_DFA_ANG_XX", -1),
    ("folder", ["some/where/a"], "some/where/a", -1),
]


@pytest.mark.parametrize("kind", ["json", "csv"])
@pytest.mark.parametrize(("dataset", "entries", "id_", "key"), LISTS)
def test_lists_name_clips(tmp_path: Path, kind: str, dataset: str, entries: list, id_: str, key: int) -> None:
    path = tmp_path / f"list.{kind}"
    rows = [e if isinstance(e, list) else [e] for e in entries]
    path.write_text(json.dumps(entries) if kind == "json" else "\n".join(",".join(map(str, r)) for r in rows))
    touch(tmp_path, id_, dataset, n_frames=9)
    touch(tmp_path, id_ + "x", dataset)
    for split in ("train", "test"):
        (record,) = clip_records(tmp_path, dataset, split, clip_list=str(path))
        assert (record.id, record.dataset, record.key_frame, record.frames) == (id_, dataset, key, 9)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.pkl", "x", r"a pickle can run code and is never opened; if you trust it, convert it: python -c"),
        ("a.json", "[", r"cannot be read"),
        ("a.json", "3", r"cannot be read"),
        ("a.json", "[]", r"names no clip"),
        ("a.json", '[["id1", "v"]]', r"needs 3 names for vox; check --dataset_name"),
        ("a.json", '[["id1", "..", "b"]]', r"needs 3 names"),
        ("none.csv", None, r"cannot be read"),
    ],
)
def test_bad_lists_are_refused_in_one_line(tmp_path: Path, name: str, text: str | None, told: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=told) as caught:
        clip_records(tmp_path, "vox", clip_list=str(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert f"--clip_list {tmp_path / name}" in str(caught.value)


def test_sound_is_found_where_each_set_keeps_it(tmp_path: Path) -> None:
    places = {
        ("vox", "unzip/test_video/id1/v/1"): "unzip/test_audio/id1/v/1.m4a",
        ("grid", "align/s1/a"): "audio/s1/a.wav",
        ("crema", "VideoFlash/1001_X"): "AudioWAV/1001_X.wav",
    }
    for (dataset, id_), sound in places.items():
        record = replace(RECORD, id=id_, dataset=dataset, audio="")
        assert audio_of(tmp_path, record) is None
        (tmp_path / sound).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / sound).write_bytes(b"x")
        assert audio_of(tmp_path, record) == tmp_path / sound
    told = replace(RECORD, id="clips/a", audio="audio/s1/a.wav")
    assert audio_of(tmp_path, told) == tmp_path / "audio/s1/a.wav"


def test_videos_for_a_batch_begin_with_those_left_out(tmp_path: Path) -> None:
    write_index(tmp_path, [RECORD, replace(RECORD, id="align/s1/b", speaker="s1", split="test", audio="")])
    (tmp_path / "audio/s3").mkdir(parents=True)
    (tmp_path / "audio/s3/a.wav").write_bytes(b"x")
    assert list(prepared_videos(tmp_path)) == [
        (tmp_path / "align/s1/b_crop.mp4", None),
        (tmp_path / "align/s3/a_crop.mp4", tmp_path / "audio/s3/a.wav"),
    ]
