"""Which samples make which batch: fixed by seed and epoch, so that training can go on in mid-epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch.utils.data import Dataset, Sampler

from util.batch import FaceBatch


class FaceSamples(Protocol):
    """What training needs of a dataset (data.face_fore_dataset.FaceForeDataset has it).

    Where a sample cannot be read the dataset gives another. It may have: `has_flow` and `has_ani`, where samples can
    lack these; `order()`, in which an epoch's samples are read cheaply, or None; `report()`, which says what could
    not be read.
    """

    def __len__(self) -> int: ...
    def __getitem__(
        self, index: int
    ) -> FaceBatch: ...  # a sample, without batch axis; by epoch and index alone
    def set_epoch(self, epoch: int, n_frames: int | None = None) -> None: ...  # T, where it changes


class Place(NamedTuple):
    """Where a sample is: readers outlast epochs, so that each request says of which epoch it is."""

    epoch: int
    n_frames: int  # T
    index: int


class PlacedSamples(Dataset):
    """A dataset's samples by `Place`."""

    def __init__(self, dataset: FaceSamples) -> None:
        self.dataset = dataset
        self.epoch = self.n_frames = -1  # not yet known

    def __getitem__(self, place: Place) -> FaceBatch:
        if place.n_frames != self.n_frames:
            self.dataset.set_epoch(place.epoch, place.n_frames)
        elif place.epoch != self.epoch:
            self.dataset.set_epoch(place.epoch)
        self.epoch, self.n_frames = place.epoch, place.n_frames
        return self.dataset[place.index]


class EpochBatches(Sampler[list[Place]]):
    """The batches of one epoch after the other; this process's part of each.

    A last batch that is not full is filled from the beginning of the epoch, so that all have one size and no sample
    is left out. Process `rank` of `world_size` takes its part of each batch: all of them together see what one alone
    would see.
    """

    def __init__(
        self, batch_size: int, seed: int, shuffle: bool = True, rank: int = 0, world_size: int = 1
    ) -> None:
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.mine = part_of(batch_size, rank, world_size)
        self.order: list[int] = []
        self.epoch = self.n_frames = self.start = 0

    def go_to(
        self, epoch: int, n_frames: int, n_samples: int, start: int = 0, order: Sequence[int] | None = None
    ) -> None:
        """Make the next iteration one over this epoch's samples, from the `start`-th of its order on.

        order: the one to shuffle them into; None: one that depends on seed and epoch.
        """
        self.epoch, self.n_frames, self.start = epoch, n_frames, start
        self.order = list(range(n_samples))
        if self.shuffle and order is not None:
            self.order = [int(i) for i in order]
            assert len(self.order) == n_samples, "an order has every sample once"
        elif self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self.order = torch.randperm(n_samples, generator=generator).tolist()

    def __iter__(self) -> Iterator[list[Place]]:
        n = len(self.order)
        for first in range(self.start, n, self.batch_size):
            batch = [self.order[i % n] for i in range(first, first + self.batch_size)]
            yield [Place(self.epoch, self.n_frames, i) for i in batch[self.mine]]

    def __len__(self) -> int:
        return max(-(-(len(self.order) - self.start) // self.batch_size), 0)


def part_of(n: int, rank: int, world_size: int) -> slice:
    """Process `rank`'s part of n samples, a multiple of world_size."""
    assert n % world_size == 0, "the processes' parts of a batch have one size"
    part = n // world_size
    return slice(rank * part, (rank + 1) * part)
