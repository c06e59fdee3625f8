"""The head-motion learner: statistics of the shipped model, streaming, training, damaged weights."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models import head_motion, head_motion_trainer
from models.head_motion import LIMITS, REACH, HeadMotionLearner, HeadMotionNet, soft_limit
from models.head_motion_trainer import (
    draw_batch,
    fit_statistics,
    flow_matching_loss,
    motion_curves,
    train_head_motion,
)
from models.motion_prior import ORDER, fit_prior, lowpass, to_frames
from models.prosody import PROSODY_NAMES, prosody
from util.errors import UserError
from util.types import FPS, SAMPLE_RATE, Voice


def babble(seconds: float, seed: int = 0, phrase: float = 2.0, pause: float = 0.5) -> Voice:
    """Syllables of a buzzing voice with melody and stress, in phrases with pauses between them."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    places = np.arange(int(seconds * 5) + 2)
    melody = np.interp(t * 4, places, rng.uniform(90, 220, len(places)))
    stress = np.interp(t * 4, places, rng.uniform(0.3, 1, len(places)))
    syllables = np.clip(np.sin(2 * np.pi * 4.3 * t) + 0.6, 0, 1) * stress
    buzz = np.tanh(4 * np.sin(2 * np.pi * np.cumsum(melody) / SAMPLE_RATE))
    speaking = t % (phrase + pause) < phrase
    return Voice((0.3 * buzz * syllables * speaking + 1e-4 * rng.standard_normal(len(t))).astype(np.float32))


SILENCE = Voice(np.zeros(10 * SAMPLE_RATE, np.float32))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other cost these small networks more than they give on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def learner() -> HeadMotionLearner:
    return HeadMotionLearner.load()


@dataclass(frozen=True)
class ToyClip:
    name: str
    poses: np.ndarray
    voice: Voice | None
    weight: float


def toy_clips(n: int = 4, frames: int = 150) -> list[ToyClip]:
    """Smooth random motion that is wider in speech; every other clip without a voice."""
    clips = []
    for i in range(n):
        rng, voice = np.random.default_rng(i), babble(frames / FPS, i)
        loud = prosody(voice)[:, :1]
        poses = lowpass(
            rng.standard_normal((frames, 6)).cumsum(0) * [1, 1, 1, 0.02, 0.02, 0.005] * (0.5 + loud)
        )
        clips.append(
            ToyClip(
                f"toy{i}", (poses - np.median(poses, 0)).astype(np.float32), voice if i % 2 else None, 1.0
            )
        )
    return clips


@pytest.mark.parametrize("seconds", [3, 8, 20])
def test_every_voice_and_seed_moves_as_a_talker_does(learner, seconds):
    voice = babble(seconds, seconds)
    for seed in range(5):
        motion = learner.sample(voice, seed)
        assert motion.shape == (seconds * FPS, 6)
        assert motion.dtype == np.float32
        assert 1.5 <= motion[:, :2].std(0).max() <= 6
        assert (np.abs(motion) <= LIMITS).all()
        assert not motion[0].any()
        assert np.abs(np.diff(motion[:, :3], axis=0)).max() < 5  # degrees a frame; real clips reach 4 to 10
        assert np.abs(np.diff(motion[:, 3:5], axis=0)).max() < 0.08
        assert 0.02 < np.abs(np.diff(motion[:, :3], n=3, axis=0)).mean() < 0.25  # smooth, yet alive


def test_motion_is_no_sine_wave_and_has_a_real_spectrum(learner):
    speed = np.diff(learner.sample(babble(120), 0)[:, :3], axis=0)
    power = (np.abs(np.fft.rfft(speed, axis=0)) ** 2).sum(1)
    frequency = np.fft.rfftfreq(len(speed), 1 / FPS)
    assert power.max() / power.sum() < 0.05
    shares = [
        power[(frequency >= a) & (frequency < b)].sum() / power.sum() for a, b in ((0, 0.5), (0.5, 2), (2, 5))
    ]
    assert 0.02 < shares[0] < 0.25
    assert 0.3 < shares[1] < 0.75
    assert 0.15 < shares[2] < 0.6
    assert power[frequency > 6.5].sum() / power.sum() < 0.02


def test_seeds_differ_and_one_seed_repeats_bit_for_bit(learner):
    voice = babble(5)
    first = learner.sample(voice, 1)
    torch.manual_seed(123)
    torch.rand(7)
    assert np.array_equal(first, learner.sample(voice, 1))
    assert np.array_equal(first, HeadMotionLearner.load().sample(voice, 1))
    other = learner.sample(voice, 2)
    assert np.abs(first - other)[:, :3].mean() > 0.5
    assert abs(np.corrcoef(first[:, 0], other[:, 0])[0, 1]) < 0.95


def test_scale_scales_and_stays_within_the_limits(learner):
    voice = babble(6)
    one, half, nothing, much = (learner.sample(voice, 0, s) for s in (1.0, 0.5, 0.0, 10.0))
    assert not nothing.any()
    assert 0.45 < half[:, :3].std() / one[:, :3].std() < 0.56
    assert (np.abs(much) <= LIMITS).all()
    assert much[:, :3].std() > 1.5 * one[:, :3].std()


