"""The Gaussian part of head motion: its spectrum as an autoregression, and the step rate at which it is
modelled.

A head's pose is a slow, smooth, correlated curve; a network that had to make it from white noise would
spend its training on that alone, and its errors would shake. So pose curves are whitened by an
autoregressive filter fitted to real motion; the network works on the white innovations; the inverse
filter, whose poles lie inside the unit circle, gives smooth motion that returns to the rest pose and
cannot drift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_toeplitz
from scipy.signal import firwin, lfilter

STEP_FRAMES = 2  # one model step is two frames: 12.5 Hz holds head motion, which has little above 5 Hz
N_CHANNELS = 6  # yaw, pitch, roll (degrees); x, y (face units); log scale
ORDER = 6
_LOWPASS = firwin(15, 5.0, fs=25.0)
_HALF_BAND = firwin(
    23, 0.5, window=("kaiser", 4.0)
)  # every other tap is zero: known samples stay as they are


@dataclass(frozen=True)
class MotionPrior:
    """Autoregression of each channel and the covariance of its innovations, for motion of unit amplitude."""

    coefficients: np.ndarray  # (6, ORDER): x_t = sum_k a_k x_(t-k) + e_t
    mixing: np.ndarray  # (6, 6) lower triangular: e = mixing @ z with z white

    def whiten(self, motion: np.ndarray) -> np.ndarray:
        """(ORDER + M, 6) unit motion to its (M, 6) innovations. Inverse of `colour` after its start."""
        n = len(motion) - ORDER
        past = np.stack([motion[ORDER - k : ORDER - k + n] for k in range(1, ORDER + 1)], -1)
        errors = motion[ORDER:] - (past * self.coefficients).sum(-1)
        return np.linalg.solve(self.mixing, errors.T).T

    def colour(self, innovations: np.ndarray) -> np.ndarray:
        """(M, 6) white innovations to (M, 6) unit motion that starts from rest."""
        errors = innovations.astype(np.float64) @ self.mixing.T
        return np.stack(
            [lfilter([1.0], [1.0, *-a], e) for a, e in zip(self.coefficients, errors.T, strict=True)], 1
        )


def fit_prior(motions: Sequence[np.ndarray], weights: Sequence[float]) -> MotionPrior:
    """Fit the prior to unit motions (T_i, 6) at the step rate, each with a weight per step.

    Yule-Walker equations on pooled, biased autocovariances: the filter is stable whatever the data.
    """
    lags = np.zeros((ORDER + 1, N_CHANNELS))
    total = 0.0
    for motion, weight in zip(motions, weights, strict=True):
        for k in range(ORDER + 1):
            lags[k] += weight * (motion[k:] * motion[: len(motion) - k]).sum(0)
        total += weight * len(motion)
    lags /= total
    lags[0] *= 1 + 1e-6  # a curve that hardly changes would make the equations singular
    coefficients = np.stack([solve_toeplitz(c[:ORDER], c[1:]) for c in lags.T])
    plain = MotionPrior(coefficients, np.eye(N_CHANNELS))
    covariance, total = np.zeros((N_CHANNELS, N_CHANNELS)), 0.0
    for motion, weight in zip(motions, weights, strict=True):
        if len(motion) > ORDER:
            errors = plain.whiten(motion)
            covariance += weight * errors.T @ errors
            total += weight * len(errors)
    return MotionPrior(coefficients, np.linalg.cholesky(covariance / total + 1e-12 * np.eye(N_CHANNELS)))


def lowpass(curves: np.ndarray) -> np.ndarray:
    """(T, C) at 25 Hz without what lies above about 5 Hz (tracker noise), the ends held."""
    half = len(_LOWPASS) // 2
    padded = np.pad(curves, ((half, half), (0, 0)), mode="edge")
    return np.stack([np.convolve(c, _LOWPASS, "valid") for c in padded.T], 1)


def to_frames(steps: np.ndarray) -> np.ndarray:
    """(M, C) at the step rate to (2 M, C) at 25 Hz: band-limited, step k at frame 2 k."""
    half = len(_HALF_BAND) // 2
    margin = -(-half // STEP_FRAMES)
    padded = np.pad(steps, ((margin, margin), (0, 0)), mode="edge")
    spread = np.zeros((STEP_FRAMES * len(padded), steps.shape[1]))
    spread[::STEP_FRAMES] = padded
    start = STEP_FRAMES * margin - half
    fine = np.stack([np.convolve(c, STEP_FRAMES * _HALF_BAND, "valid") for c in spread.T], 1)
    return fine[start : start + STEP_FRAMES * len(steps)]
