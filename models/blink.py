"""Blinks and small gaze shifts, drawn from human statistics.

Rate: people blink more in conversation (10.5 to 32.5 a minute) than in silence (8 to 21; Doughty 2001), 26
against 17 on average in Bentivoglio et al. (1997). Speakers blink at the ends of phrases and in pauses
(Nakano and Kitazawa 2010). Closing is faster than opening and many blinks stay incomplete (Sforza et al.
2008). The 447 blinks in the pack's curated clips, from its eyeBlink scores at 25 fps: closing 80 (80 to 120)
ms, opening 200 (140 to 240) ms, 29 a minute in talking clips but 0 to 83 from clip to clip, the logarithm
of the intervals with a deviation of 0.68. Fewer are made here, since a blink that the picture shows badly
costs more than one that is missed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from models.prosody import PROSODY_NAMES, prosody
from util.types import FPS, Voice

_MEDIAN_INTERVAL, _LOG_SPREAD = 2.9, 0.55  # seconds after the refractory time; log-normal
_REFRACTORY = 0.5  # seconds from the end of a blink in which none starts
_LONGEST_INTERVAL = 10.0
_FIRST_BLINK = (0.6, 3.0)  # seconds
_DOUBLE, _PARTIAL = 0.07, 0.15  # share of blinks with a second at once; that stay half open
_CLOSING, _HOLD, _OPENING = (0.08, 0.12), (0.04, 0.06), (0.15, 0.25)  # seconds
_SNAP_SECONDS, _SNAP_CHANCE = 1.0, 0.6  # a blink this near to a phrase end moves there

_FIXATION = (0.5, 3.0)  # seconds
_AT_CAMERA = 0.6  # share of fixations on the camera
_SACCADE = (1.0, 3.0)  # degrees


def blinks(n_frames: int, seed: int, voice: Voice | None = None) -> np.ndarray:
    """Closure of the left and right eye (n_frames, 2), float32: 0 open, 1 closed.

    The same seed gives the same blinks, and a longer run starts with the shorter one. With the speaker's
    voice, blinks gather at phrase ends. The eyes are open in the first half second.
    """
    closure = np.zeros((n_frames, 2))
    rng = np.random.default_rng([abs(int(seed)), 2])
    ends = np.zeros(0) if voice is None else phrase_ends(voice)
    for onset in _onsets(n_frames / FPS, rng, ends):
        shape = np.array([rng.uniform(*_CLOSING), rng.uniform(*_HOLD), rng.uniform(*_OPENING)])
        depth = rng.uniform(0.45, 0.8) if rng.random() < _PARTIAL else rng.uniform(0.93, 1.0)
        lags, depths = rng.uniform(0, 0.008, 2), depth * rng.uniform(0.96, 1.0, 2)
        first = int(onset * FPS)
        frames = np.arange(first, min(first + int((shape.sum() + 0.01) * FPS) + 2, n_frames))
        seconds = frames[:, None] / FPS - onset - lags
        closure[frames] = np.maximum(closure[frames], depths * _closure(seconds, shape))
    return closure.astype(np.float32)


def _onsets(duration: float, rng: np.random.Generator, ends: np.ndarray) -> Iterator[float]:
    """Times in seconds at which blinks start, in order."""
    blink_length = _CLOSING[1] + _HOLD[1] + _OPENING[1]
    last = -_REFRACTORY
    onset = rng.uniform(*_FIRST_BLINK)
    while onset < duration:
        near = ends[
            (np.abs(ends - onset) < _SNAP_SECONDS) & (ends > max(last + blink_length + _REFRACTORY, 0.5))
        ]
        snap, jitter, double = rng.random(), rng.normal(0, 0.08), rng.random()
        if len(near) and snap < _SNAP_CHANCE:
            onset = max(near[np.abs(near - onset).argmin()] + jitter, last + blink_length + 0.1, 0.5)
        yield onset
        last = onset
        if double < _DOUBLE:
            last = onset + blink_length + rng.uniform(0.02, 0.15)
            yield last
        wait = min(_MEDIAN_INTERVAL * np.exp(_LOG_SPREAD * rng.normal()), _LONGEST_INTERVAL)
        onset = last + _REFRACTORY + wait


def _closure(seconds: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Closure 0 to 1 since the onset: down in a smooth step, a hold, up fast at first and then slowly."""
    closing, hold, opening = shape
    down = np.clip(seconds / closing, 0, 1)
    up = np.clip((seconds - closing - hold) / opening, 0, 1) ** 0.75
    return down**2 * (3 - 2 * down) * (1 - up**2 * (3 - 2 * up))


def phrase_ends(voice: Voice) -> np.ndarray:
    """Seconds at which speech stops for at least a quarter of a second."""
    speaking = prosody(voice)[:, PROSODY_NAMES.index("speech")] > 0.5
    quiet = round(0.25 * FPS)
    spoken = np.cumsum(np.r_[speaking, np.zeros(quiet, bool)])  # frames of speech up to and with each
    silent_next = spoken[quiet:] == spoken[: len(speaking)]
    return (np.flatnonzero(speaking & silent_next) + 1) / FPS


def gaze(n_frames: int, seed: int) -> np.ndarray:
    """Direction of the eyes in the head (n_frames, 2), float32 degrees: x to the picture's right, y
    down.

    Fixations of 0.5 to 3 s, most of them on the camera (0, 0), the others 1 to 3 degrees away, more to
    the side than up or down. A saccade lasts 21 ms and 2.2 ms a degree (Carpenter 1988), so one to two
    frames.
    """
    rng = np.random.default_rng([abs(int(seed)), 3])
    out = np.zeros((n_frames, 2))
    here, onset = np.zeros(2), rng.uniform(*_FIXATION)
    while onset < n_frames / FPS:
        there = _fixation(rng, away=bool(np.abs(here).max() > 0.5))
        lasts = 0.021 + 0.0022 * float(np.hypot(*(there - here)))
        following = onset + lasts + rng.uniform(*_FIXATION)
        frames = np.arange(int(onset * FPS), min(int(following * FPS) + 1, n_frames))
        part = np.clip((frames[:, None] / FPS - onset) / lasts, 0, 1)
        out[frames] = here + part * (there - here)
        here, onset = there, following
    return out.astype(np.float32)


def _fixation(rng: np.random.Generator, away: bool) -> np.ndarray:
    """The next point looked at: the camera, more surely when the eyes are away, or a point beside it."""
    near, angle, far = rng.normal(0, 0.15, 2), rng.uniform(0, 2 * np.pi), rng.uniform(*_SACCADE)
    if rng.random() < (0.85 if away else _AT_CAMERA * 0.6):
        return near
    return far * np.array([np.cos(angle), 0.5 * np.sin(angle)])
