"""Ctrl-C and SIGTERM, heard between steps."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType


class StopRequest:
    """While this is entered, the first SIGINT or SIGTERM sets `made`; the second ends the process as usual."""

    def __init__(self) -> None:
        self.made = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # others may not set handlers
            self._before = {s: signal.signal(s, self._hear) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.made = True
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def stand_apart(worker: int) -> None:
    """For a DataLoader's workers: signals to the process group, from a terminal or torchrun, are not for them.

    The step under way needs them; they end with the process that they read for.
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()
