"""Training of the image networks, step by step, on samples of 32 pixels."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_training import TinyFaces, tiny_options, tiny_trainer, train
from torch.utils.tensorboard import SummaryWriter

from models import train_images
from models.batch_order import EpochBatches, Place, PlacedSamples
from models.ema import AveragedWeights
from models.flow_teacher import MeshTeacher
from models.flow_truth import FlowTruth
from models.generator_config import config_from_flags
from models.image_trainer import base_rates
from models.mesh_flow import previous_flow
from models.schedule import n_epochs, plan_epoch
from models.step_guard import StepGuard
from models.training_page import KEPT, TrainingPage
from util.batch import FaceBatch
from util.errors import UserError


def batch_of(n: int = 2, n_frames: int = 1) -> FaceBatch:
    faces = TinyFaces()
    faces.set_epoch(1, n_frames)
    return FaceBatch.stack([faces[i] for i in range(n)])


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--add_face_D", "--add_mouth_D", "--num_D", "2"],
        ["--n_frames_G", "3", "--niter_single", "0"],
        ["--amp", "on"],
    ],
    ids=["plain", "critics", "temporal", "bf16"],
)
def test_one_step_trains_every_parameter(tmp_path: Path, flags: list[str]) -> None:
    options = tiny_options(*flags)
    trainer, plan = tiny_trainer(tmp_path, options), plan_epoch(options, 1)
    before = [p.clone() for p in trainer.state.generator.parameters()]
    result = trainer.step(batch_of(n_frames=plan.n_frames), plan)
    assert not result.fault
    assert all(math.isfinite(v) for v in result.losses.values())
    assert len(result.made) == plan.n_frames
    assert not any(syn.image.requires_grad for syn in result.made)
    for side in (trainer.state.generator, trainer.state.critics):
        assert [n for n, p in side.named_parameters() if p.grad is None] == []
    changed = [
        bool((a != b).any()) for a, b in zip(before, trainer.state.generator.parameters(), strict=True)
    ]
    assert sum(changed) > 0.5 * len(changed)  # some gradients are 0 at first


def test_critics_learn_nothing_in_the_generators_half(tmp_path: Path) -> None:
    options = tiny_options("--gan_start", "3")
    trainer = tiny_trainer(tmp_path, options)
    result = trainer.step(batch_of(), plan_epoch(options, 2))
    assert all(p.grad is None for p in trainer.state.critics.parameters())
    assert not any(name.startswith(("gan", "feat", "d_")) for name in result.losses)
    later = trainer.step(batch_of(), plan_epoch(options, 3))
    assert {"gan", "feat", "d_frame_real"} <= later.losses.keys()


def test_later_frames_follow_the_generated_one_or_the_true_one(tmp_path: Path) -> None:
    options = tiny_options("--n_frames_G", "2", "--niter_single", "0")
    step = tiny_trainer(tmp_path, options).generator_step
    batch = batch_of(n_frames=2)
    made = [step(batch, torch.tensor([truth, truth]), False)[1] for truth in (True, False)]
    torch.testing.assert_close(made[0][0].image, made[1][0].image)
    assert "prev" not in made[0][0].warped
    assert not torch.equal(made[0][1].warped["prev"], made[1][1].warped["prev"])


def test_no_loss_left_is_an_error(tmp_path: Path) -> None:
    options = tiny_options("--lambda_gan", "0", "--lambda_feat", "0", "--lambda_warp", "0")
    with pytest.raises(UserError, match="no loss is left"):
        tiny_trainer(tmp_path, options).step(batch_of(), plan_epoch(options, 1))


class HoledFaces(TinyFaces):
    """From sample 4 on, targets are not numbers."""

    def __getitem__(self, index: int) -> FaceBatch:
        sample = super().__getitem__(index)
        return replace(sample, tgt_image=sample.tgt_image * math.nan) if index >= 4 else sample


def test_bad_steps_are_skipped_and_counted(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, tiny_options("--niter", "1", "--serial_batches", "--display_freq", "1"))
    results, weights = [], []

    def note(at: object, result: object) -> None:
        results.append(result)
        weights.append([p.clone() for p in trainer.state.generator.parameters()])

    trainer.fit(HoledFaces(), note)
    assert [bool(r.fault) for r in results] == [False, False, True, True]
    assert "loss feat" in results[2].fault
    assert trainer.state.guard.n_skipped == 2
    assert trainer.state.average.n_updates == 2
    assert all(torch.equal(a, b) for a, b in zip(weights[1], weights[3], strict=True))
    assert all(p.isfinite().all() for p in trainer.state.generator.parameters())


def test_too_many_bad_steps_end_training_and_keep_the_checkpoint(tmp_path: Path) -> None:
    flags = ["--niter", "9", "--serial_batches", "--max_bad_steps", "2", "--save_latest_freq", "2"]
    with pytest.raises(UserError, match=r"--max_bad_steps 2: .* loss .*feat.* is not a finite number"):
        train(tmp_path, *flags, dataset=HoledFaces())
    kept = (tmp_path / "training.safetensors").read_bytes()
    assert b'\\"step\\": 2' in kept[:100_000]


def test_divergence_and_wild_gradients_are_faults() -> None:
    guard = StepGuard(3)
    assert not any(guard.fault("generator", {"gan": 1.0 + i / 100}, 1.0) for i in range(30))
    assert "100 times the usual" in guard.fault("generator", {"gan": 500.0}, 1.0)
    assert "gradient" in guard.fault("generator", {"gan": 1.0}, math.inf)
    assert not guard.fault("generator", {"gan": 1.1}, 1.0)
    guard.count("a reason")
    guard.count("")
    assert (guard.in_row, guard.n_skipped) == (0, 1)


def test_averaged_weights() -> None:
    net = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(net.weight, 1.0)
    average = AveragedWeights(net, 0.9)
    torch.nn.init.constant_(net.weight, 2.0)
    expected = 1.0
    for n in range(200):
        average.update(net)
        keep = min(0.9, (1 + n) / (10 + n))
        expected = keep * expected + (1 - keep) * 2.0
        if n in (0, 3, 199):
            assert average.module.weight.item() == pytest.approx(expected, rel=1e-5)
    assert not average.module.weight.requires_grad
    assert not average.module.training


def test_schedule() -> None:
    options = tiny_options("--niter", "4", "--niter_decay", "3", "--gan_start", "2")
    assert n_epochs(options) == 7
    plans = [plan_epoch(options, e) for e in range(1, 8)]
    assert [p.rate for p in plans] == pytest.approx([1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert [p.adversarial for p in plans] == [False] + [True] * 6
    options = tiny_options("--niter", "90", "--n_frames_G", "2", "--niter_single", "50")
    lengths = {e: plan_epoch(options, e).n_frames for e in (1, 50, 51, 60, 61, 71, 81, 90)}
    assert lengths == {1: 1, 50: 1, 51: 2, 60: 2, 61: 4, 71: 8, 81: 16, 90: 16}
    assert plan_epoch(options, 51).rate == pytest.approx(0.1)
    assert base_rates(tiny_options().optimiser) == {"generator": 2e-4, "critics": 8e-4}
    assert base_rates(tiny_options("--no_TTUR").optimiser) == {"generator": 4e-4, "critics": 4e-4}


def test_slices_grow_no_longer_than_the_clips(tmp_path: Path) -> None:
    class ShortClips(TinyFaces):
        def set_epoch(self, epoch: int, n_frames: int | None = None) -> None:
            if (n_frames or 0) > 2:
                raise UserError("too long")
            super().set_epoch(epoch, n_frames)

    faces = ShortClips(2)
    flags = ["--niter", "3", "--n_frames_G", "2", "--niter_single", "1", "--niter_step", "1"]
    losses = train(tmp_path, *flags, dataset=faces)
    assert faces.n_frames == 2
    assert ["gan_temp" in step for step in losses] == [False, True, True]


def epoch_of(epoch: int, n: int, start: int = 0, **how: int) -> list[list[int]]:
    batches = EpochBatches(4, 3, **how)
    batches.go_to(epoch, 1, n, start)
    found = [[place.index for place in batch] for batch in batches]
    assert len(found) == len(batches)
    return found


def test_batches_of_all_processes_are_one_processs() -> None:
    whole = epoch_of(2, 11)
    parts = [epoch_of(2, 11, rank=r, world_size=2) for r in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole
    assert sorted({i for batch in whole for i in batch}) == list(range(11))
    assert whole[2][3] == whole[0][0]  # filled from the beginning
    assert epoch_of(2, 11, start=4) == whole[1:]
    assert epoch_of(3, 11) != whole
    assert epoch_of(2, 3, shuffle=False) == [[0, 1, 2, 0]]


def test_samples_are_those_of_their_place() -> None:
    faces = TinyFaces(3)
    samples = PlacedSamples(faces)
    assert [len(samples[Place(5, 2, i)].tgt_image) for i in (2, 0)] == [2, 2]
    assert (faces.read, faces.epoch, faces.n_frames) == ([2, 0], 5, 2)
    samples[Place(6, 2, 1)]
    assert (faces.epoch, faces.n_frames) == (6, 2)


def test_datasets_order_is_kept(tmp_path: Path) -> None:
    faces = TinyFaces(4)
    faces.order = lambda: [3, 1, 0, 2]  # as shards that are fetched have it
    train(tmp_path, "--niter", "1", dataset=faces)
    assert faces.read == [3, 1, 0, 2]


def test_generator_fits_what_samples_have(capsys: pytest.CaptureFixture[str]) -> None:
    config = config_from_flags(tiny_options().generator, True)
    assert "ani" in config.sources
    faces = TinyFaces(4)
    assert train_images._fitting(config, faces) == config
    faces.has_flow, faces.has_ani = False, True
    assert train_images._fitting(config, faces) == replace(config, mesh_flow=False)
    assert "as with --mesh_flow off" in capsys.readouterr().err
    faces.has_ani = False
    with pytest.raises(UserError, match="--warp_ani: the clips under --dataroot come without"):
        train_images._fitting(config, faces)
    without = replace(config, warp_ani=False, mesh_flow=False)
    assert train_images._fitting(without, faces) == without


def test_readers_follow_the_epochs(tmp_path: Path) -> None:
    flags = ["--niter", "3", "--n_frames_G", "2", "--niter_single", "2"]
    alone, readers = (train(tmp_path / n, *flags, "--nThreads", n, dataset=TinyFaces(4)) for n in "02")
    assert alone == readers


def test_page_curves_and_weights_are_written(tmp_path: Path) -> None:
    train(tmp_path, "--niter", "1", "--display_freq", "2", "--save_epoch_freq", "1")
    page = (tmp_path / "web" / "index.html").read_text()
    assert page.index("step 4") < page.index("step 2")
    shown = {p.stem.split("_", 3)[3] for p in (tmp_path / "web" / "images").iterdir()}
    assert shown >= {"reference0", "target", "sketch", "ani", "warped_ref", "weight_ani", "raw", "final"}
    assert list((tmp_path / "curves").glob("events.*"))
    assert (tmp_path / "1_G.safetensors").read_bytes() == (tmp_path / "latest_G.safetensors").read_bytes()
    assert not list(tmp_path.rglob(".part-*"))


def test_page_keeps_the_newest_entries(tmp_path: Path) -> None:
    for step in range(KEPT + 3):
        TrainingPage(tmp_path).add(
            1, step, {"final": torch.zeros(3, 4, 4), "weight_ref": torch.zeros(1, 4, 4)}
        )
    assert len(list(tmp_path.glob("images/*.png"))) == 2 * KEPT
    assert "step 3<" in (tmp_path / "index.html").read_text()
    assert "step 2<" not in (tmp_path / "index.html").read_text()


def test_flow_truth_shows_the_teacher_what_the_sources_show() -> None:
    seen = {}

    def teacher(target: torch.Tensor, source: torch.Tensor, flow: object, mask: object) -> tuple:
        seen[len(seen)] = (target, source)
        return torch.zeros_like(target[:, :2]), torch.ones_like(target[:, :1])

    batch = batch_of(n_frames=2)
    batch.ani_image[:, :, :, :8] = -1  # black: no face there
    truth = FlowTruth(teacher, crop_ref=True)(batch, 1, ("ref", "ani", "prev"))
    assert list(truth) == ["ref", "ani", "prev"]
    blank = (batch.template[:, 1] > 0).expand(-1, 3, -1, -1)
    assert (seen[0][0][blank] == -1).all()
    assert torch.equal(seen[0][0][~blank], batch.tgt_image[:, 1][~blank])
    assert (seen[1][0][:, :, :8] == -1).all()
    assert torch.equal(seen[1][0][:, :, 8:], batch.tgt_image[:, 1, :, 8:])
    assert torch.equal(seen[2][1], batch.tgt_image[:, 0])


def test_the_mesh_teaches_where_its_flow_is_known() -> None:
    batch, ask = batch_of(n_frames=2), FlowTruth(MeshTeacher())
    truth = ask(batch, 1, ("ref", "ani", "prev"))
    assert torch.equal(truth["ref"][0], batch.warp_flow[:, 1])
    assert not truth["ani"][0].any()
    torch.testing.assert_close(truth["prev"][0], previous_flow(batch.warp_flow[:, 1], batch.warp_flow[:, 0]))
    assert list(ask(replace(batch, warp_flow=None), 1, ("ref", "ani", "prev"))) == ["ani"]


def test_training_from_the_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_images, "checkpoint_path", lambda name: tmp_path / name)
    options = tiny_options("--name", "run", "--niter", "1", "--flow_teacher", "mesh")
    path = train_images.train_images(options, TinyFaces, "cpu")
    assert path == tmp_path / "run" / "latest_G.safetensors"
    assert path.is_file()
    with pytest.raises(UserError, match="--fineSize 96: needs a multiple of 64"):
        train_images.train_images(tiny_options("--n_downsample_G", "5", "--fineSize", "96"), TinyFaces, "cpu")
    with pytest.raises(UserError, match="no sample to train on"):
        train_images.train_images(tiny_options("--no_flow_gt"), lambda: TinyFaces(0), "cpu")


def test_options_that_cannot_be_trained_are_refused(tmp_path: Path) -> None:
    for flags, told in (
        (["--preset", "upstream"], "--preset upstream: is for loading the public weights"),
        (["--netG", "geometric"], "--netG geometric: has nothing to train"),
        (["--which_epoch", "3", "--continue_train"], "--which_epoch 3: training goes on from latest only"),
    ):
        with pytest.raises(UserError, match=told):
            tiny_options("--dataroot", str(tmp_path), *flags).check_ready()


def test_a_page_that_cannot_be_written_does_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TrainingPage, "add", full)
    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    assert len(train(tmp_path, "--niter", "1", "--display_freq", "1")) == 4
    told = capsys.readouterr().err
    assert told.count("the page of this training cannot be written") == 1
    assert told.count("the curves of this training cannot be written") == 1
