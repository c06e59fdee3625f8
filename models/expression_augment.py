"""Training samples of the expression learner: windows of clips whose voice is changed as other people, microphones
and rooms would change it, and silences, in which the lips are closed.

Speaker variety is what real data lacks: pace and pitch (resampling sound and motion together), vocal tract length
(stretching the mel axis), microphone (smooth equalisation), noise, and the tail of a room are drawn at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Protocol

import numpy as np
import torch
from scipy.signal import lfilter, resample_poly

from models.audio_features import (
    FEATURE_RANGE,
    FEATURE_SCALE,
    N_MELS,
    STEPS_PER_FRAME,
    SpeechLevel,
    mel_power,
    normalise,
)
from util.types import FPS, SAMPLE_RATE, Voice

PACES = (1.0, 0.88, 0.94, 1.07, 1.14)  # above 1: faster and higher
LEVEL_FRAMES = 200  # the speech level is taken over this much of a long clip
SHORT_FRAMES, LONG_FRAMES = 32, 80  # window lengths: for 1.2 s segments, and for all others
_NOISE_FRAMES = 1000
CLOSED_MARGIN = 4  # frames at the ends of a silence that teach nothing: lips move there


class SpeechClip(Protocol):
    """What the learner needs of a clip (data.motion_dataset.MotionClip)."""

    id: str
    identity: str
    voice: Voice
    coefficients: np.ndarray  # (T, K)
    lip_gap: np.ndarray  # (T,)


@dataclass(frozen=True)
class Sample:
    """One window of L frames."""

    features: np.ndarray  # (4 L, 64)
    lip_gap: np.ndarray  # (L,) in units of the identity's standard deviation
    coefficients: np.ndarray  # (L, K)
    spoken: np.ndarray  # (L,) 1 where the targets were seen
    closed: np.ndarray  # (L,) 1 where silence was put in: lips are closed


@dataclass(frozen=True)
class PacedClip:
    """A clip at one pace."""

    power: np.ndarray  # (4 T, 64) mel power
    lip_gap: np.ndarray
    coefficients: np.ndarray


@dataclass
class AugmentedClips:
    """Draws samples. identity_scale: (n,) standard deviation of each clip's speaker's lip opening, face units."""

    clips: Sequence[SpeechClip]
    identity_scale: np.ndarray
    _paced: dict[tuple[int, float], PacedClip] = field(default_factory=dict)

    def paced(self, index: int, pace: float) -> PacedClip:
        """Clip `index`, sound and motion resampled together to `pace`; kept for the next call."""
        if (index, pace) not in self._paced:
            self._paced[index, pace] = _at_pace(self.clips[index], pace)
        return self._paced[index, pace]

    def draw(self, index: int, length: int, rng: np.random.Generator) -> Sample:
        """A random window of `length` frames of clip `index`, its voice changed at random."""
        clip = self.paced(index, PACES[rng.integers(len(PACES))] if rng.random() < 0.7 else 1.0)
        n = len(clip.lip_gap)
        start = int(rng.integers(max(n - LEVEL_FRAMES, 0) + 1))
        stop = min(start + LEVEL_FRAMES, n)
        features = _features(change_voice(clip.power[4 * start : 4 * stop], rng))
        return self._window(features, clip, (start, stop), length, index, rng)

    def _window(
        self,
        features: np.ndarray,
        clip: PacedClip,
        span: tuple[int, int],
        length: int,
        index: int,
        rng: np.random.Generator,
    ) -> Sample:
        n = min(length, span[1] - span[0])
        cut = int(rng.integers(span[1] - span[0] - n + 1))
        put = int(rng.integers(length - n + 1))
        x = np.full((STEPS_PER_FRAME * length, N_MELS), FEATURE_RANGE[0], np.float32)
        x[4 * put : 4 * (put + n)] = features[4 * cut : 4 * (cut + n)]
        gap, spoken, closed = (np.zeros(length, np.float32) for _ in range(3))
        coefficients = np.zeros((length, clip.coefficients.shape[1]), np.float32)
        source = slice(span[0] + cut, span[0] + cut + n)
        gap[put : put + n] = clip.lip_gap[source] / self.identity_scale[index]
        coefficients[put : put + n] = clip.coefficients[source]
        spoken[put : put + n] = 1
        sample = Sample(x, gap, coefficients, spoken, closed)
        put_silence(sample, rng)
        hide_parts(sample.features, rng)
        return sample


def _at_pace(clip: SpeechClip, pace: float) -> PacedClip:
    n, samples = len(clip.lip_gap), clip.voice.samples
    ratio = Fraction(pace).limit_denominator(50)
    if ratio == 1:
        return PacedClip(mel_power(samples, 0, n).numpy(), clip.lip_gap, clip.coefficients)
    samples = resample_poly(samples, ratio.denominator, ratio.numerator).astype(np.float32)
    m = max(int(n / ratio), 1)
    at = np.clip((np.arange(m) + 0.5) * float(ratio) - 0.5, 0, n - 1)
    gap = np.interp(at, np.arange(n), clip.lip_gap).astype(np.float32)
    low = np.minimum(at.astype(int), max(n - 2, 0))
    part = (at - low)[:, None].astype(np.float32)
    coefficients = clip.coefficients[low] * (1 - part) + clip.coefficients[np.minimum(low + 1, n - 1)] * part
    return PacedClip(mel_power(samples, 0, m).numpy(), gap, coefficients)


def _features(power: np.ndarray) -> np.ndarray:
    level, tensor = SpeechLevel(), torch.from_numpy(power)
    level.add(tensor)
    return normalise(tensor, level.mean()).numpy()


def _curve(rng: np.random.Generator, spread: float, knots: int = 5) -> np.ndarray:
    """(64,) a random smooth curve over the mel axis."""
    return np.interp(np.arange(N_MELS), np.linspace(0, N_MELS - 1, knots), rng.normal(0, spread, knots))


@cache
def _noise_bank() -> np.ndarray:
    samples = np.random.default_rng(0).standard_normal(_NOISE_FRAMES * SAMPLE_RATE // FPS).astype(np.float32)
    power = mel_power(samples, 0, _NOISE_FRAMES).numpy()
    return power / power.mean(0)


def white_noise(n: int, rng: np.random.Generator) -> np.ndarray:
    """(n, 64) mel power of white noise with unit mean in every band: its grain in time and frequency is real."""
    bank = _noise_bank()
    start = int(rng.integers(len(bank) - n + 1))
    return bank[start : start + n]


def change_voice(power: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mel power (n, 64) as another vocal tract, room, microphone and noise would make it, float32."""
    if rng.random() < 0.7:  # vocal tract
        at = np.clip(np.arange(N_MELS) * rng.uniform(0.88, 1.13), 0, N_MELS - 1.001)
        low, part = at.astype(int), (at % 1).astype(np.float32)
        power = power[:, low] * (1 - part) + power[:, low + 1] * part
    if rng.random() < 0.3:  # room: energy that decays over 20 to 160 ms
        decay, amount = np.exp(-1 / (4 * rng.uniform(0.5, 4))), rng.uniform(0.05, 0.4)
        tail = lfilter([3 * (1 - decay)], [1, -decay], power, axis=0)
        power = (1 - amount * 3 * (1 - decay)) * power + amount * tail
    if rng.random() < 0.7:  # microphone
        power = power * np.exp(_curve(rng, 0.8, 6))
    loud = np.percentile(power.mean(1), 80)
    if rng.random() < 0.6:  # noise, 3 to 40 dB below the voice
        tilt = np.exp(_curve(rng, 1.2) - rng.uniform(0, 0.04) * np.arange(N_MELS))
        noise = white_noise(len(power), rng) * (tilt / tilt.mean())
        power = power + loud * 10 ** (-rng.uniform(3, 40) / 10) * noise
    return (power + loud * 1e-6).astype(np.float32)


