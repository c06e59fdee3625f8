"""Where the prepared clips of a dataset are, by number: in a folder or in shards; the last used ones are kept open."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Protocol

import numpy as np

from data.clip_list import ClipRecords
from data.contract import clip_paths
from data.prepared_clip import ClipFiles, PreparedClip
from data.shards.shard_set import ShardSet

KEPT_FRAMES = 40_000  # of open clips, in each process: 1.7 kB each


class PreparedClips(Protocol):
    """N prepared clips."""

    records: ClipRecords

    def files(self, k: int) -> ClipFiles:
        """Where clip k's files are. Raises UserError where one is missing."""

    def plan_epoch(
        self, clip_of: np.ndarray, seed: int, epoch: int, shuffle: bool = True
    ) -> np.ndarray | None:
        """The order in which to read samples of these clips, where one is much cheaper; None: any will do."""


class ClipFolder:
    """The clips of a prepared folder."""

    def __init__(self, root: str | Path, records: ClipRecords) -> None:
        self.root, self.records = Path(root), records

    def files(self, k: int) -> ClipFiles:
        record = self.records[k]
        return ClipFiles.of(clip_paths(self.root, record.id, record.dataset))

    def plan_epoch(self, clip_of: np.ndarray, seed: int, epoch: int, shuffle: bool = True) -> None:
        """Any order will do."""


class ShardClips:
    """The clips of shards."""

    def __init__(self, shards: ShardSet) -> None:
        self.records, self.files, self.plan_epoch = shards, shards.files, shards.plan_epoch


class OpenClips:
    """Opens clips and keeps the last used; each reader process has its own."""

    def __init__(
        self,
        clips: PreparedClips,
        size: int | None,
        cache: Path | None,
        with_ani: bool,
        limit: int = KEPT_FRAMES,
    ) -> None:
        """size, cache, with_ani: as in `PreparedClip.open`. limit: frames of all clips that are kept."""
        self._clips, self._size, self._cache, self._with_ani = clips, size, cache, with_ani
        self._limit = limit
        self._kept: OrderedDict[int, PreparedClip] = OrderedDict()

    def __getitem__(self, k: int) -> PreparedClip:
        """Clip k. Raises UserError where it cannot be opened."""
        files = self._clips.files(k)  # asked each time: a shard may have had to make room
        clip = self._kept.pop(k, None)
        if clip is None or clip.files != files:
            key_frame = self._clips.records[k].key_frame
            clip = PreparedClip.open(files, self._size, self._cache, self._with_ani, key_frame)
        self._kept[k] = clip
        while len(self._kept) > 1 and sum(map(len, self._kept.values())) > self._limit:
            self._kept.popitem(last=False)
        return clip

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_kept": OrderedDict()}
