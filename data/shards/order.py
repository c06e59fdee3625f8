"""In which order samples are read so that every shard is fetched once per epoch, and the next ones ahead of time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

import numpy as np

from util.errors import UserError

MAX_WINDOW = 16  # shards that are read from at a time: more mix no better


def shard_order(shard_of: np.ndarray, seed: int, epoch: int, window: int) -> tuple[np.ndarray, list[int]]:
    """The order of an epoch's samples, and that of the shards; both depend on the arguments alone.

    shard_of: (N,) each sample's shard. Returns a permutation of the N samples, and the shards that hold any, in the
    order in which they are first needed. The shards are shuffled; the samples of the k-th are spread over the time
    from k to k + window: one opens as another is through, and no more than `window` are open at once.
    """
    rng = np.random.default_rng([seed, epoch, len(shard_of)])
    shards, compact = np.unique(shard_of, return_inverse=True)
    rank = rng.permutation(len(shards))
    order = np.argsort(rank[compact] + window * rng.random(len(shard_of)), kind="stable")
    return order, shards[np.argsort(rank)].tolist()


class Prefetcher:
    """Fetches the shards ahead of the reader, one after the other, in a thread that ends with its process."""

    def __init__(self, fetch: Callable[[int], object], keep: Callable[[Sequence[int]], None]) -> None:
        """fetch: get one shard; keep: these are still to be read from."""
        self._fetch, self._keep = fetch, keep
        self._wanted: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._sequence: Sequence[int] = ()
        self._rank: dict[int, int] = {}
        self._reached = -1
        self._asked = 0
        threading.Thread(target=self._run, daemon=True, name="shards").start()

    def start(self, sequence: Sequence[int]) -> None:
        """Begin an epoch whose shards are needed in this order."""
        self._sequence = sequence
        self._rank = {shard: k for k, shard in enumerate(sequence)}
        self._reached, self._asked = -1, 0

    def reach(self, shard: int, window: int, ahead: int) -> None:
        """The reader is at this shard: keep the open ones, and see to the `ahead` next ones."""
        k = self._rank.get(shard, -1)
        if k <= self._reached:
            return
        self._reached = k
        until = k + 1 + ahead
        for nearer in self._sequence[max(self._asked, k + 1) : until]:
            self._wanted.put(nearer)
        self._asked = max(self._asked, until)
        self._keep(self._sequence[max(k + 1 - window, 0) : until])

    def _run(self) -> None:
        while True:
            shard = self._wanted.get()
            try:
                self._fetch(shard)
            except UserError:
                continue  # the reader meets it, too, and says so
