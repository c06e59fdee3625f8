"""Expression learner: prediction in blocks, silence, training and its resumption, the shipped weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from face.expression_basis import lip_gap, load_basis
from models import expression_trainer as trainer
from models.expression import CONTEXT_FRAMES, Calibration, ExpressionConfig, ExpressionLearner, ExpressionNet
from models.expression_augment import AugmentedClips, change_voice
from util.errors import UserError
from util.types import FPS, SAMPLE_RATE, Voice

REPO = Path(__file__).resolve().parents[1]
PACK = REPO.parent / "shared" / "pack" / "data"
TINY = ExpressionConfig(channels=8, filters=(2, 4), dropout=0.0, n_members=1)


@dataclass(frozen=True)
class Clip:
    """A made-up talker: the lips open with the loudness."""

    id: str
    identity: str
    voice: Voice
    coefficients: np.ndarray
    lip_gap: np.ndarray
    rest_gap: float = 0.02


def talker(n_frames: int, seed: int) -> Clip:
    rng = np.random.default_rng(seed)
    opening = np.convolve(rng.random(n_frames), np.hanning(7) / 3, "same").astype(np.float32)
    sound = rng.standard_normal(n_frames * SAMPLE_RATE // FPS) * np.repeat(opening, SAMPLE_RATE // FPS)
    coefficients = opening[:, None] * rng.standard_normal(load_basis().n_components)
    return Clip(
        f"c{seed}", f"p{seed % 2}", Voice((0.1 * sound).astype(np.float32)), coefficients.astype(np.float32),
        0.1 * opening,
    )  # fmt: skip


def tiny_learner(calibration: Calibration | None = None) -> ExpressionLearner:
    torch.manual_seed(0)
    k = load_basis().n_components
    return ExpressionLearner(
        [ExpressionNet(k, TINY)], np.eye(k, dtype=np.float32)[0], calibration or Calibration(), TINY
    )


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny convolutions on many threads wait for each other more than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shipped() -> ExpressionLearner:
    return ExpressionLearner.load()


def test_prediction_has_the_voices_frames() -> None:
    track = tiny_learner().predict(talker(31, 0).voice)
    assert track.coefficients.shape == (31, load_basis().n_components)
    assert track.lip_gap.shape == (31,)
    assert track.coefficients.dtype == track.lip_gap.dtype == np.float32
    assert track.lip_gap.min() >= 0


@pytest.mark.parametrize("n_samples", [640, 641, 700, 16000])
def test_any_length_from_one_frame_on(n_samples: int) -> None:
    voice = Voice(np.full(n_samples, 0.1, np.float32))
    assert len(tiny_learner().predict(voice).lip_gap) == voice.n_frames


@pytest.mark.parametrize("block", [13, 64])
def test_blocks_do_not_change_the_result(block: int, shipped: ExpressionLearner) -> None:
    voice = talker(150, 1).voice
    whole, parts = shipped.raw(voice, 10_000), shipped.raw(voice, block)
    np.testing.assert_allclose(parts, whole, atol=2e-4)


def test_an_output_sees_no_further_than_its_context() -> None:
    net = tiny_learner().nets[0]
    features = torch.randn(1, 4 * (2 * CONTEXT_FRAMES + 3), 64, requires_grad=True)
    net(features)[0, CONTEXT_FRAMES + 1].sum().backward()
    seen = features.grad.abs().sum((0, 2)).reshape(-1, 4).sum(1)
    assert float(seen[0]) == 0
    assert float(seen[-1]) == 0


def test_the_same_voice_gives_the_same_track(shipped: ExpressionLearner) -> None:
    voice = talker(60, 2).voice
    first, second = shipped.predict(voice), shipped.predict(voice)
    np.testing.assert_array_equal(first.coefficients, second.coefficients)
    np.testing.assert_array_equal(first.lip_gap, second.lip_gap)


def test_the_mesh_opens_as_far_as_the_lips() -> None:
    learner = tiny_learner(Calibration(0.1, -0.05, 1.2, 0.03))
    basis = load_basis()
    learner.synergy = (np.eye(32)[0] / lip_gap(basis.components)[0]).astype(np.float32)
    track = learner.predict(talker(40, 3).voice)
    np.testing.assert_allclose(0.03 + lip_gap(basis.offsets(track.coefficients)), track.lip_gap, atol=1e-4)


def test_every_parameter_gets_a_gradient() -> None:
    clips = [talker(100, 4), talker(30, 5)]
    augmented = AugmentedClips(clips, trainer.clip_scales(clips))
    rng = np.random.default_rng(0)
    batch = trainer.Batch.stack([augmented.draw(0, 80, rng) for _ in range(8)], torch.device("cpu"))
    net = ExpressionNet(32, TINY)
    losses = trainer.expression_loss(net(batch.features), batch, trainer.mouth_metric(load_basis()))
    assert all(torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()
    without = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_a_perfect_answer_costs_nothing() -> None:
    clips = [talker(100, 6)]
    sample = AugmentedClips(clips, trainer.clip_scales(clips)).draw(0, 80, np.random.default_rng(3))
    batch = trainer.Batch.stack([sample], torch.device("cpu"))
    said = torch.cat([batch.lip_gap[..., None], batch.coefficients], -1)
    assert (
        float(sum(trainer.expression_loss(said, batch, trainer.mouth_metric(load_basis())).values())) < 1e-3
    )


def test_changed_voices_stay_positive_and_finite() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        power = change_voice(rng.random((120, 64)).astype(np.float32), rng)
        assert power.dtype == np.float32
        assert np.isfinite(power).all()
        assert power.min() > 0


def test_training_lowers_the_loss_and_resumes_to_the_same_losses(tmp_path: Path, monkeypatch) -> None:
    clips = [talker(120, i) for i in range(3)] + [talker(30, 9)]
    plan = {"epochs": 3, "batch_size": 4, "config": TINY, "steps": 6}
    whole = trainer.train_expression(clips, tmp_path / "a.safetensors", **plan)
    assert whole[-1] < whole[0]

    save, saved = trainer.save_tensors, []

    def save_twice(*args) -> None:
        save(*args)
        saved.append(args[0])
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "save_tensors", save_twice)
    with pytest.raises(KeyboardInterrupt):
        trainer.train_expression(clips, tmp_path / "b.safetensors", **plan)
    assert not (tmp_path / "b.safetensors").exists()
    assert trainer.train_expression(clips, tmp_path / "b.safetensors", **plan) == whole
    first, second = (ExpressionLearner.load(path=tmp_path / f"{x}.safetensors") for x in "ab")
    np.testing.assert_array_equal(first.raw(clips[0].voice), second.raw(clips[0].voice))


def test_progress_of_another_training_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    trainer.save_tensors(out.with_suffix(".training.safetensors"), {}, {"plan": {"epochs": 1}, "losses": []})
    with pytest.raises(UserError, match="same settings"):
        trainer.train_expression([talker(50, 0)], out, 2, 2, config=TINY, steps=1)


def test_training_needs_clips(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no talking clip"):
        trainer.train_expression([], tmp_path / "x.safetensors")


def test_saved_weights_give_the_same_answer(tmp_path: Path) -> None:
    learner, voice = tiny_learner(), talker(30, 7).voice
    learner.save(tmp_path / "w.safetensors")
    again = ExpressionLearner.load(path=tmp_path / "w.safetensors")
    np.testing.assert_allclose(again.raw(voice), learner.raw(voice), atol=5e-3)  # half precision


@pytest.mark.parametrize("keep", [0, 5, 400, -100])
def test_truncated_weights_are_one_line(tmp_path: Path, keep: int) -> None:
    tiny_learner().save(tmp_path / "w.safetensors")
    data = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(data[:keep])
    with pytest.raises(UserError) as error:
        ExpressionLearner.load(path=tmp_path / "w.safetensors")
    assert "\n" not in str(error.value)


def test_weights_of_another_model_or_basis_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    trainer.save_tensors(path, {"x": torch.zeros(2)}, {"config": {"layers": 3}})
    with pytest.raises(UserError, match="not of this model"):
        ExpressionLearner.load(path=path)
    learner = tiny_learner()
    learner.save(path)
    tensors, note = trainer.load_tensors(path, "w")
    trainer.save_tensors(path, tensors, note | {"basis": "another"})
    with pytest.raises(UserError, match="another expression basis"):
        ExpressionLearner.load(path=path)


@pytest.mark.parametrize("level", [0.0, 1e-4, 0.02])
def test_lips_are_closed_in_silence_and_in_an_empty_room(level: float, shipped: ExpressionLearner) -> None:
    noise = level * np.random.default_rng(0).standard_normal(4 * SAMPLE_RATE)
    track = shipped.predict(Voice(noise.astype(np.float32)))
    assert np.percentile(track.lip_gap, 90) < 0.02


def test_lips_close_in_a_pause_and_open_in_speech(shipped: ExpressionLearner) -> None:
    from util.audio import read_voice

    samples = read_voice(next((REPO / "demo").glob("*.[fw][la][av]*")), "--audio_path").samples
    paused = np.concatenate([samples[: 2 * SAMPLE_RATE], np.zeros(SAMPLE_RATE, np.float32), samples])
    gap = shipped.predict(Voice(paused)).lip_gap
    assert gap[2 * FPS + 5 : 3 * FPS - 5].max() < 0.02
    assert np.percentile(gap[: 2 * FPS], 90) > 0.03


def test_shipped_weights_are_small() -> None:
    from models.expression import EXPRESSION_FILE
    from util.checkpoints import checkpoint_path

    assert checkpoint_path(EXPRESSION_FILE).stat().st_size < 4e6


@pytest.mark.pack
def test_new_sentences_of_a_known_speaker_are_followed(shipped: ExpressionLearner) -> None:
    if not PACK.is_dir():
        pytest.skip("../shared/pack is not there")
    from data.motion_dataset import motion_clip
    from data.pack import read_manifest
    from face.tracker import track_frames
    from util.audio import read_voice
    from util.video import read_frames

    correlations = []
    for row in [r for r in read_manifest(PACK) if r.split == "dev" and r.identity == "grid_s1"][-3:]:
        track = track_frames(read_frames(row.path, "clip"), "clip")
        clip = motion_clip(row, track, read_voice(row.path, "clip"), load_basis())
        said = shipped.predict(clip.voice).lip_gap[: clip.n_frames]
        correlations.append(np.corrcoef(said, clip.lip_gap[: len(said)])[0, 1])
    assert np.median(correlations) > 0.7
