"""Training of the head-motion learner: prior in closed form, then flow matching on innovations."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from models.head_motion import N_CONDITION, Amplitude, HeadMotionLearner, HeadMotionNet
from models.motion_prior import N_CHANNELS, ORDER, STEP_FRAMES, MotionPrior, fit_prior, lowpass
from models.prosody import prosody
from util.checkpoints import load_tensors, save_tensors
from util.errors import UserError
from util.types import Voice

MIRROR = np.array([-1, 1, -1, -1, 1, 1], np.float32)  # yaw, roll and x change sign in a mirror
_WINDOW = 96  # steps, 7.7 s
_BATCHES_PER_EPOCH = 40
_MAX_INNOVATION = 6.0
_EMA = 0.998
_LEARNING_RATE = 1e-3
_DROP_VOICE = 0.15  # share of windows whose voice is hidden


class Clip(Protocol):
    """What training needs of a clip (data.head_motion_dataset.HeadMotionClip has it)."""

    name: str
    poses: np.ndarray  # (T, 6) at 25 fps
    voice: Voice | None
    weight: float


@dataclass(frozen=True)
class MotionCurves:
    """A clip made ready: smooth motion of unit speed and its prosody, both at 25 fps."""

    motion: np.ndarray  # (T, 6)
    heard: np.ndarray  # (T, N_CONDITION): prosody and 1, or zeros where there is no voice
    speed: float  # root mean square of the angles' change, degrees per step
    weight: float


def motion_curves(clip: Clip) -> MotionCurves:
    """Smooth a clip's poses, bring them to unit speed, and analyse its voice."""
    motion = lowpass(clip.poses.astype(np.float64))
    change = motion[STEP_FRAMES:, :3] - motion[:-STEP_FRAMES, :3]
    speed = float(np.sqrt((change**2).sum(1).mean()))
    heard = np.zeros((len(motion), N_CONDITION))
    if clip.voice is not None:
        curves = lowpass(prosody(clip.voice))[: len(motion)]
        heard[: len(curves), :-1], heard[: len(curves), -1] = curves, 1
    speed = max(speed, 0.05)  # a still picture would become noise
    return MotionCurves(motion / speed, heard, speed, clip.weight)


def fit_statistics(curves: Sequence[MotionCurves]) -> tuple[MotionPrior, Amplitude]:
    """The Gaussian prior of all clips, and the speed of those that talk."""
    steps = [c.motion[::STEP_FRAMES] for c in curves]
    prior = fit_prior(steps, [c.weight / len(s) for c, s in zip(curves, steps, strict=True)])
    talkers = [c for c in curves if c.heard[:, -1].any()] or list(curves)
    speeds, weights = np.log([c.speed for c in talkers]), np.array([c.weight for c in talkers])
    mean = float(np.average(speeds, weights=weights))
    spread = float(np.sqrt(np.average((speeds - mean) ** 2, weights=weights)))
    return prior, Amplitude(float(np.exp(mean)), min(spread, 0.25))


def calibrated(learner: HeadMotionLearner, curves: Sequence[MotionCurves], n_clips: int = 24) -> Amplitude:
    """The amplitude at which the model's draws for the talkers' voices have the talkers' speed."""
    talkers = [c.heard[:, :-1] for c in curves if c.heard[:, -1].any()][:n_clips] or [
        np.zeros((500, N_CONDITION - 1))
    ]
    speeds = []
    for seed, heard in enumerate(talkers):
        motion = learner.unit_motion(heard, seed)
        change = motion[STEP_FRAMES:, :3] - motion[:-STEP_FRAMES, :3]
        speeds.append((change**2).sum(1).mean())
    return Amplitude(learner.amplitude.typical / float(np.sqrt(np.mean(speeds))), learner.amplitude.spread)


@dataclass(frozen=True)
class Batch:
    """Windows of innovations and what was heard. mask: 1 where there is motion."""

    innovations: Tensor  # (B, M, 6)
    heard: Tensor  # (B, M, N_CONDITION)
    mask: Tensor  # (B, M, 1)


