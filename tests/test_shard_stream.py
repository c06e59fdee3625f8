"""Shards from a web server: in order, each once, through a cache that is smaller than the set; and all that fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from prepared import copy_of, prepare_portrait, write_index
from shard_folders import FAST, Server, prepared, serving, speakers
from torch.utils.data import DataLoader, Dataset

from data.clip_list import clip_records
from data.face_fore_dataset import FaceForeDataset
from data.frame_choice import SamplePlan
from data.open_clips import ClipFolder, ShardClips
from data.shards import ShardSet, open_shards, write_shards
from data.shards.cache import ShardCache
from data.shards.format import SHARD_INDEX, SHARDS, clip_members
from data.shards.http_fetch import Fetcher
from data.shards.order import shard_order
from models.batch_order import EpochBatches, Place
from util.errors import UserError

RECORDS = speakers(6, 15)
PER_SHARD = 5  # so 18 shards
IMPATIENT = Fetcher(tries=3, wait_s=FAST, timeout_s=5.0)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("out"), RECORDS, 3000)


@pytest.fixture(scope="module")
def folder(out: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(out, folder, PER_SHARD)
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with serving(folder) as server:
        yield server


def room_for(folder: Path, n: int) -> int:
    return n * max(p.stat().st_size for p in folder.glob("*.tar"))


def kept_bytes(cache: Path) -> int:
    total = 0
    for path in cache.rglob("*.tar*"):
        with suppress(FileNotFoundError):  # renamed meanwhile
            total += path.stat().st_size if ".locks" not in path.parts else 0
    return total


def check_clip(found: ShardSet, k: int, out: Path) -> None:
    files = {name: path.read_bytes() for name, path in clip_members(out, found[k]).items()}
    members = {name: place.read() for name, place in found.members(k).items()}
    assert json.loads(members.pop("json"))["id"] == found[k].id
    assert members == files


@pytest.mark.parametrize("n_shards", [4, 9])
def test_every_sample_once_and_each_shard_fetched_once(
    server: Server, folder: Path, out: Path, tmp_path: Path, n_shards: int
) -> None:
    found = open_shards(server.url, tmp_path, room_for(folder, n_shards), IMPATIENT)
    clip_of = np.random.default_rng(0).permutation(len(found))
    for epoch in (1, 2):
        server.asked.clear()
        order = found.plan_epoch(clip_of, 7, epoch)
        assert sorted(order) == list(range(len(RECORDS)))
        for sample in order:
            check_clip(found, clip_of[sample], out)
            assert kept_bytes(tmp_path) <= room_for(folder, n_shards)
        fetched = {name: n for name, n in server.asked.items() if name.endswith(".tar")}
        assert max(fetched.values()) == 1
        assert len(fetched) >= 18 - n_shards  # some are still there from the epoch before
    assert list(tmp_path.rglob("*.part")) == []


def test_the_next_shards_are_fetched_ahead(server: Server, folder: Path, tmp_path: Path) -> None:
    found = open_shards(server.url, tmp_path, room_for(folder, 9), IMPATIENT)
    clip_of = np.arange(len(found))
    order = found.plan_epoch(clip_of, 7, 1)
    found.members(int(order[0]))
    names = [found.index.shards[k].name for k in shard_order(found.shard_of, 7, 1, found.windows[0])[1][:4]]
    deadline = time.monotonic() + 10
    while not server.asked[names[2]] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [server.asked[name] for name in names] == [1, 1, 1, 0]


def test_in_its_own_order(server: Server, folder: Path, tmp_path: Path) -> None:
    found = open_shards(
        f"{server.url}/train-{{000000..000009}}.tar", tmp_path, room_for(folder, 3), IMPATIENT
    )
    assert len(found) == 50
    assert found.plan_epoch(np.arange(50), 0, 1, shuffle=False) is None
    for k in range(50):
        found.members(k)
    assert all(server.asked[f"train-{k:06d}.tar"] == 1 for k in range(10))
    assert not server.asked["train-000010.tar"]


def test_order_of_samples() -> None:
    shard_of = np.repeat(np.arange(40), 25)
    order, sequence = shard_order(shard_of, 3, 1, 8)
    assert sorted(order) == list(range(1000))
    assert sorted(sequence) == list(range(40))
    assert list(dict.fromkeys(shard_of[order].tolist())) != sequence[::-1]
    first = [int(np.flatnonzero(shard_of[order] == s)[0]) for s in sequence]
    last = [int(np.flatnonzero(shard_of[order] == s)[-1]) for s in sequence]
    open_at = [sum(a <= t <= b for a, b in zip(first, last, strict=True)) for t in range(1000)]
    assert max(open_at) <= 9  # one is through as the next begins
    assert np.median(open_at) >= 6, "shards are to be mixed"
    again, _ = shard_order(shard_of, 3, 1, 8)
    assert (order == again).all()
    assert (order != shard_order(shard_of, 3, 2, 8)[0]).any()
    assert (order != shard_order(shard_of, 4, 1, 8)[0]).any()
    one, sequence = shard_order(np.array([5, 5, 2]), 0, 0, 1)
    assert sorted(sequence) == [2, 5]
    assert sorted(one) == [0, 1, 2]


class Streamed(Dataset):
    """What a dataset over shards has to do; a sample is its clip's number and some bytes of it."""

    def __init__(self, clips: ShardSet) -> None:
        self.clips, self.epoch, self.planned = clips, 0, (-1, None)

    def __len__(self) -> int:
        return len(self.clips)

    def set_epoch(self, epoch: int, n_frames: int | None = None) -> None:
        self.epoch = epoch

    def order(self) -> np.ndarray | None:
        if self.planned[0] != self.epoch:
            self.planned = self.epoch, self.clips.plan_epoch(np.arange(len(self)), 0, self.epoch)
        return self.planned[1]

    def __getitem__(self, place: Place) -> torch.Tensor:
        self.set_epoch(place.epoch)
        self.order()
        return torch.tensor([place.index, sum(b.read()[0] for b in self.clips.members(place.index).values())])


