"""Constants and typed values that every room shares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FPS = 25  # frames per second of everything inside the system
SAMPLE_RATE = 16_000  # Hz of every voice inside the system
EMOTIONS = ("neutral", "happy", "sad", "angry", "fear", "disgust", "surprise")


@dataclass(frozen=True)
class Voice:
    """A mono voice at 16 kHz."""

    samples: np.ndarray  # (N,) float32 in [-1, 1]

    @property
    def n_frames(self) -> int:
        """Video frames that the voice fills, the last one possibly in part."""
        return -(-len(self.samples) * FPS // SAMPLE_RATE)
