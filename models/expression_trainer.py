"""Training of the expression learner: windows of augmented clips, a loss that asks for the curve's shape first, an
average of the weights, and at the end a calibration on clips that were left out.

Interrupted, it goes on from the last full epoch to the same weights: every epoch draws from its own seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from face.expression_basis import MOUTH, ExpressionBasis, lip_gap, load_basis
from models.expression import Calibration, ExpressionConfig, ExpressionLearner, ExpressionNet
from models.expression_augment import LONG_FRAMES, SHORT_FRAMES, AugmentedClips, Sample, SpeechClip
from util.checkpoints import load_tensors, save_tensors
from util.errors import UserError

SHIPPED_CONFIG = ExpressionConfig()
STEPS_PER_EPOCH = 100
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.02
WARM_UP = 0.15  # share of the training in which the learning rate rises
AVERAGE = 0.995  # of the weights, per step
MIN_SCALE = 0.015  # face units: lips that move less than this are not blown up to full movement
GRID_SHARE = 3.5  # GRID is the only clean material with pauses; it counts more than its length says
_MAX_GAIN = 1.6  # of the coefficients: more would show their errors
_JAW = np.array([152, 148, 176, 149, 150, 377, 400, 378, 379, 199, 200, 18, 205, 425, 50, 280])


@dataclass(frozen=True)
class LossWeights:
    """Of the terms of `expression_loss`, beside 1 for the lip opening's shape."""

    correlation: float = 0.3
    velocity: float = 0.5
    level: float = 0.1  # agreement of the mean too, not of the movement alone
    closed: float = 2.0


def clip_scales(clips: Sequence[SpeechClip]) -> np.ndarray:
    """(n,) standard deviation of each clip's speaker's lip opening about the clip's mean, face units."""
    moves: dict[str, list[np.ndarray]] = {}
    for clip in clips:
        moves.setdefault(clip.identity, []).append(clip.lip_gap - clip.lip_gap.mean())
    scale = {identity: max(float(np.concatenate(m).std()), MIN_SCALE) for identity, m in moves.items()}
    return np.array([scale[clip.identity] for clip in clips], np.float32)


def clip_weights(clips: Sequence[SpeechClip]) -> np.ndarray:
    """(n,) chance of each clip: a speaker counts with the square root of their length, shared by their clips."""
    total: dict[str, float] = {}
    for clip in clips:
        total[clip.identity] = total.get(clip.identity, 0) + len(clip.lip_gap)
    weights = [
        len(c.lip_gap) * total[c.identity] ** -0.5 * (GRID_SHARE if c.identity.startswith("grid") else 1)
        for c in clips
    ]
    return np.array(weights) / np.sum(weights)


def mouth_metric(basis: ExpressionBasis) -> Tensor:
    """(K, K) matrix L such that |c L|^2 is the mean squared movement of mouth and jaw for unit variance."""
    points = (
        basis.components[:, np.concatenate([MOUTH, _JAW])].reshape(basis.n_components, -1).astype(np.float64)
    )
    gram = points @ points.T
    gram = gram / np.trace(gram) + 1e-4 * np.eye(len(gram))
    return torch.from_numpy(np.linalg.cholesky(gram)).float()


def synergy(clips: Sequence[SpeechClip], basis: ExpressionBasis) -> np.ndarray:
    """(K,) coefficients that open the lips by one face unit the way these speakers do, by regression."""
    movement = np.concatenate([c.coefficients - c.coefficients.mean(0) for c in clips])
    opening = movement @ lip_gap(basis.components)
    direction = movement.T @ opening / max(float(opening @ opening), 1e-9)
    return (direction / (direction @ lip_gap(basis.components))).astype(np.float32)


@dataclass(frozen=True)
class Batch:
    """B windows of L frames; see Sample."""

    features: Tensor
    lip_gap: Tensor
    coefficients: Tensor
    spoken: Tensor
    closed: Tensor

    @classmethod
    def stack(cls, samples: Sequence[Sample], device: torch.device) -> Batch:
        return cls(
            *(
                torch.from_numpy(np.stack([getattr(s, f) for s in samples])).to(device)
                for f in cls.__annotations__
            )
        )


