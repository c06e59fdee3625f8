"""Expression learner (paper: audio to facial expression): a voice to expression coefficients and lip opening.

A few small dilated convolutions over log-mel features, averaged; each sees 0.7 s to either side of a frame. What they
say is an expectation, hence too small a movement: `Calibration` restores the natural amplitude, so that lips close.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from face.expression_basis import ExpressionBasis, lip_gap, load_basis
from models.audio_features import (
    BLOCK_FRAMES,
    FEATURE_RANGE,
    N_MELS,
    frame_blocks,
    mel_power,
    normalise,
    speech_level,
)
from util.checkpoints import checkpoint_path, load_tensors, save_tensors
from util.errors import UserError
from util.types import Voice

EXPRESSION_FILE = "expression.safetensors"
DILATIONS = (1, 2, 4, 8)  # frames
CONTEXT_FRAMES = sum(DILATIONS) + 3  # frames to either side that an output depends on
# What the networks say below zero is how firmly lips are closed. Shown by half, up to 2 mm, it brings the rendered lips
# nearer to true ones than cutting it off does (GRID, dlib's points: median correlation 0.84 to 0.86).
PRESS_SHARE, PRESS_LIMIT = 0.5, 0.02
SILENCE = FEATURE_RANGE[0]


@dataclass(frozen=True)
class ExpressionTrack:
    """What a face does while it speaks, T frames at 25 per second."""

    coefficients: np.ndarray  # (T, K) float32: offset from the neutral face in the expression basis
    lip_gap: (
        np.ndarray
    )  # (T,) float32, face units: mean vertical distance of the inner lips; below 0: pressed


@dataclass(frozen=True)
class ExpressionConfig:
    """Shape of one network."""

    channels: int = 64
    filters: tuple[int, int] = (16, 24)  # of the voice encoder's two stages
    dropout: float = 0.2
    n_members: int = 3  # networks whose outputs are averaged


@dataclass(frozen=True)
class Calibration:
    """From what the networks say to natural movement (fitted on clips that were left out of training)."""

    gap_slope: float = 0.06  # face units per unit of the networks' lip opening
    gap_offset: float = 0.03  # face units; what lies below is closed
    coefficient_gain: float = 1.0
    rest_gap: float = 0.0  # opening of the neutral face, face units

    def lip_gap(self, said: np.ndarray) -> np.ndarray:
        """(T,) the networks' words to lip opening in face units; below 0 the lips are pressed together."""
        opening = self.gap_slope * said - self.gap_offset
        return np.where(opening < 0, np.maximum(PRESS_SHARE * opening, -PRESS_LIMIT), opening)


def basis_mark(basis: ExpressionBasis) -> str:
    """A mark that tells one basis from another: coefficients mean nothing without theirs."""
    return hashlib.sha256(np.ascontiguousarray(basis.components).tobytes()).hexdigest()[:16]


