"""Head-motion learner: voice to head pose, as a generative model (paper: head-motion learner).

A flow-matching model (Lipman et al. 2023) over the white innovations of head motion
(models/motion_prior.py), given prosody. The network is convolutional with a finite reach and the noise
belongs to the frame, so a voice of any length is worked through in blocks that meet without a seam, in
constant memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.motion_prior import N_CHANNELS, STEP_FRAMES, MotionPrior, lowpass, to_frames
from models.prosody import PROSODY_NAMES, prosody
from util.checkpoints import checkpoint_path, load_tensors, save_tensors
from util.errors import UserError
from util.types import FPS, Voice

HEAD_MOTION_FILE = "head_motion.safetensors"
# What the 3D projection can show: yaw, pitch, roll in degrees; x, y in face units; log scale.
LIMITS = np.array([18.0, 12.0, 10.0, 0.25, 0.25, 0.06])
N_CONDITION = len(PROSODY_NAMES) + 1  # the last: 1 where the voice is known
_DILATIONS = (1, 2, 4, 8, 16, 1, 2, 4)
REACH = sum(_DILATIONS)  # steps that an output sees to each side
_BLOCK = 1024  # steps worked on at a time
_PREROLL = 48  # steps of silence before the voice, in which the motion leaves its start at rest
_ODE_STEPS = 16
_EASE_SECONDS, _SETTLE_SECONDS = 0.4, 1.2


@dataclass(frozen=True)
class Amplitude:
    """How fast heads turn: the root mean square speed of the pack's talkers, log-normal over people."""

    typical: float  # factor from unit motion to degrees and face units for the typical talker
    spread: float  # standard deviation of its logarithm