def expression_loss(
    said: Tensor, batch: Batch, metric: Tensor, weights: LossWeights = LossWeights()
) -> dict[str, Tensor]:
    """Loss terms of the networks' answer (B, L, 1 + K); their sum is the loss.

    Shape terms compare windows after taking out their means over the spoken frames, so that speakers with different
    rest positions agree. The coefficients are compared as movement of the mouth.
    """
    on, n = batch.spoken[..., None], batch.spoken.sum(1).clamp(min=1)[:, None, None]
    both = (batch.spoken[:, 1:] * batch.spoken[:, :-1])[..., None]

    def centred(x: Tensor) -> Tensor:
        return (x - (x * on).sum(1, keepdim=True) / n) * on

    def mean(x: Tensor, mask: Tensor) -> Tensor:
        return (x.square() * mask).sum() / mask.sum().clamp(min=1)

    pairs = {
        "lips": (said[..., :1], batch.lip_gap[..., None]),
        "mouth": (said[..., 1:] @ metric, batch.coefficients @ metric),
    }
    losses = {}
    for name, (x, y) in pairs.items():
        losses[name] = mean(centred(x) - centred(y), on)
        losses[f"{name}_level"] = weights.level * mean(x - y, on)
        losses[f"{name}_velocity"] = weights.velocity * mean(x.diff(dim=1) - y.diff(dim=1), both)
    x, y = (centred(z)[..., 0] for z in pairs["lips"])
    talks = (batch.spoken.sum(1) > 0).float()
    r = (x * y).sum(1) / (x.square().sum(1) * y.square().sum(1) + 1e-3).sqrt()
    losses["correlation"] = weights.correlation * ((1 - r) * talks).sum() / talks.sum().clamp(min=1)
    losses["closed"] = weights.closed * mean(said[..., 0], batch.closed) / 2
    return losses


