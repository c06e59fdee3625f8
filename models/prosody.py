"""Prosody of a voice at the video's frame rate: how loud, how voiced, how high, where syllables begin.

Head motion follows the melody and the stress of speech, not its sounds, so these few curves are its
condition.
"""

from __future__ import annotations

import numpy as np

from util.types import FPS, SAMPLE_RATE, Voice

PROSODY_NAMES = ("level", "onset", "voicing", "pitch", "speech")
_HOP = SAMPLE_RATE // FPS
_WINDOW = 1024  # samples, 64 ms: three periods of the lowest pitch
_LAGS = (SAMPLE_RATE // 400, SAMPLE_RATE // 70)  # periods of 400 to 70 Hz
_CHUNK = 256  # frames analysed at a time, so that a long voice needs no more memory than a short one
_SILENCE_DB = -55.0  # a voice whose loud frames stay below this is silence


def prosody(voice: Voice) -> np.ndarray:
    """(T, 5) float32 at 25 fps, T = voice.n_frames, each curve about 0 to 1 (pitch: about -1 to 1).

    level: dB above 40 dB under the voice's loud frames; onset: rise of the level; voicing: height of the
    autocorrelation's peak; pitch: octaves from the voice's median, 0 where unvoiced; speech: activity, 0
    in pauses. Every curve is relative to the voice itself, so loudness of the recording and pitch of the
    speaker do not matter.
    """
    n = voice.n_frames
    db, voicing, log_pitch = _analyse(voice.samples, n)
    loud = max(np.percentile(db, 95), _SILENCE_DB) if n else 0.0
    level = np.clip((db - loud) / 40 + 1, 0, 1.25)
    smooth = _smooth(level)
    onset = np.clip(np.diff(smooth, prepend=smooth[:1]), 0, 0.25) * 4
    is_voiced = (voicing > 0.45) & (level > 0.4)
    pitch = np.where(is_voiced, log_pitch - (np.median(log_pitch[is_voiced]) if is_voiced.any() else 0), 0)
    floor = np.percentile(db, 5) if n else 0.0
    threshold = max(loud - 22, min(floor + 8, loud - 6))  # in noise the floor is high and decides
    speech = 1 / (1 + np.exp(-np.clip((db - threshold) / 2.5, -30, 30)))
    speech = speech * (np.percentile(db, 95) > _SILENCE_DB if n else 0.0)
    curves = (level, onset, voicing * (level > 0.2), np.clip(_smooth(pitch), -1, 1), _smooth(speech, 5))
    return np.stack(curves, 1).astype(np.float32)


def _analyse(samples: np.ndarray, n_frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Level in dB full scale, voicing 0 to 1, and log2 of the pitch in Hz, each (T,)."""
    before = (_WINDOW - _HOP) // 2
    window = np.hanning(_WINDOW).astype(np.float32)
    envelope = np.fft.irfft(np.abs(np.fft.rfft(window, 2 * _WINDOW)) ** 2)[: _LAGS[1] + 1]
    db, voicing, log_pitch = (np.zeros(n_frames, np.float32) for _ in range(3))
    for start in range(0, n_frames, _CHUNK):
        part = slice(start, min(start + _CHUNK, n_frames))
        first = part.start * _HOP - before
        piece = samples[max(first, 0) : (part.stop - 1) * _HOP - before + _WINDOW].astype(np.float32)
        ahead, length = max(-first, 0), (part.stop - part.start - 1) * _HOP + _WINDOW
        piece = np.pad(piece, (ahead, length - ahead - len(piece)))
        frames = np.lib.stride_tricks.sliding_window_view(piece, _WINDOW)[::_HOP] * window
        db[part] = 10 * np.log10((frames**2).sum(1) / (window**2).sum() + 1e-9)
        correlation = np.fft.irfft(np.abs(np.fft.rfft(frames, 2 * _WINDOW)) ** 2)[:, : _LAGS[1] + 1]
        # The window's own correlation is divided out, or long periods would look unvoiced.
        correlation /= (correlation[:, :1] + 1e-6) * (envelope / envelope[0])
        # Short periods are preferred a little: twice the period correlates as well as the period itself.
        lags = np.arange(_LAGS[0], _LAGS[1] + 1)
        peak = (correlation[:, lags] * (1 - 0.15 * lags / _LAGS[1])).argmax(1) + _LAGS[0]
        voicing[part] = np.clip(correlation[np.arange(len(peak)), peak], 0, 1)
        log_pitch[part] = np.log2(SAMPLE_RATE / peak)
    return db, voicing, log_pitch


def _smooth(curve: np.ndarray, width: int = 3) -> np.ndarray:
    """Centred moving average over `width` (odd) frames, the ends repeated."""
    if not len(curve):
        return curve
    padded = np.pad(curve, width // 2, mode="edge")
    return np.convolve(padded, np.full(width, 1 / width), "valid")