def put_silence(sample: Sample, rng: np.random.Generator) -> None:
    """Now and then put a pause into a window, or make all of it the noise of an empty room, in place."""
    length, low = len(sample.spoken), FEATURE_RANGE[0]
    if rng.random() < 0.06:  # nobody speaks: noise that was taken for a voice by the normalisation
        grain = np.log(white_noise(4 * length, rng)) / FEATURE_SCALE
        swell = np.interp(
            np.arange(4 * length), np.linspace(0, 4 * length, 6), rng.normal(0, rng.uniform(0, 0.5), 6)
        )
        sample.features[:] = grain - grain.mean() + swell[:, None]
        sample.spoken[:], sample.closed[:] = 0, 1
    elif rng.random() < 0.16:
        n = int(rng.integers(2 * CLOSED_MARGIN, length // 2 + 1))
        start = int(rng.integers(length - n + 1))
        noise = rng.uniform(low, -0.7) + _curve(rng, 0.5) + np.log(white_noise(4 * n, rng)) / FEATURE_SCALE
        sample.features[4 * start : 4 * (start + n)] = np.clip(noise, *FEATURE_RANGE)
        sample.spoken[start : start + n] = 0
        sample.closed[start + CLOSED_MARGIN : start + n - CLOSED_MARGIN] = 1
    sample.lip_gap[sample.spoken == 0] = 0
    sample.coefficients[sample.spoken == 0] = 0


def hide_parts(features: np.ndarray, rng: np.random.Generator) -> None:
    """Blank bands and moments of features (4 L, 64), in place (SpecAugment, Park et al. 2019)."""
    for _ in range(2):
        if rng.random() < 0.5:
            width = int(rng.integers(10))
            start = int(rng.integers(N_MELS - width))
            features[:, start : start + width] = 0
    if rng.random() < 0.3:
        width = int(rng.integers(1, 12))
        start = int(rng.integers(len(features) - width))
        features[start : start + width] = 0