def test_reader_processes_of_two_ranks_share_the_cache(server: Server, folder: Path, tmp_path: Path) -> None:
    """Two processes of a training with two readers each: all samples once, and each shard fetched once."""
    loaders = []
    for rank in range(2):
        dataset = Streamed(open_shards(server.url, tmp_path, room_for(folder, 14), IMPATIENT))
        batches = EpochBatches(6, 0, rank=rank, world_size=2)
        dataset.set_epoch(1)
        batches.go_to(1, 1, len(dataset), 0, dataset.order())
        loaders.append(DataLoader(dataset, batch_sampler=batches, num_workers=2, prefetch_factor=1))
    seen = [int(sample[0]) for pair in zip(*loaders, strict=True) for batch in pair for sample in batch]
    assert sorted(seen) == list(range(len(RECORDS)))
    assert {n for name, n in server.asked.items() if name.endswith(".tar")} == {1}
    assert server.asked[SHARD_INDEX] == 1


def test_samples_are_those_of_the_folder(tmp_path: Path) -> None:
    """A real clip: the dataset gives the same from a folder, from shards, and from shards on a server."""
    made, out = prepare_portrait(tmp_path), tmp_path / "out"
    write_index(out, [made, copy_of(out, made, "clips/bob/a", "bob")])
    write_shards(out, tmp_path / "shards")
    plan = SamplePlan(n_shot=2, seed=3)
    with serving(tmp_path / "shards") as server:
        sources = [ClipFolder(out, clip_records(out))] + [
            ShardClips(open_shards(where, tmp_path / "cache", fetcher=IMPATIENT).of_split(True))
            for where in (str(tmp_path / "shards"), server.url)
        ]
        sets = [FaceForeDataset(source, plan) for source in sources]
        for k in range(2):
            samples = [vars(dataset[k]) for dataset in sets]
            for name, value in samples[0].items():
                for other in samples[1:]:
                    assert value is other[name] or torch.equal(value, other[name]), name
        assert sets[1].order() is None
        assert sorted(sets[2].order()) == [0, 1]
        assert server.asked["train-000000.tar"] == 1