def test_soft_limit_leaves_small_motion_alone_and_bounds_large_motion():
    assert np.allclose(soft_limit(LIMITS / 3), LIMITS / 3, rtol=0.004)
    assert (soft_limit(LIMITS * 50) <= LIMITS).all()
    assert (np.diff(soft_limit(np.linspace(-60, 60, 200)[:, None] * np.ones(6)), axis=0) > 0).all()


def test_silence_moves_less_and_pauses_are_calmer(learner):
    def speed(motion: np.ndarray) -> np.ndarray:
        return np.linalg.norm(np.diff(motion[:, :3], axis=0), axis=1)

    talking = np.mean([speed(learner.sample(babble(10), s)).mean() for s in range(5)])
    silent = np.mean([speed(learner.sample(SILENCE, s)).mean() for s in range(5)])
    assert 0.05 * talking < silent < 0.6 * talking  # alive, but calm
    voice = babble(120, phrase=3.0, pause=2.0)
    speaking = prosody(voice)[1:, PROSODY_NAMES.index("speech")]
    ratios = []
    for seed in range(3):
        moved = speed(learner.sample(voice, seed))
        ratios.append(moved[speaking > 0.7].mean() / moved[speaking < 0.3].mean())
    assert np.mean(ratios) > 1.1


def test_motion_listens_to_the_voice(learner):
    one, other = learner.sample(babble(6, 0), 0), learner.sample(babble(6, 1), 0)
    assert np.abs(one - other)[:, :3].mean() > 0.1


@pytest.mark.parametrize("n_samples", [0, 1, 639, 641, SAMPLE_RATE + 1])
def test_any_length_has_a_pose_for_every_frame(learner, n_samples):
    voice = Voice(babble(2).samples[:n_samples])
    motion = learner.sample(voice, 0)
    assert motion.shape == (voice.n_frames, 6)
    assert np.isfinite(motion).all()


def test_blocks_meet_without_a_seam(learner, monkeypatch):
    heard = prosody(babble(60))
    monkeypatch.setattr(head_motion, "_BLOCK", 10**6)
    whole = learner.unit_motion(heard, 0)
    monkeypatch.setattr(head_motion, "_BLOCK", 100)
    assert np.abs(learner.unit_motion(heard, 0) - whole).max() < 2e-3


