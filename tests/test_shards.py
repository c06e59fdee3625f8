"""Shards on disk: what goes in comes out, whoever reads it; the same bytes always; nothing hostile is taken."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from shard_folders import prepared, record, speakers

from data.contract import INDEX, SETTINGS
from data.shards import ShardSet, is_shards, open_shards, write_shards
from data.shards.format import SHARD_INDEX, SHARDS, Shard, ShardedClip, clip_members, sample_key
from util.errors import UserError

RECORDS = [
    *speakers(4, 5),
    *speakers(1, 3, "test"),
    record("VideoFlash/1001/a.b.c", dataset="crema", emotion="happy"),
    record("dev/id1/" + "x" * 120 + "/00001", dataset="vox", redistributable="no", text="été"),
    replace(record("__odd__/s9/100%"), audio=""),
]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("out"), RECORDS)


@pytest.fixture(scope="module")
def shards(out: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(out, folder, 6)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def check_clips(found: ShardSet, out: Path) -> None:
    """Records and all bytes are those of the prepared folder."""
    assert {r.id: r for r in found} == {r.id: r for r in RECORDS}
    for k, clip in enumerate(found):
        files = {name: path.read_bytes() for name, path in clip_members(out, clip).items()}
        members = {name: place.read() for name, place in found.members(k).items()}
        assert json.loads(members.pop("json")) == json.loads(clip.line())
        assert members == files


def test_what_goes_in_comes_out(out: Path, shards: Path) -> None:
    found = open_shards(str(shards))
    check_clips(found, out)
    train, test = found.of_split(True), found.of_split(False)
    assert len(found) == len(train) + len(test) == len(RECORDS)
    assert {r.split for r in test} == {"test"}
    assert [r.redistributable for r in found.of_split(True, free_only=True)].count("no") == 0
    assert len(train) == len(found.of_split(True, free_only=True)) + 1
    assert train.frames.tolist() == [40] * len(train)
    assert len(set(train.speakers[train.shard_of == train.shard_of[0]])) > 2, (
        "a shard is to hold many speakers"
    )
    assert train.plan_epoch(np.arange(len(train)), 0, 1) is None
    clip = train.files(0)
    assert clip.video.read() == train.members(0)["crop.mp4"].read()


def test_webdataset_reads_them(out: Path, shards: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    names = sorted(map(str, shards.glob("*.tar")))
    samples = {s["__key__"]: s for s in webdataset.WebDataset(names, shardshuffle=False)}
    assert len(samples) == len(RECORDS)
    for clip in RECORDS:
        sample = samples[sample_key(clip.id)]
        members = {k: v for k, v in sample.items() if not k.startswith("__")}
        assert json.loads(members.pop("json"))["id"] == clip.id
        assert members == {name: path.read_bytes() for name, path in clip_members(out, clip).items()}


def test_tars_without_our_index(out: Path, shards: Path, tmp_path: Path) -> None:
    """Written by GNU's rules, with folders as members and in capitals, and by ours without the index."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in sorted(shards.glob("*.tar")):
        os.link(path, bare / path.name)
    assert is_shards(str(bare))
    check_clips(open_shards(str(bare), tmp_path / "cache"), out)
    notes = contents(tmp_path / "cache")
    assert len(notes) == len(list(bare.glob("*.tar")))
    check_clips(open_shards(str(bare), tmp_path / "cache"), out)
    foreign = tmp_path / "foreign-000.tar"
    with tarfile.open(foreign, "w", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("some")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
        for clip in RECORDS:
            for name, path in clip_members(out, clip).items():
                tar.add(path, f"{sample_key(clip.id)}.{name.upper()}")
            add(tar, f"{sample_key(clip.id)}.json", clip.line().encode())
        add(tar, "README", b"no sample")
    check_clips(open_shards(str(foreign)), out)


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def test_patterns(shards: Path) -> None:
    (shards.parent / "s1.tar").write_bytes(b"a download")
    n = len(list(shards.glob("train-*.tar")))
    found = open_shards(f"{shards}/train-{{000001..{n - 1:06d}}}.tar")
    assert {clip.split for clip in found} == {"train"}
    assert set(found.shard_of) == set(range(open_shards(str(shards)).shard_of.max() + 1)) - {
        k for k, s in enumerate(found.index.shards) if s.name == "train-000000.tar" or s.split == "test"
    }
    assert len(open_shards(f"{shards}/test-000000.tar")) == 3
    with pytest.raises(UserError, match=r"doesn't know train-000099\.tar"):
        open_shards(f"{shards}/train-000099.tar")
    with pytest.raises(UserError, match="000005 to 000001 are no numbers"):
        open_shards(f"{shards}/train-{{000005..000001}}.tar")
    assert not is_shards(str(shards / "nowhere"))
    assert not is_shards(str(shards.parent)), "tars beside folders are downloads"
    with pytest.raises(UserError, match="no such folder"):
        open_shards(str(shards / "nowhere"))


def test_same_bytes_and_what_is_there_is_kept(out: Path, shards: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    write_shards(out, again, 6)
    assert contents(again) == contents(shards)
    before = {p.name: p.stat().st_ino for p in again.glob("*.tar")}
    (again / "train-000001.tar").write_bytes(b"cut off")
    (again / ".part-0123.tar").write_bytes(b"of a killed run")
    write_shards(out, again, 6)
    assert contents(again) == contents(shards)
    kept = [p.name for p in again.glob("*.tar") if p.stat().st_ino == before[p.name]]
    assert len(kept) == len(before) - 1


def test_another_plan_leaves_nothing_of_the_last(tmp_path: Path) -> None:
    out, folder = prepared(tmp_path / "out", speakers(2, 4)), tmp_path / "shards"
    assert len(write_shards(out, folder, 2)) == 4
    paths = write_shards(out, folder, 3)
    assert sorted(folder.glob("*.tar")) == paths
    sizes = [json.loads(line)["shard"] for line in (folder / SHARD_INDEX).read_text().splitlines()]
    assert [sizes.count(p.name) for p in paths] == [3, 3, 2]
    (out / SETTINGS).write_text('{"size": 128}')  # made anew with other options
    before = {p.stat().st_ino for p in paths}
    assert not before & {p.stat().st_ino for p in write_shards(out, folder, 3)}
    (folder / "train-000007.tar").write_bytes(b"whose?")
    with pytest.raises(UserError, match=r"holds train-000007\.tar, which is not of this run"):
        write_shards(out, folder, 3)


def test_killed_in_the_middle(tmp_path: Path) -> None:
    out = prepared(tmp_path / "out", speakers(3, 20), 40_000)
    write_shards(out, tmp_path / "whole", 4)
    slow = (
        "import sys, time; from pathlib import Path; from data.shards import writer as w\n"
        "add = w._Tar.add\n"
        "w._Tar.add = lambda *a: (time.sleep(0.004), add(*a))[1]\n"
        "w.write_shards(Path(sys.argv[1]), Path(sys.argv[2]), 4)"
    )
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", slow, str(out), str(folder)]
    run = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": "."}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while len(list(folder.glob("train-*.tar"))) < 4 and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    done = {p.name: p.stat().st_ino for p in folder.glob("train-*.tar")}
    assert 4 <= len(done) < 15
    with pytest.raises(UserError, match="not written to the end"):
        open_shards(str(folder))
    write_shards(out, folder, 4)
    assert contents(folder) == contents(tmp_path / "whole")
    assert len([n for n, inode in done.items() if (folder / n).stat().st_ino == inode]) >= len(done) - 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda out: (out / INDEX).unlink(), "no clips.jsonl there"),
        (lambda out: (out / INDEX).write_text(""), "holds no clip"),
        (lambda out: (out / INDEX).write_text("{}\n"), "line 1"),
        (lambda out: next(out.rglob("*_rt.npy")).unlink(), "missing, though clips.jsonl has the clip"),
        (lambda out: (out / INDEX).write_text(record("a/../b/c").line() + "\n"), "may not stand in a shard"),
        (lambda out: (out / INDEX).write_text(record("a/b", "../x").line() + "\n"), "split '../x'"),
    ],
)
def test_a_folder_that_cannot_be_packed(tmp_path: Path, spoil: object, message: str) -> None:
    out = prepared(tmp_path / "out", speakers(1, 2))
    spoil(out)
    with pytest.raises(UserError, match=message):
        write_shards(out, tmp_path / "shards", 4)


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = prepared(tmp_path / "out", speakers(1, 2))

    def full(self: object, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data.shards.writer._Tar._write", full)
    with pytest.raises(UserError, match="no space is left there"):
        write_shards(out, tmp_path / "shards", 4)
    assert not list((tmp_path / "shards").glob("*.tar")) + list((tmp_path / "shards").glob(".part-*"))


def hostile(path: Path, name: str, kind: bytes = tarfile.REGTYPE, size: int = 3) -> Path:
    with path.open("wb") as file:
        info = tarfile.TarInfo(name)
        info.type, info.size, info.linkname = kind, size, "/etc/passwd"
        file.write(info.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    return path


@pytest.mark.parametrize(
    ("name", "kind", "size", "message"),
    [
        ("/etc/cron.d/x.json", tarfile.REGTYPE, 3, "no shard of clips needs"),
        ("a/../../x.json", tarfile.REGTYPE, 3, "no shard of clips needs"),
        ("a\\..\\x.json", tarfile.REGTYPE, 3, "no shard of clips needs"),
        ("a.json", tarfile.SYMTYPE, 0, "no shard of clips needs"),
        ("a.json", tarfile.LNKTYPE, 0, "no shard of clips needs"),
        ("a.json", tarfile.CHRTYPE, 0, "no shard of clips needs"),
        ("a.json", tarfile.FIFOTYPE, 0, "no shard of clips needs"),
        ("a.json", tarfile.REGTYPE, 1 << 40, "cut off within a.json"),
        ("pax", tarfile.XHDTYPE, 1 << 33, "no whole tar"),
        ("long", tarfile.GNUTYPE_LONGNAME, 1 << 33, "no whole tar"),
    ],
)
def test_hostile_tars_are_refused(tmp_path: Path, name: str, kind: bytes, size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_shards(str(hostile(tmp_path / "x-0.tar", name, kind, size)))


def test_cut_off_and_other_files(out: Path, shards: Path, tmp_path: Path) -> None:
    whole = (shards / "train-000000.tar").read_bytes()
    for n in (5, 700, len(whole) // 2):
        (tmp_path / "x-0.tar").write_bytes(whole[:n])
        with pytest.raises(UserError, match=r"x-0\.tar"):
            open_shards(str(tmp_path / "x-0.tar"))
    (tmp_path / "x-0.tar").write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(UserError, match="no whole tar"):
        open_shards(str(tmp_path / "x-0.tar"))


def test_damaged_index(out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    write_shards(out, folder, 100)
    text, lines = (folder / SHARDS).read_text(), (folder / SHARD_INDEX).read_text()
    (folder / SHARD_INDEX).write_text(lines.replace('"crop.mp4": [', '"crop.mp4": [9', 1))
    with pytest.raises(UserError, match="is not the one of"):
        open_shards(str(folder))
    shard = Shard("train-000000.tar", "train", 1, 5000)
    first = lines.splitlines()[-1]
    for spoilt in (first[:-9], "[]", "null", first.replace('"crop.mp4": [', '"crop.mp4": [9000')):
        with pytest.raises(UserError, match="damaged line"):
            ShardedClip.from_line(spoilt, shard)
    for spoilt in (
        text[:-9],
        "[]",
        text.replace("train-000000.tar", "../../x.tar"),
        text.replace('"clips": 3', '"clips": -3'),
    ):
        (folder / SHARDS).write_text(spoilt)
        with pytest.raises(UserError, match=r"shards\.json: "):
            open_shards(str(folder))
    (folder / SHARDS).write_text(text)
    (folder / SHARD_INDEX).write_text(lines.replace('"frames": 40', '"frames": 4x', 1))
    with pytest.raises(UserError, match=r"index\.jsonl, line 1: damaged"):
        _ = open_shards(str(folder)).frames
    (folder / SHARD_INDEX).write_text(lines)
    (folder / "test-000000.tar").write_bytes(b"cut")
    with pytest.raises(UserError, match="has 3 of"):
        open_shards(str(folder))