class HeadMotionNet(nn.Module):
    """Velocity of the flow from noise (time 0) to innovations (time 1), given prosody."""

    def __init__(self, channels: int = 64, dropout: float = 0.1) -> None:
        super().__init__()
        self.enter = nn.Conv1d(N_CHANNELS, channels, 1)
        self.listen = nn.Sequential(
            nn.Conv1d(N_CONDITION, channels, 5, padding=2), nn.SiLU(), nn.Conv1d(channels, channels, 1)
        )
        self.clock = nn.Sequential(nn.Linear(16, channels), nn.SiLU(), nn.Linear(channels, channels))
        self.blocks = nn.ModuleList(_Block(channels, d, dropout) for d in _DILATIONS)
        self.leave = nn.Conv1d(channels, N_CHANNELS, 1)
        nn.init.normal_(self.leave.weight, std=0.01)
        nn.init.zeros_(self.leave.bias)

    def forward(self, state: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """state: [B, M, 6]; time: [B] in [0, 1]; condition: [B, M, 6]. Returns [B, M, 6].

        The linear part carries white noise to white noise; only what differs from that is learnt.
        """
        t = time[:, None, None]
        spread = torch.sqrt(t**2 + (1 - t) ** 2)
        return (2 * t - 1) / spread**2 * state + self.residual(state / spread, time, condition) / spread

    def residual(self, state: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """The learnt part, for a state of unit variance: [B, M, 6]."""
        angle = time[:, None] * (torch.pi * 2.0 ** torch.arange(-1, 7, device=time.device))
        clock = self.clock(torch.cat([angle.sin(), angle.cos()], 1))[:, :, None]
        heard = self.listen(condition.transpose(1, 2))
        hidden = self.enter(state.transpose(1, 2))
        for block in self.blocks:
            hidden = block(hidden, heard + clock)
        return self.leave(nn.functional.silu(hidden)).transpose(1, 2)


class _Block(nn.Module):
    """Gated dilated convolution with a residual connection."""

    def __init__(self, channels: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.convolve = nn.Conv1d(channels, 2 * channels, 3, padding=dilation, dilation=dilation)
        self.steer = nn.Conv1d(channels, 2 * channels, 1)
        self.project = nn.Conv1d(channels, channels, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, context: Tensor) -> Tensor:
        value, gate = (self.convolve(self.dropout(hidden)) + self.steer(context)).chunk(2, 1)
        return hidden + self.project(torch.tanh(value) * torch.sigmoid(gate))


class HeadMotionLearner:
    """The trained model: a voice and a seed to head motion."""

    def __init__(self, net: HeadMotionNet, prior: MotionPrior, amplitude: Amplitude) -> None:
        self.net, self.prior, self.amplitude = net.eval(), prior, amplitude

    @classmethod
    def load(cls, device: str = "cpu", path: str | Path | None = None) -> HeadMotionLearner:
        """The shipped weights, or those in `path`.

        Raises UserError, naming the file, where it is missing, damaged or not such a model.
        """
        path = Path(path) if path else checkpoint_path(HEAD_MOTION_FILE)
        tensors, _ = load_tensors(path, "--head_motion audio:")
        try:
            return cls.from_tensors(tensors, device)
        except (KeyError, IndexError, RuntimeError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0][:120]
            raise UserError(
                f"--head_motion audio: {path}: not a head-motion model ({reason}); weights made by "
                "train.py --model head_motion are needed; train again or restore the shipped file"
            ) from None

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], device: str = "cpu") -> HeadMotionLearner:
        """Build it from the tensors of `tensors()`. Raises KeyError, ValueError or RuntimeError on others."""
        weights = {k[4:]: v for k, v in tensors.items() if k.startswith("net.")}
        net = HeadMotionNet(channels=len(weights["enter.bias"]))
        net.load_state_dict(weights)
        if not all(torch.isfinite(v).all() for v in tensors.values()):
            raise ValueError("values that are not finite")
        coefficients, mixing = (tensors[f"prior.{k}"].double().numpy() for k in ("coefficients", "mixing"))
        if (
            coefficients.ndim != 2
            or len(coefficients) != N_CHANNELS
            or mixing.shape != (N_CHANNELS, N_CHANNELS)
        ):
            raise ValueError("a prior of another shape")
        if max(np.abs(np.roots([1.0, *-a])).max() for a in coefficients) >= 1:
            raise ValueError("a prior that is not stable")
        typical, spread = tensors["amplitude"].tolist()
        return cls(net.to(device), MotionPrior(coefficients, mixing), Amplitude(typical, spread))

    def tensors(self) -> dict[str, Tensor]:
        """Everything that `from_tensors` needs."""
        out = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        out["prior.coefficients"] = torch.from_numpy(self.prior.coefficients)
        out["prior.mixing"] = torch.from_numpy(self.prior.mixing)
        out["amplitude"] = torch.tensor([self.amplitude.typical, self.amplitude.spread])
        return out

    def save(self, path: str | Path, note: dict[str, Any]) -> None:
        """Write the weights, atomically."""
        save_tensors(path, self.tensors(), note)

    def sample(self, voice: Voice, seed: int, scale: float = 1.0) -> np.ndarray:
        """Head motion for a voice: (T, 6) float32, T = voice.n_frames, from the reference's pose.

        Columns: yaw, pitch, roll in degrees, x and y shift in face units, log scale; within `LIMITS`.
        seed: samples differ with it; one seed repeats bit for bit on one machine. scale: 0 (still) and
        more. It starts at 0 and eases in.
        """
        heard = prosody(voice)
        unit = self.unit_motion(heard, seed)
        style = np.random.default_rng([abs(int(seed)), 1]).normal()
        motion = unit * self.amplitude.typical * np.exp(self.amplitude.spread * np.clip(style, -1.5, 1.5))
        motion = motion * _steady_gain(motion, heard)
        return soft_limit(_ease_in(motion) * scale).astype(np.float32)

    def unit_motion(self, heard: np.ndarray, seed: int) -> np.ndarray:
        """Prosody (T, 5) at 25 fps to motion (T, 6) of unit amplitude, as drawn from the model."""
        n_steps = -(-len(heard) // STEP_FRAMES) + 1
        condition = np.zeros((_PREROLL + n_steps, N_CONDITION), np.float32)
        condition[:, -1] = 1
        condition[_PREROLL:, :-1] = to_steps(heard, n_steps)
        noise = np.random.default_rng([abs(int(seed)), 0]).standard_normal((len(condition), N_CHANNELS))
        innovations = self.flow(noise.astype(np.float32), condition)
        return to_frames(self.prior.colour(innovations)[_PREROLL:])[: len(heard)]

    @torch.no_grad()
    def flow(self, noise: np.ndarray, condition: np.ndarray) -> np.ndarray:
        """Carry noise (M, 6) to innovations (M, 6) by Heun's method, given the condition (M, 6)."""
        device = next(self.net.parameters()).device
        state = torch.from_numpy(noise).to(device)[None]
        heard = torch.from_numpy(condition).to(device)[None]
        times = torch.linspace(0, 1, _ODE_STEPS // 2 + 1, device=device)
        for start, stop in pairwise(times):
            slope = self._velocity(state, start, heard)
            guess = state + (stop - start) * slope
            state = state + (stop - start) * (slope + self._velocity(guess, stop, heard)) / 2
        return state[0].cpu().numpy()

    def _velocity(self, state: Tensor, time: Tensor, heard: Tensor) -> Tensor:
        """The network over all blocks, each with its neighbours' steps in reach: the seams do not exist."""
        out = torch.empty_like(state)
        reach = REACH + 2  # two more for the first layer on the prosody
        for first in range(0, state.shape[1], _BLOCK):
            last = min(first + _BLOCK, state.shape[1])
            low, high = max(first - reach, 0), min(last + reach, state.shape[1])
            velocity = self.net(state[:, low:high], time[None], heard[:, low:high])
            out[:, first:last] = velocity[:, first - low : last - low]
        return out


def to_steps(curves: np.ndarray, n_steps: int) -> np.ndarray:
    """(T, C) at 25 Hz to (n_steps, C) at the step rate, band-limited; the last value is held."""
    frames = np.minimum(np.arange(n_steps) * STEP_FRAMES, max(len(curves) - 1, 0))
    return lowpass(curves)[frames].astype(np.float32) if len(curves) else np.zeros((n_steps, curves.shape[1]))


def soft_limit(motion: np.ndarray) -> np.ndarray:
    """Bound motion (T, 6) to `LIMITS`: nearly unchanged up to two thirds of them, never beyond."""
    return motion / (1 + (motion / LIMITS) ** 4) ** 0.25


def _ease_in(motion: np.ndarray) -> np.ndarray:
    """Start at 0: the first pose is taken off and given back over a second; all eases in over 0.4 s."""
    seconds = np.arange(len(motion))[:, None] / FPS
    settled = motion - motion[:1] * np.exp(-((seconds / _SETTLE_SECONDS) ** 2))
    u = np.clip(seconds / _EASE_SECONDS, 0, 1)
    return settled * (u * u * (3 - 2 * u))


def _steady_gain(motion: np.ndarray, heard: np.ndarray) -> float:
    """One gain for the whole voice that keeps the larger of yaw's and pitch's deviation within 2 to 5
    degrees.

    A short draw may hardly move or wander far, which looks dead or drunk. Both bounds fall with the
    share of speech, to 0 and 1.5 degrees: a silent head rests.
    """
    if not len(motion):
        return 1.0
    spread = float(_ease_in(motion)[:, :2].std(0).max())
    share = min(1.0, float(heard[:, PROSODY_NAMES.index("speech")].mean()) / 0.3)
    return float(np.clip(spread, 2.0 * share, 1.5 + 3.5 * share)) / max(spread, 1e-6)