def test_batches_follow_a_given_order() -> None:
    def indices(order: list[int] | None, **how: int) -> list[int]:
        batches = EpochBatches(4, 3, **how)
        batches.go_to(2, 1, 7, 0, order)
        return [place.index for batch in batches for place in batch]

    given = [6, 5, 4, 3, 2, 1, 0]
    assert indices(given) == [*given, 6]
    assert indices(given, shuffle=False)[:7] == list(range(7))
    assert indices(None) != indices(given)
    with pytest.raises(AssertionError, match="every sample once"):
        indices([1, 2])


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_breaks_off_goes_on(folder: Path, out: Path, tmp_path: Path, ranges: bool) -> None:
    with serving(folder, ranges) as server:
        server.cut["train-000003.tar"] = 2
        server.busy["train-000003.tar"] = 1
        server.cut[SHARD_INDEX] = 1
        found = open_shards(server.url, tmp_path, room_for(folder, 9), IMPATIENT)
        k = int(np.flatnonzero(found.shard_of == 3)[0])
        check_clip(found, k, out)
        size = (folder / "train-000003.tar").stat().st_size
        assert server.asked["train-000003.tar"] == 3
        assert server.sent["train-000003.tar"] == (size if ranges else size // 2 * 2 + size)


def test_wrong_bytes_are_refused_and_fetched_again(
    server: Server, folder: Path, out: Path, tmp_path: Path
) -> None:
    server.spoilt["train-000000.tar"] = 1
    found = open_shards(server.url, tmp_path, room_for(folder, 9), IMPATIENT)
    check_clip(found, int(np.flatnonzero(found.shard_of == 0)[0]), out)
    assert server.asked["train-000000.tar"] == 2
    server.spoilt["train-000001.tar"] = 99
    with pytest.raises(UserError, match=rf"{server.url}/train-000001\.tar: .*checksum is another.*3 times"):
        found.members(int(np.flatnonzero(found.shard_of == 1)[0]))
    assert list(tmp_path.rglob("*000001.tar")) == [next(tmp_path.rglob(".locks/*000001.tar"))]


def test_shards_of_another_size_or_gone(folder: Path, out: Path, tmp_path: Path) -> None:
    copy = tmp_path / "www"
    copy.mkdir()
    for path in folder.glob("[!.]*"):
        if path.is_file():
            os.link(path, copy / path.name)
    with serving(copy) as server:
        found = open_shards(server.url, tmp_path / "cache", room_for(folder, 9), IMPATIENT)
        for name, change in (
            ("train-000000.tar", b"more"),
            ("train-000001.tar", None),
            ("train-000002.tar", b""),
        ):
            path = copy / name
            data = path.read_bytes()
            path.unlink()
            if change is not None:
                path.write_bytes(data + change if change else data[:-600])
        first = [int(np.flatnonzero(found.shard_of == k)[0]) for k in range(4)]
        with pytest.raises(UserError, match=r"000000\.tar: cannot be fetched \(it has more than"):
            found.members(first[0])
        with pytest.raises(UserError, match=r"000001\.tar: the server answers 404"):
            found.members(first[1])
        with pytest.raises(UserError, match=r"000002\.tar: cannot be fetched \((broke off|it is shorter)"):
            found.members(first[2])
        check_clip(found, first[3], out)
        last = int(np.flatnonzero(found.shard_of == 4)[0])
    with pytest.raises(
        UserError, match=rf"{server.url}/train-000004\.tar: cannot be fetched .*3 times tried"
    ):
        found.members(last)
    check_clip(found, first[3], out)  # what is here needs no server
    with pytest.raises(UserError, match=rf"{server.url}/shards\.json: cannot be fetched"):
        open_shards(server.url, tmp_path / "cache", room_for(folder, 9), IMPATIENT)


def test_shards_of_others_on_a_server(folder: Path, out: Path, tmp_path: Path) -> None:
    bare = tmp_path / "www"
    bare.mkdir()
    for k in range(3):
        os.link(folder / f"train-{k:06d}.tar", bare / f"train-{k:06d}.tar")
    with serving(bare) as server:
        with pytest.raises(UserError, match=r"no shards\.json there; give a pattern"):
            open_shards(server.url, tmp_path / "cache", room_for(folder, 4), IMPATIENT)
        for _ in range(2):
            where = f"{server.url}/train-{{000000..000002}}.tar"
            found = open_shards(where, tmp_path / "cache", room_for(folder, 4), IMPATIENT)
            assert len(found) == 15
            check_clip(found, 14, out)
        assert set(server.asked.values()) == {1}
    with pytest.raises(UserError, match="a folder to keep remote shards in is needed"):
        open_shards("http://127.0.0.1:9/x")


def test_a_cache_that_is_too_small(server: Server, folder: Path, tmp_path: Path) -> None:
    found = open_shards(server.url, tmp_path, room_for(folder, 2), IMPATIENT)
    with pytest.raises(UserError, match="room for three is needed"):
        found.plan_epoch(np.arange(len(found)), 0, 1)
    tiny = open_shards(server.url, tmp_path, 1000, IMPATIENT)
    with pytest.raises(UserError, match="may hold only 0 MB"):
        tiny.members(0)


def test_what_a_dead_process_left_takes_no_room(server: Server, folder: Path, tmp_path: Path) -> None:
    """Killed while it fetched: its beginning is gone on from, or makes room."""
    found = open_shards(server.url, tmp_path, room_for(folder, 3), IMPATIENT)
    cache: ShardCache = found._store
    shards = found.index.shards
    cache.folder.mkdir(exist_ok=True)
    for shard, n in ((shards[0], 500), (shards[1], shards[1].bytes - 1), (shards[2], 9)):
        data = (folder / shard.name).read_bytes()[:n]
        (cache.folder / f"{shard.sha256[:16]}-{shard.name}.{shard.bytes}.part").write_bytes(data)
    assert cache.get(shards[0]).read_bytes() == (folder / shards[0].name).read_bytes()
    assert server.sent[shards[0].name] == shards[0].bytes - 500
    for shard in shards[3:6]:
        cache.get(shard)
    assert kept_bytes(tmp_path) <= room_for(folder, 3)
    assert list(cache.folder.glob("*.part")) == []


def test_killed_while_fetching(folder: Path, tmp_path: Path) -> None:
    """Another process goes on from there; locks of the dead are free."""
    with serving(folder) as server:
        server.cut["train-000000.tar"] = 1
        code = (
            "import os, sys; from pathlib import Path\n"
            "from data.shards import http_fetch; from data.shards import open_shards\n"
            "found = open_shards(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))\n"
            "http_fetch.Fetcher._wait = lambda *a: os.kill(os.getpid(), 9)\n"
            "found.members(0)"
        )
        command = [sys.executable, "-c", code, server.url, str(tmp_path), str(room_for(folder, 4))]
        assert subprocess.run(command, env={**os.environ, "PYTHONPATH": "."}).returncode == -9
        assert len(list(tmp_path.rglob("*.part"))) == 1
        found = open_shards(server.url, tmp_path, room_for(folder, 4), IMPATIENT)
        found.members(0)
        assert server.sent["train-000000.tar"] == (folder / "train-000000.tar").stat().st_size


def test_new_shards_on_the_server_are_not_mixed_with_old_ones(
    out: Path, folder: Path, tmp_path: Path
) -> None:
    old, new = tmp_path / "www", tmp_path / "new"
    write_shards(out, old, PER_SHARD)
    write_shards(out, new, PER_SHARD, seed=1)
    with serving(old) as server:
        cache = tmp_path / "cache"
        open_shards(server.url, cache, room_for(folder, 9), IMPATIENT).members(0)
        server.folder = new
        again = open_shards(server.url, cache, room_for(folder, 9), IMPATIENT)
        check_clip(again, 0, out)


def test_hostile_lists_of_shards(folder: Path, tmp_path: Path) -> None:
    said = json.loads((folder / SHARDS).read_text())
    www = tmp_path / "www"
    www.mkdir()
    with serving(www) as server:
        for name in ("../../../x.tar", "/etc/x.tar", ".ssh.tar", "x.tar/../y.tar", "a\\b.tar", "x.sh"):
            shards = [said["shards"][0] | {"name": name}]
            (www / SHARDS).write_text(json.dumps(said | {"shards": shards}))
            with pytest.raises(UserError, match="is no name of a shard"):
                open_shards(server.url, tmp_path / "cache", 1 << 30, IMPATIENT)
