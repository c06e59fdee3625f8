"""The clips of a set of shards, by number: what the index tells of each, and its files where they lie."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from data.byte_range import ByteRange
from data.clip_list import ClipRecords, numbered
from data.contract import ClipRecord
from data.prepared_clip import ClipFiles
from data.shards.cache import ShardCache
from data.shards.format import MEMBERS, SHARD_INDEX, Shard, ShardedClip
from data.shards.order import MAX_WINDOW, Prefetcher, shard_order
from util.errors import UserError


@dataclass(frozen=True)
class LineFile:
    """The lines of a large file, read one by one when asked for, so that a million of them take no memory."""

    path: Path
    starts: np.ndarray  # (n + 1,) int64

    @classmethod
    def of(cls, path: Path) -> LineFile:
        ends, at = [np.zeros(1, np.int64)], 0
        with path.open("rb") as file:
            while chunk := file.read(1 << 24):
                ends.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + at + 1)
                at += len(chunk)
        return cls(path, np.concatenate(ends))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, k: int) -> bytes:
        start, end = int(self.starts[k]), int(self.starts[k + 1])
        return ByteRange(self.path, start, end - start).read()

    def __iter__(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            yield from file


class ShardIndex:
    """All clips of all shards, in the order in which they lie there."""

    def __init__(self, shards: Sequence[Shard], lines: Sequence[bytes] | LineFile) -> None:
        """lines: one of JSON per clip. Raises UserError where there are more or less of them."""
        self.shards, self._lines = tuple(shards), lines
        self.shard_of = np.repeat(np.arange(len(shards)), [s.clips for s in shards])
        if len(lines) != len(self.shard_of):
            raise UserError(
                f"{SHARD_INDEX}: has {len(lines)} lines for {len(self.shard_of)} clips; write the shards again"
            )

    def clip(self, place: int) -> ShardedClip:
        """Raises UserError where the line is damaged."""
        return ShardedClip.from_line(self._lines[place], self.shards[self.shard_of[place]])

    @cached_property
    def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Frames, longest run, speaker's number, and whether it may be redistributed, of each clip."""
        numbers, speakers = np.empty((3, len(self.shard_of)), np.int64), []
        for k, line in enumerate(self._lines):
            try:  # members are checked when they are asked for
                values = json.loads(line)["record"]
                numbers[:, k] = values["frames"], values["longest_run"], values["redistributable"] != "no"
                speakers.append(str(values["speaker"]))
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
                where = f"{SHARD_INDEX}, line {k + 1}"
                raise UserError(f"{where}: damaged ({error}); fetch or write it again") from None
        return numbers[0], numbers[1], numbered(speakers), numbers[2] > 0


