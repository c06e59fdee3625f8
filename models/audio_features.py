"""Audio features: log-mel spectrogram at 100 Hz, four steps per video frame, relative to the voice's own level.

Window i is centred on (i + 0.5) * 10 ms, so the four steps of video frame t lie symmetrically in the time
[t / 25, (t + 1) / 25) for which the frame is shown. Everything is computed in blocks: an hour of speech needs no more
memory than a minute.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor

from util.types import FPS, SAMPLE_RATE

N_MELS = 64
STEPS_PER_FRAME = 4
HOP = SAMPLE_RATE // FPS // STEPS_PER_FRAME  # 160 samples
WINDOW = 400  # 25 ms
N_FFT = 512
BLOCK_FRAMES = 500  # 20 s of voice per block

_LOW_HZ, _HIGH_HZ = 60.0, 7800.0
_POWER_FLOOR = 1e-10
_BIN = 0.1  # natural-log units of power per bin of the loudness histogram
_LOWEST, _N_BINS = -24.0, 400  # the histogram spans -24 to 16
SPEECH_RANGE = 6.0  # what is within 26 dB of the loud steps counts as speech
MIN_SPEECH_POWER = -7.0  # natural log, about 70 dB below full scale: quieter voices are silence, not whispers
FEATURE_SCALE = 2.0
FEATURE_RANGE = (-6.0, 4.0)


@cache
def mel_filters() -> Tensor:
    """(257, 64) triangular filters on the mel scale 2595 log10(1 + f / 700), each of unit sum."""
    low, high = (2595 * np.log10(1 + f / 700) for f in (_LOW_HZ, _HIGH_HZ))
    edges = 700 * (10 ** (np.linspace(low, high, N_MELS + 2) / 2595) - 1)
    hz = np.arange(N_FFT // 2 + 1) * SAMPLE_RATE / N_FFT
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rise, fall = (hz - left) / (centre - left), (right - hz) / (right - centre)
    filters = np.clip(np.minimum(rise, fall), 0, None)
    return torch.from_numpy((filters / filters.sum(1, keepdims=True)).T.astype(np.float32).copy())


def mel_power(samples: np.ndarray, first_frame: int, n_frames: int) -> Tensor:
    """Mel power of the video frames [first_frame, first_frame + n_frames) of a voice.

    samples: (N,) float32, 16 kHz; outside of it there is silence. Returns (4 * n_frames, 64) float32.
    """
    n_steps = n_frames * STEPS_PER_FRAME
    start = first_frame * STEPS_PER_FRAME * HOP - (WINDOW - HOP) // 2
    stop = start + (n_steps - 1) * HOP + WINDOW
    part = np.zeros(stop - start, np.float32)
    a, b = max(start, 0), min(stop, len(samples))
    if b > a:
        part[a - start : b - start] = samples[a:b]
    windows = torch.from_numpy(part).unfold(0, WINDOW, HOP) * torch.hann_window(WINDOW)
    return torch.fft.rfft(windows, N_FFT).abs().square() @ mel_filters()


def frame_blocks(n_frames: int, block: int = BLOCK_FRAMES) -> Iterator[tuple[int, int]]:
    """The blocks [first, last) that cover n_frames."""
    for first in range(0, n_frames, block):
        yield first, min(first + block, n_frames)


def log_power(power: Tensor) -> Tensor:
    """Natural log of mel power, with a floor below any recording."""
    return torch.log(power + _POWER_FLOOR)


class SpeechLevel:
    """Mean log-mel spectrum of a voice while it speaks: takes out loudness, microphone and room.

    Collects a histogram of loudness with the mean spectrum of each bin, so that one pass in blocks is enough.
    """

    def __init__(self) -> None:
        self._count = np.zeros(_N_BINS)
        self._sum = np.zeros((_N_BINS, N_MELS))

    def add(self, power: Tensor) -> None:
        """Add steps (n, 64) of mel power."""
        loudness = torch.log(power.mean(1) + _POWER_FLOOR).numpy()
        index = np.clip((loudness - _LOWEST) / _BIN, 0, _N_BINS - 1).astype(int)
        np.add.at(self._count, index, 1)
        np.add.at(self._sum, index, log_power(power).numpy())

    def mean(self) -> Tensor:
        """(64,) mean log-mel spectrum of the speech."""
        if not self._count.any():
            return torch.full((N_MELS,), MIN_SPEECH_POWER)
        share = np.cumsum(self._count) / self._count.sum()
        loud = int(np.searchsorted(share, 0.95))
        first = max(loud - round(SPEECH_RANGE / _BIN), 0)
        spectrum = self._sum[first:].sum(0) / self._count[first:].sum()
        lift = max(0.0, MIN_SPEECH_POWER - (_LOWEST + (loud + 0.5) * _BIN))
        return torch.from_numpy(spectrum + lift).float()


def speech_level(samples: np.ndarray, n_frames: int, block: int = BLOCK_FRAMES) -> Tensor:
    """(64,) mean log-mel spectrum of the speech in a voice, in one pass over blocks."""
    level = SpeechLevel()
    for first, last in frame_blocks(n_frames, block):
        level.add(mel_power(samples, first, last - first))
    return level.mean()


def normalise(power: Tensor, level: Tensor) -> Tensor:
    """Mel power (n, 64) to features (n, 64): log power over the speech level, about -6 (silence) to 4."""
    return ((log_power(power) - level) / FEATURE_SCALE).clamp(*FEATURE_RANGE)