class MemberTraining:
    """One network on its way: weights, their average and the optimiser's state."""

    def __init__(
        self, config: ExpressionConfig, n_coefficients: int, seed: int, device: torch.device
    ) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = ExpressionNet(n_coefficients, config)
        self.net.to(device, memory_format=torch.channels_last)  # half the time of the default on a CPU
        self.average = ExpressionNet(n_coefficients, config).to(device).eval()
        self.average.load_state_dict(self.net.state_dict())
        self.seed, self.device, self.losses = seed, device, []
        self.optimiser = torch.optim.AdamW(self.net.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def epoch(self, clips: AugmentedClips, batch_size: int, n_epochs: int, steps: int, bar: tqdm) -> None:
        """One more epoch of `steps` batches; n_epochs sets the pace of the learning rate."""
        done = len(self.losses)
        rng, weights = np.random.default_rng([self.seed, done]), clip_weights(clips.clips)
        metric = mouth_metric(load_basis()).to(self.device)
        total = 0.0
        with torch.random.fork_rng():
            torch.manual_seed(self.seed * 100_003 + done)  # dropout
            self.net.train()
            for i in range(steps):
                self._set_rate((done * steps + i) / (n_epochs * steps))
                batch = draw_batch(clips, weights, batch_size, rng, self.device)
                loss = sum(expression_loss(self.net(batch.features), batch, metric).values())
                self.optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
                self.optimiser.step()
                self._add_to_average(done * steps + i)
                total += float(loss.detach())
                bar.update()
        self.losses.append(total / steps)

    def _set_rate(self, progress: float) -> None:
        rise, fall = progress / WARM_UP, (progress - WARM_UP) / (1 - WARM_UP)
        rate = (0.04 + 0.96 * rise) if rise < 1 else 0.5 + 0.5 * np.cos(np.pi * min(fall, 1.0))
        for group in self.optimiser.param_groups:
            group["lr"] = LEARNING_RATE * rate

    @torch.no_grad()
    def _add_to_average(self, step: int) -> None:
        keep = min(AVERAGE, (step + 1) / (step + 10))
        for mean, new in zip(self.average.parameters(), self.net.parameters(), strict=True):
            mean.mul_(keep).add_(new, alpha=1 - keep)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next epoch depends on."""
        state = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        state |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for i, moments in self.optimiser.state_dict()["state"].items():
            state |= {f"optimiser.{i}.{k}": v for k, v in moments.items()}
        return state

    def restore(self, tensors: dict[str, Tensor], losses: list[float]) -> None:
        """Take up what `tensors` gave."""
        for prefix, module in (("net.", self.net), ("average.", self.average)):
            module.load_state_dict(
                {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            )
        state = self.optimiser.state_dict()
        for key, value in tensors.items():
            if key.startswith("optimiser."):
                _, index, name = key.split(".", 2)
                state["state"].setdefault(int(index), {})[name] = value
        self.optimiser.load_state_dict(state)
        self.losses = list(losses)


def draw_batch(
    clips: AugmentedClips, weights: np.ndarray, size: int, rng: np.random.Generator, device: torch.device
) -> Batch:
    """A batch of long clips, or one of twice as many short windows, as the clips' weights say."""
    short = np.array([len(c.lip_gap) <= LONG_FRAMES // 2 for c in clips.clips])
    use_short = rng.random() < weights[short].sum()
    chance = np.where(short == use_short, weights, 0)
    length, n = (SHORT_FRAMES, 2 * size) if use_short else (LONG_FRAMES, size)
    chosen = rng.choice(len(chance), n, p=chance / chance.sum())
    return Batch.stack([clips.draw(int(i), length, rng) for i in chosen], device)


def calibrate(learner: ExpressionLearner, clips: Sequence[SpeechClip], rest_gap: float) -> Calibration:
    """Amplitude and level that give the clips the lip opening that their speakers show.

    Amplitude: the median over clips of the ratio of standard deviations. A map by quantiles was tried; it follows
    the shape of the distribution better and the curves no better.
    """
    said = [learner.raw(clip.voice)[: len(clip.lip_gap), 0] for clip in clips]
    seen = [clip.lip_gap[: len(x)] for clip, x in zip(clips, said, strict=True)]
    slope = float(np.median([y.std() / max(float(x.std()), 1e-6) for x, y in zip(said, seen, strict=True)]))
    offset = slope * float(np.concatenate(said).mean()) - float(np.concatenate(seen).mean())
    gain = slope / float(np.median(clip_scales(clips)))
    return Calibration(slope, max(offset, 0.0), float(np.clip(gain, 1.0, _MAX_GAIN)), rest_gap)


def train_expression(
    clips: Sequence[SpeechClip],
    out_path: str | Path,
    epochs: int = 12,
    batch_size: int = 32,
    seed: int = 0,
    device: str | torch.device = "cpu",
    *,
    left_out: Sequence[SpeechClip] = (),
    config: ExpressionConfig = SHIPPED_CONFIG,
    steps: int = STEPS_PER_EPOCH,
    resume: bool = True,
) -> list[float]:
    """Train `config.n_members` networks one after the other and write the learner to `out_path`.

    left_out: clips for the calibration; without any, it is fitted on the training clips. Progress is kept beside
    `out_path` after every epoch; with `resume`, an interrupted training goes on from there. Returns the mean loss of
    every epoch. Raises UserError where there are no clips, or progress kept there belongs to another training.
    """
    if not clips:
        raise UserError(
            "--dataroot: no talking clip; at least one with its own voice is needed; check the folder"
        )
    device, state_path = torch.device(device), Path(out_path).with_suffix(".training.safetensors")
    basis = load_basis()
    augmented = AugmentedClips(clips, clip_scales(clips))
    plan = {"epochs": epochs, "batch_size": batch_size, "seed": seed, "steps": steps, "clips": len(clips)}
    kept, note = _progress(state_path, plan) if resume else ({}, {"losses": []})
    losses, members = [list(x) for x in note["losses"]], []
    bar = tqdm(total=config.n_members * epochs * steps, unit="step", desc="expression")
    for i in range(config.n_members):
        member = MemberTraining(config, basis.n_components, seed * 1000 + i, device)
        if i < len(losses):
            own = {k.removeprefix(f"{i}."): v for k, v in kept.items() if k.startswith(f"{i}.")}
            member.restore(own, losses[i])
            bar.update(steps * len(losses[i]))
        while len(member.losses) < epochs:
            member.epoch(augmented, batch_size, epochs, steps, bar)
            kept |= {f"{i}.{k}": v.clone() for k, v in member.tensors().items()}
            losses = [*losses[:i], member.losses]
            bar.set_postfix(loss=f"{member.losses[-1]:.3f}")
            save_tensors(state_path, kept, {"plan": plan, "losses": losses})
        members.append(member.average)
    bar.close()
    rest = float(np.median([getattr(c, "rest_gap", 0.0) for c in clips]))
    learner = ExpressionLearner(members, synergy(clips, basis), Calibration(), config, device)
    calibration = calibrate(learner, left_out or clips, rest)
    ExpressionLearner(members, learner.synergy, calibration, config, device).save(out_path)
    with suppress(OSError):
        state_path.unlink()
    return [loss for member in losses for loss in member]


def _progress(path: Path, plan: dict) -> tuple[dict[str, Tensor], dict]:
    """Kept progress, or none. Raises UserError where it was made with other settings."""
    if not path.is_file():
        return {}, {"losses": []}
    tensors, note = load_tensors(path, "--continue_train")
    if note.get("plan") != plan:
        raise UserError(
            f"--continue_train {path}: made with {note.get('plan')}, asked for {plan}; "
            "use the same settings, or remove the file to start again"
        )
    return tensors, note