def draw_batch(
    curves: Sequence[MotionCurves],
    prior: MotionPrior,
    size: int,
    rng: np.random.Generator,
    augment: bool = True,
) -> Batch:
    """Random windows: clips by weight, any start, mirrored or not, 0.85 to 1.2 times as fast, some mute."""
    chances = np.array([c.weight for c in curves])
    z = np.zeros((size, _WINDOW, N_CHANNELS), np.float32)
    heard, mask = np.zeros((size, _WINDOW, N_CONDITION), np.float32), np.zeros((size, _WINDOW, 1), np.float32)
    for i, k in enumerate(rng.choice(len(curves), size, p=chances / chances.sum())):
        clip = curves[k]
        rate = rng.uniform(0.85, 1.2) if augment else 1.0
        stride, length = STEP_FRAMES * rate, len(clip.motion)
        n = min(_WINDOW, int((length - 1) / stride) - ORDER)
        if n < 1:
            continue
        start = rng.uniform(0, length - 1 - (n + ORDER - 1) * stride)
        places = start + stride * np.arange(n + ORDER)
        motion = _at(clip.motion, places) * (MIRROR if augment and rng.random() < 0.5 else 1)
        z[i, :n] = np.clip(prior.whiten(motion), -_MAX_INNOVATION, _MAX_INNOVATION)
        mask[i, :n] = 1
        if not augment or rng.random() > _DROP_VOICE:
            heard[i, :n] = _at(clip.heard, places[ORDER:])
    return Batch(*(torch.from_numpy(a) for a in (z, heard, mask)))