def test_ten_minutes_in_constant_memory_without_drift(learner, monkeypatch):
    widths, forward = [], HeadMotionNet.forward

    def watched(net: HeadMotionNet, state: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        widths.append(state.shape[1])
        return forward(net, state, *rest)

    monkeypatch.setattr(HeadMotionNet, "forward", watched)
    motion = learner.sample(Voice(np.tile(babble(60).samples, 10)), 0)
    assert max(widths) <= head_motion._BLOCK + 2 * (REACH + 2)
    minutes = motion.reshape(10, -1, 6)
    assert np.abs(minutes.mean(1)[:, :3]).max() < 3
    spread = minutes.std(1)[:, :2].max(1)
    assert spread.max() < 3 * spread.min()
    assert np.abs(np.diff(motion[:, :3], axis=0)).max() < 6


def test_prior_whitens_and_colours_back():
    rng = np.random.default_rng(0)
    motions = [rng.standard_normal((200, 6)).cumsum(0) for _ in range(3)]
    prior = fit_prior([m - m.mean(0) for m in motions], [1.0] * 3)
    assert max(np.abs(np.roots([1, *-a])).max() for a in prior.coefficients) < 1
    white = rng.standard_normal((5000, 6))
    assert np.allclose(prior.whiten(prior.colour(white)), white[ORDER:], atol=1e-8)
    assert np.abs(prior.colour(np.zeros((50, 6)))).max() == 0


def test_steps_to_frames_is_band_limited_interpolation():
    wave = np.sin(0.7 * np.arange(100))[:, None]
    fine = to_frames(wave)
    assert fine.shape == (200, 1)
    assert np.abs(fine[::2] - wave).max() < 2e-3
    assert np.abs(fine[30:170, 0] - np.sin(0.35 * np.arange(30, 170))).max() < 0.02


def test_prosody_ignores_loudness_and_hears_pauses_and_pitch():
    voice = babble(5, phrase=2, pause=1)
    quiet = Voice(voice.samples * 0.1)
    assert np.abs(prosody(voice) - prosody(quiet)).max() < 0.1
    speech = prosody(voice)[:, PROSODY_NAMES.index("speech")]
    assert speech[10:40].mean() > 0.6
    assert speech[55:70].mean() < 0.2
    assert not prosody(SILENCE)[:, PROSODY_NAMES.index("speech")].any()
    t = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    rising = np.tanh(3 * np.sin(2 * np.pi * (100 * t + 25 * t**2))).astype(np.float32) * 0.3
    pitch = prosody(Voice(rising))[5:-5, PROSODY_NAMES.index("pitch")]
    assert pitch[-1] - pitch[0] == pytest.approx(np.log2(191 / 109), abs=0.1)


def test_gradient_reaches_every_parameter():
    curves = [motion_curves(c) for c in toy_clips()]
    prior, amplitude = fit_statistics(curves)
    assert amplitude.typical > 0
    net = HeadMotionNet(channels=8)
    batch = draw_batch(curves, prior, 16, np.random.default_rng(0))
    loss = flow_matching_loss(net, batch, torch.Generator().manual_seed(0))
    assert 0.3 < loss.item() < 3
    loss.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_velocity_is_the_linear_part_plus_what_is_learnt():
    net = HeadMotionNet(channels=8).eval()
    time_, state, heard = torch.tensor([0.3]), torch.randn(1, 20, 6), torch.randn(1, 20, 6)
    muted = copy.deepcopy(net)
    torch.nn.init.zeros_(muted.leave.weight)
    spread = 0.3**2 + 0.7**2
    assert torch.allclose(muted(state, time_, heard), (0.6 - 1) / spread * state, atol=1e-6)
    assert not torch.allclose(net(state, time_, heard), muted(state, time_, heard), atol=1e-6)


@pytest.fixture
def short_epochs(monkeypatch) -> None:
    monkeypatch.setattr(head_motion_trainer, "_BATCHES_PER_EPOCH", 3)


def test_training_interrupted_goes_on_to_the_same_losses(tmp_path, monkeypatch, short_epochs):
    options = {"epochs": 4, "batch_size": 4, "channels": 8, "seed": 5}
    whole = train_head_motion(toy_clips(), tmp_path / "whole.safetensors", dev_clips=toy_clips(2), **options)
    assert len(whole) == 4
    assert np.isfinite(whole).all()
    step, calls = head_motion_trainer._Run._step, []

    def interrupted(run, *rest):
        calls.append(1)
        if len(calls) == 8:  # in the third epoch
            raise KeyboardInterrupt
        return step(run, *rest)

    monkeypatch.setattr(head_motion_trainer._Run, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_head_motion(toy_clips(), tmp_path / "parts.safetensors", **options)
    monkeypatch.setattr(head_motion_trainer._Run, "_step", step)
    torch.manual_seed(99)
    assert train_head_motion(toy_clips(), tmp_path / "parts.safetensors", **options) == whole
    voice = babble(3)
    a, b = (
        HeadMotionLearner.load(path=tmp_path / f"{n}.safetensors").sample(voice, 0)
        for n in ("whole", "parts")
    )
    assert np.array_equal(a, b)
    assert {p.name for p in tmp_path.iterdir()} == {
        f"{n}{s}" for n in ("whole", "parts") for s in (".safetensors", ".state.safetensors")
    }


def test_training_of_another_run_is_not_gone_on_with(tmp_path, short_epochs):
    path = tmp_path / "m.safetensors"
    train_head_motion(toy_clips(), path, epochs=1, batch_size=4, channels=8)
    with pytest.raises(UserError, match=r"--continue_train.*is of a run with"):
        train_head_motion(toy_clips(), path, epochs=2, batch_size=4, channels=8)
    with pytest.raises(UserError, match=r"--continue_train.*does not fit"):
        train_head_motion(toy_clips(), path, epochs=1, batch_size=4, channels=4)
    with pytest.raises(UserError, match="--dataroot"):
        train_head_motion([], path)


def test_training_gets_better_than_the_gaussian_prior(tmp_path, monkeypatch):
    monkeypatch.setattr(head_motion_trainer, "_BATCHES_PER_EPOCH", 25)
    losses = train_head_motion(toy_clips(6), tmp_path / "m.safetensors", epochs=3, batch_size=8, channels=16)
    assert losses[-1] < 0.97 * losses[0]


def damaged(tensors: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    tensors = dict(tensors)
    if how == "missing":
        del tensors["net.leave.weight"]
    elif how == "no amplitude":
        del tensors["amplitude"]
    elif how == "shape":
        tensors["net.leave.weight"] = torch.zeros(5, 64, 1)
    elif how == "nan":
        tensors["net.leave.bias"] = torch.full((6,), float("nan"))
    elif how == "unstable":
        tensors["prior.coefficients"] = tensors["prior.coefficients"] * 1.5
    elif how == "scalar":
        tensors["net.enter.bias"] = torch.tensor(1.0)
    elif how == "long amplitude":
        tensors["amplitude"] = torch.zeros(7)
    return tensors


@pytest.mark.parametrize(
    "how", ["missing", "no amplitude", "shape", "nan", "unstable", "scalar", "long amplitude"]
)
def test_weights_of_another_kind_are_refused(learner, tmp_path, how):
    path = tmp_path / "bad.safetensors"
    save_file({k: v.clone().contiguous() for k, v in damaged(learner.tensors(), how).items()}, path)
    with pytest.raises(UserError, match="not a head-motion model") as caught:
        HeadMotionLearner.load(path=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"text", b"\x80\x04cos\nsystem\n", os.urandom(64)])
def test_files_that_hold_no_weights_are_refused(tmp_path, content):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="--head_motion"):
        HeadMotionLearner.load(path=path)
    with pytest.raises(UserError, match="--head_motion"):
        HeadMotionLearner.load(path=Path(tmp_path / "none.safetensors"))