class ShardSet(ClipRecords):
    """Some clips of an index, numbered shard by shard. Cheap to copy into reader processes."""

    def __init__(self, index: ShardIndex, store: Path | ShardCache, places: np.ndarray | None = None) -> None:
        """store: the shards' folder, or where they come from. places: clips of the index; default all."""
        self.index, self._store = index, store
        self._places = np.arange(len(index.shard_of)) if places is None else places
        self.shard_of = index.shard_of[self._places]  # (n,) each clip's shard, a number into index.shards
        self._sequence: list[int] = []  # the epoch's shards as they come
        self._ahead: tuple[int, Prefetcher] | None = None  # and the process that it is of

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, k: int) -> ClipRecord:
        """A clip's record; fetches no shard. Raises UserError where its line is damaged."""
        if not -len(self) <= k < len(self):
            raise IndexError(k)
        return self.index.clip(self._places[k]).record

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_ahead": None}  # a thread stays with its process

    @cached_property
    def frames(self) -> np.ndarray:
        return self.index.columns[0][self._places]

    @cached_property
    def runs(self) -> np.ndarray:
        return self.index.columns[1][self._places]

    @cached_property
    def speakers(self) -> np.ndarray:
        return self.index.columns[2][self._places]

    @property
    def is_remote(self) -> bool:
        return isinstance(self._store, ShardCache)

    def subset(self, wanted: np.ndarray) -> ShardSet:
        """The clips where `wanted` (n,) is true; shards without one of them are never fetched."""
        return ShardSet(self.index, self._store, self._places[wanted])

    def of_split(self, train: bool, free_only: bool = False) -> ShardSet:
        """The clips to train on, or those left out of that. free_only: without what may not be redistributed."""
        mine = np.array([(shard.split == "train") == train for shard in self.index.shards], bool)[
            self.shard_of
        ]
        return self.subset(mine & self.index.columns[3][self._places] if free_only else mine)

    def files(self, k: int) -> ClipFiles:
        """A clip's files to open as a PreparedClip. Raises UserError as `members`, and where one is missing."""
        members = self.members(k)
        for what in ("video", "landmarks", "rt", "front"):
            if MEMBERS[what] not in members:
                clip = self.index.clip(self._places[k])
                raise UserError(
                    f"{clip.shard}: {clip.record.id} has no {MEMBERS[what]}; write the shard again"
                )
        return ClipFiles(**{what: members.get(name) for what, name in MEMBERS.items()})

    def members(self, k: int) -> dict[str, ByteRange]:
        """A clip's files by name ("crop.mp4", "landmarks.npy", ...), in a shard that is now on this machine.

        A remote shard that isn't here yet is fetched, and those after it in the background, if `plan_epoch` has
        told the order. It stays until room is needed: ask again for every sample, it costs microseconds.
        Raises UserError, naming shard or URL, where it can't be had.
        """
        clip, number = self.index.clip(self._places[k]), int(self.shard_of[k])
        if self._sequence:
            self._look_ahead(number)
        path = self._path(number)
        return {
            name: ByteRange(path, *place, f"{clip.record.id}.{name}") for name, place in clip.members.items()
        }

    def plan_epoch(
        self, clip_of: np.ndarray, seed: int, epoch: int, shuffle: bool = True
    ) -> np.ndarray | None:
        """The order in which to read an epoch's samples so that each remote shard is fetched once.

        clip_of: (N,) each sample's clip. Returns a permutation of the N samples that depends on the arguments, the
        shards' and the cache's sizes alone; None where the shards are here and any order will do. Every process
        that reads calls it, too: it tells which shards come next. Without shuffle, the samples come as they are.
        """
        if not self.is_remote:
            return None
        shards, order = self.shard_of[clip_of], None
        if shuffle:
            order, self._sequence = shard_order(shards, seed, epoch, self.windows[0])
        else:
            self._sequence = list(dict.fromkeys(shards.tolist()))
        if self._ahead is not None:
            self._ahead[1].start(self._sequence)
        return order

    @cached_property
    def windows(self) -> tuple[int, int]:
        """How many remote shards are read from at a time, and how many are fetched ahead.

        The cache holds both and almost as many again: reader processes are not all at the same place.

        Raises UserError where it can't hold three of the largest.
        """
        largest = max((self.index.shards[k].bytes for k in np.unique(self.shard_of)), default=1)
        room = self._store.max_bytes // max(largest, 1)
        if room < 3:
            raise UserError(
                f"{self._store.folder}: {self._store.max_bytes / 1e6:.0f} MB for shards of {largest / 1e6:.0f} MB; "
                "room for three is needed; free some space there, or write smaller shards"
            )
        ahead = 1 if room < 8 else 2
        return int(max(min((room - ahead) // 2, MAX_WINDOW), 1)), ahead

    def _path(self, number: int) -> Path:
        shard = self.index.shards[number]
        return self._store.get(shard) if isinstance(self._store, ShardCache) else self._store / shard.name

    def _look_ahead(self, number: int) -> None:
        if self._ahead is None or self._ahead[0] != os.getpid():  # a fork has no threads but its own
            prefetcher = Prefetcher(self._path, lambda ks: self._store.keep(self.index.shards[k] for k in ks))
            prefetcher.start(self._sequence)
            self._ahead = os.getpid(), prefetcher
        self._ahead[1].reach(number, *self.windows)