def _at(curves: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Linear interpolation of (T, C) at fractional frames."""
    low = np.minimum(places.astype(int), len(curves) - 2)
    part = (places - low)[:, None]
    return curves[low] * (1 - part) + curves[low + 1] * part


def flow_matching_loss(net: HeadMotionNet, batch: Batch, generator: torch.Generator) -> Tensor:
    """Mean squared error of the learnt part of the velocity; 1 is what the Gaussian prior alone reaches."""
    z = batch.innovations
    time = torch.rand(len(z), generator=generator).to(z.device)
    noise = torch.randn(z.shape, generator=generator).to(z.device)
    t = time[:, None, None]
    spread = torch.sqrt(t**2 + (1 - t) ** 2)
    state = (t * z + (1 - t) * noise) / spread
    # velocity z - noise, less the linear part (2t - 1) / spread * state, in units of its deviation
    target = ((z - noise) - (2 * t - 1) / spread * state) * spread
    error = (net.residual(state, time, batch.heard) - target) ** 2
    return (error * batch.mask).sum() / (batch.mask.sum() * N_CHANNELS).clamp(min=1)


def train_head_motion(
    clips: Sequence[Clip],
    out_path: str | Path,
    epochs: int = 60,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    *,
    dev_clips: Sequence[Clip] = (),
    resume: bool = True,
    channels: int = 64,
) -> list[float]:
    """Train on clips and write the model to `out_path`, the state of training beside it, after every epoch.

    Interrupted, the same call goes on from the last full epoch to the same losses. Returns the mean
    training loss of every epoch (1: no better than the Gaussian prior). Raises UserError where there are
    no clips or the saved state is of another run. An epoch is 40 batches; the defaults made the shipped
    weights.
    """
    if not clips:
        raise UserError(
            "--dataroot: no clips for head motion; at least one tracked clip is needed; check the folder"
        )
    curves = [motion_curves(c) for c in clips]
    prior, amplitude = fit_statistics(curves)
    run = _Run(_Settings(epochs, batch_size, seed, device, channels))
    state = Path(out_path).with_suffix(".state.safetensors")
    if resume and state.is_file():
        run.restore(state)
    dev = None
    if dev_clips:
        dev = draw_batch([motion_curves(c) for c in dev_clips], prior, 64, np.random.default_rng(0), False)
    done = len(run.losses)
    bar = tqdm(range(done, epochs), initial=done, total=epochs, unit="epoch", desc="head motion")
    for _ in bar:
        loss = run.epoch(curves, prior)
        bar.set_postfix({"loss": f"{loss:.4f}"} | ({"dev": f"{run.evaluate(dev):.4f}"} if dev else {}))
        learner = HeadMotionLearner(copy.deepcopy(run.average).cpu(), prior, amplitude)
        if len(run.losses) == epochs:
            learner.amplitude = calibrated(learner, curves)
        learner.save(out_path, {"epochs": len(run.losses), "seed": seed, "clips": len(clips)})
        run.store(state)  # last: what it says is done has been written
    return run.losses


@dataclass(frozen=True)
class _Settings:
    epochs: int
    batch_size: int
    seed: int
    device: str
    channels: int


class _Run:
    """Network, average, optimiser and losses of one training run."""

    def __init__(self, settings: _Settings) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.net = HeadMotionNet(settings.channels).to(settings.device)
        self.average = copy.deepcopy(self.net).eval()
        self.optimiser = torch.optim.AdamW(self.net.parameters(), lr=_LEARNING_RATE, weight_decay=0.01)
        self.settings, self.losses = settings, []

    def epoch(self, curves: Sequence[MotionCurves], prior: MotionPrior) -> float:
        """One epoch. Its randomness depends on the seed and its number alone, so that it can be repeated."""
        number = len(self.losses)
        rng = np.random.default_rng([self.settings.seed, number])
        generator = torch.Generator().manual_seed(self.settings.seed * 100_003 + number)
        total = 0.0
        self.net.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed * 100_003 + number)  # dropout
            for i in range(_BATCHES_PER_EPOCH):
                self._set_rate((number + i / _BATCHES_PER_EPOCH) / self.settings.epochs)
                batch = draw_batch(curves, prior, self.settings.batch_size, rng)
                total += self._step(
                    Batch(*(x.to(self.settings.device) for x in vars(batch).values())), generator
                )
        self.losses.append(total / _BATCHES_PER_EPOCH)
        return self.losses[-1]

    def _set_rate(self, done: float) -> None:
        """Rise over the first 5 % of training, then fall as a half cosine."""
        for group in self.optimiser.param_groups:
            group["lr"] = (
                _LEARNING_RATE * min(1.0, done / 0.05 + 0.05) * (0.5 + 0.5 * np.cos(np.pi * min(done, 1.0)))
            )

    def _step(self, batch: Batch, generator: torch.Generator) -> float:
        loss = flow_matching_loss(self.net, batch, generator)
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(now, 1 - _EMA)
        return float(loss.detach())

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> float:
        """Loss of the averaged network on a batch, with the same noise every time."""
        batch = Batch(*(x.to(self.settings.device) for x in vars(batch).values()))
        return float(flow_matching_loss(self.average, batch, torch.Generator().manual_seed(0)))

    def store(self, path: Path) -> None:
        """Write everything that the next epoch depends on, atomically."""
        tensors = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for i, slot in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{i}.{k}": v for k, v in slot.items()}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        save_tensors(path, tensors, self._identity())

    def _identity(self) -> dict[str, int]:
        return {k: getattr(self.settings, k) for k in ("seed", "epochs", "batch_size")}

    def restore(self, path: Path) -> None:
        """Go on from a stored state. Raises UserError where it is of another run."""
        tensors, note = load_tensors(path, "--continue_train")
        wanted = self._identity()
        if {k: note.get(k) for k in wanted} != wanted:
            raise UserError(
                f"--continue_train: {path} is of a run with {note}; this run has {wanted}; give the same "
                "numbers or remove that file"
            )
        try:
            for name, net in (("net.", self.net), ("average.", self.average)):
                net.load_state_dict({k[len(name) :]: v for k, v in tensors.items() if k.startswith(name)})
            slots = self.optimiser.state_dict()
            for key, value in tensors.items():
                if key.startswith("optimiser."):
                    _, i, field = key.split(".")
                    slots["state"].setdefault(int(i), {})[field] = value
            self.optimiser.load_state_dict(slots)
            self.losses = tensors["losses"].tolist()
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(
                f"--continue_train: {path} does not fit this model ({str(error).splitlines()[0][:100]}); "
                "remove that file"
            ) from None
