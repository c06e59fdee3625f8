"""For a sample that cannot be read the next one stands in; how often, all reader processes count together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch.utils.data import get_worker_info

from util.errors import UserError, remark

MAX_DAMAGED = 10  # in a row
_MAX_READERS, _MAX_REASON = 1024, 400  # --nThreads goes up to that; bytes
Sample = TypeVar("Sample")


class StandIns:
    """Counts in memory that the reader processes share: a slot for each, so that none has to wait for another."""

    def __init__(self) -> None:
        self._counts = torch.zeros(_MAX_READERS + 1, dtype=torch.int64).share_memory_()
        self._reason = torch.zeros(_MAX_REASON, dtype=torch.uint8).share_memory_()

    @property
    def count(self) -> int:
        """Samples that others stood in for, of all processes that came from this one."""
        return int(self._counts.sum())

    @property
    def first_reason(self) -> str:
        """Why, the first time; empty if there was none."""
        return bytes(self._reason.tolist()).rstrip(b"\0").decode(errors="ignore")

    def read(self, sample: Callable[[int], Sample], index: int, n_samples: int) -> Sample:
        """Sample `index`, or the next one of n that can be read.

        Raises UserError where ten in a row cannot: then it is not a matter of single clips.
        """
        for i in range(MAX_DAMAGED):
            try:
                return sample((index + i) % n_samples)
            except (UserError, OSError) as error:
                self._note(" ".join(str(error).split()))
        raise UserError(
            f"--dataroot: {MAX_DAMAGED} samples in a row can't be read; check the clips; the first fault: "
            f"{self.first_reason}"
        )

    def tell(self) -> None:
        """Say how often another sample stood in, if any did."""
        if self.count:
            remark(f"{self.count} samples could not be read, others stood in; the first: {self.first_reason}")

    def _note(self, reason: str) -> None:
        reader = get_worker_info()
        self._counts[(reader.id + 1) % len(self._counts) if reader else 0] += 1
        if not self._reason[0]:
            data = (reason or "unknown").encode()[:_MAX_REASON]
            self._reason[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