class DilatedBlock(nn.Module):
    """Residual gated convolution over frames."""

    def __init__(self, channels: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = nn.Conv1d(channels, 2 * channels, 3, padding=dilation, dilation=dilation)
        self.out = nn.Conv1d(channels, channels, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) to (B, C, T)."""
        value, gate = self.conv(self.norm(x.transpose(1, 2)).transpose(1, 2)).chunk(2, 1)
        return x + self.dropout(self.out(value * torch.sigmoid(gate)))


class VoiceEncoder(nn.Module):
    """Log-mel features to one vector per frame: convolutions over time and frequency.

    Weights shared along the frequency axis are what lets a few speakers teach for all: against a first layer that
    sees all bands at once, the mean correlation on 18 clips of unseen speakers rose from 0.47 to 0.53.
    """

    def __init__(self, config: ExpressionConfig) -> None:
        super().__init__()
        a, b = config.filters
        self.hundred = nn.Conv2d(1, a, 5, stride=(1, 2), padding=2)
        self.hundred_more = nn.Conv2d(a, a, 3, padding=1)
        self.fifty = nn.Conv2d(a, b, (4, 5), stride=2, padding=(1, 2))  # to 50 steps a second
        self.fifty_more = nn.Conv2d(b, b, 3, padding=1)
        self.twenty_five = nn.Conv2d(b, b, (4, 5), stride=2, padding=(1, 2))  # to 25
        self.out = nn.Conv1d(b * N_MELS // 8, config.channels, 1)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, features: Tensor) -> Tensor:
        """(B, 4 T, 64) features to (B, C, T)."""
        x = F.gelu(self.hundred(features[:, None]))  # (B, a, 4 T, 32)
        x = x + F.gelu(self.hundred_more(x))
        x = F.gelu(self.fifty(x))  # (B, b, 2 T, 16)
        x = x + F.gelu(self.fifty_more(x))
        x = F.gelu(self.twenty_five(x))  # (B, b, T, 8)
        return self.dropout(F.gelu(self.out(x.permute(0, 1, 3, 2).flatten(1, 2))))


class ExpressionNet(nn.Module):
    """Log-mel features to lip opening and coefficients."""

    def __init__(self, n_coefficients: int, config: ExpressionConfig) -> None:
        super().__init__()
        c = config.channels
        self.encoder = VoiceEncoder(config)
        self.blocks = nn.ModuleList(DilatedBlock(c, d, config.dropout) for d in DILATIONS)
        self.norm = nn.LayerNorm(c)
        self.head = nn.Linear(c, 1 + n_coefficients)

    def forward(self, features: Tensor) -> Tensor:
        """(B, 4 T, 64) features to (B, T, 1 + K): lip opening in its own unit, then coefficients."""
        x = self.encoder(features)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.transpose(1, 2)))


class ExpressionLearner:
    """Speaks with any voice: `predict` gives the expression of every frame."""

    def __init__(
        self,
        nets: Sequence[ExpressionNet],
        synergy: np.ndarray,
        calibration: Calibration,
        config: ExpressionConfig,
        device: str | torch.device = "cpu",
    ) -> None:
        """synergy: (K,) coefficients that open the lips by one face unit, as people do it."""
        self.nets = [net.eval().to(device) for net in nets]
        self.synergy, self.calibration, self.config = synergy.astype(np.float32), calibration, config
        self.basis: ExpressionBasis = load_basis()
        self._device = torch.device(device)

    @classmethod
    def load(cls, device: str | torch.device = "cpu", path: str | Path | None = None) -> ExpressionLearner:
        """The shipped learner, or the one at `path`. Raises UserError where the file is missing or damaged."""
        path = Path(path) if path else checkpoint_path(EXPRESSION_FILE)
        tensors, note = load_tensors(path, "expression weights")
        try:
            config = ExpressionConfig(**note["config"] | {"filters": tuple(note["config"]["filters"])})
            calibration = Calibration(**note["calibration"])
            synergy = tensors.pop("synergy").float().numpy()
            nets = [ExpressionNet(len(synergy), config) for _ in range(config.n_members)]
            for i, net in enumerate(nets):
                net.load_state_dict({k: tensors.pop(f"{i}.{k}").float() for k in net.state_dict()})
        except (KeyError, TypeError, RuntimeError) as error:
            raise UserError(
                f"expression weights {path}: not of this model ({' '.join(str(error).split())[:80]}); "
                "a file written by train.py --model expression is needed; train again or restore the shipped one"
            ) from None
        if note.get("basis") != basis_mark(load_basis()):
            raise UserError(
                f"expression weights {path}: made for another expression basis than the shipped one; "
                "restore both files, or train again with train.py --model expression"
            )
        return cls(nets, synergy, calibration, config, device)

    def save(self, path: str | Path) -> None:
        """Write the learner to one file, weights in half precision."""
        tensors = {
            f"{i}.{name}": value.half()
            for i, net in enumerate(self.nets)
            for name, value in net.state_dict().items()
        }
        note = {
            "config": asdict(self.config),
            "calibration": asdict(self.calibration),
            "basis": basis_mark(self.basis),
        }
        save_tensors(path, tensors | {"synergy": torch.from_numpy(self.synergy)}, note)

    def predict(self, voice: Voice, block: int = BLOCK_FRAMES) -> ExpressionTrack:
        """The expression of every frame of a voice, in blocks of frames that do not change the result."""
        raw = self.raw(voice, block)
        opening = np.pad(raw[:, 0], 1, mode="edge")
        # Lips are heavier than the networks' answers are steady; the mean lies a little nearer to true lips (card).
        opening = (opening[:-2] + 2 * opening[1:-1] + opening[2:]) / 4
        gap = self.calibration.lip_gap(opening)
        coefficients = raw[:, 1:] * self.calibration.coefficient_gain
        # The mesh opens as far as the lips do: where both disagree, jaw and lips follow together.
        opens = coefficients @ lip_gap(self.basis.components)
        coefficients = coefficients + (gap - self.calibration.rest_gap - opens)[:, None] * self.synergy
        return ExpressionTrack(coefficients.astype(np.float32), gap.astype(np.float32))

    @torch.no_grad()
    def raw(self, voice: Voice, block: int = BLOCK_FRAMES) -> np.ndarray:
        """(T, 1 + K) what the networks say, averaged, before calibration."""
        n_frames, samples = voice.n_frames, voice.samples
        level = speech_level(samples, n_frames)
        out = np.empty((n_frames, 1 + len(self.synergy)), np.float32)
        for first, last in frame_blocks(n_frames, block):
            power = mel_power(samples, first - CONTEXT_FRAMES, last - first + 2 * CONTEXT_FRAMES)
            features = normalise(power, level)[None].to(self._device)
            said = torch.stack([net(features)[0] for net in self.nets]).mean(0)
            out[first:last] = said[CONTEXT_FRAMES : CONTEXT_FRAMES + last - first].cpu().numpy()
        return out
