"""Fine-tuning: the loss falls, only what is named changes and only in a copy, and --finetune reaches it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import faces
import numpy as np
import pytest
import torch
from tiny_generator import TINY_LITE, tiny_generator
from tiny_training import TinyFaces

import talking_head
from data.reference_samples import PHOTO_VARIANTS, ReferenceSamples, clip_faces
from face.pose import apply_pose, fit_pose, to_canonical
from face.reference import Reference, ReferenceFace
from models.fewshot import FewShotFrames
from models.finetune import TUNED, TuningPlan, finetune, tuned_parameters, tuning_loss
from models.generator import FewShotGenerator
from models.geometric import FaceMotion, GeometricGenerator
from models.geometry_stage import GeometryStage
from models.perceptual import PerceptualFeatures
from options import parse_demo
from talking_head import TalkingHead
from util.batch import FaceBatch
from util.video import VideoWriter

SIZE = 64
NET = PerceptualFeatures()
QUICK = TuningPlan(steps=3, rate=0.01)


def noise(n: int) -> list[FaceBatch]:
    """n samples out of thin air, whose targets are plain, so that they can be learnt."""
    drawn = TinyFaces(n)
    return [replace(drawn[k], tgt_image=torch.full_like(drawn[k].tgt_image, 0.5)) for k in range(n)]


def state(generator: FewShotGenerator) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in generator.state_dict().items()}


def changed(before: dict[str, torch.Tensor], generator: FewShotGenerator) -> set[str]:
    return {name for name, tensor in generator.state_dict().items() if not torch.equal(tensor, before[name])}


def small_faces(n: int) -> list[ReferenceFace]:
    """The portrait's face at SIZE pixels, n times, each a little farther right."""
    own = faces.reference().ani
    made = []
    for k in range(n):
        image = np.roll(own.image[:: 256 // SIZE, :: 256 // SIZE], k, 1)
        vertices = (own.vertices * (SIZE / 256) + [k, 0, 0]).astype(np.float32)
        pose = fit_pose(vertices[None], faces.basis().template)
        canonical = to_canonical(vertices[None], pose)[0]
        made.append(replace(own, image=image, vertices=vertices, canonical=canonical, pose=pose))
    return made


def small_samples(n: int, n_shot: int = 1, crop_ref: bool = False) -> ReferenceSamples:
    persons = small_faces(n)
    return ReferenceSamples(persons, n_shot, GeometryStage(), persons[0], crop_ref)


@pytest.mark.parametrize(
    "changes", [{}, {"composition": "linear"}, {"temporal": True}, {"adaptive_spade": False}]
)
def test_loss_falls_in_a_copy(changes: dict) -> None:
    generator = tiny_generator(**changes).eval().requires_grad_(False)
    before, samples = state(generator), noise(1)
    net = None if changes else NET
    tuned = finetune(generator, samples, net, TuningPlan(steps=12 if net else 30, rate=0.01))
    assert not changed(before, generator)
    of_first_frames = {name for name in tuned_parameters(tuned) if ".prev." not in name}
    assert changed(before, tuned) == of_first_frames
    assert tuning_loss(tuned, samples, net) < 0.97 * tuning_loss(generator, samples, net)
    assert not tuned.training
    assert not any(p.requires_grad for p in [*tuned.parameters(), *generator.parameters()])


def test_what_is_tuned() -> None:
    names = set(tuned_parameters(tiny_generator()))
    for part in TUNED:
        assert any(name.startswith(part) for name in names), part
    assert not [n for n in names if n.startswith(("flow", "target", "composed", "embedding.image"))]


def test_same_seed_same_weights_other_seed_other_weights() -> None:
    generator, samples = tiny_generator(), noise(4)
    tuned = [finetune(generator, samples, None, replace(QUICK, seed=seed)) for seed in (5, 5, 6)]
    assert not changed(state(tuned[0]), tuned[1])
    assert changed(state(tuned[0]), tuned[2])


def test_no_steps_no_samples() -> None:
    generator = tiny_generator()
    assert not changed(state(generator), finetune(generator, noise(1), None, TuningPlan(steps=0)))
    with pytest.raises(ValueError, match="no sample"):
        finetune(generator, [], None)


@pytest.mark.parametrize("n_shot", [1, 4])
def test_every_ordered_pair_is_a_sample(n_shot: int) -> None:
    samples = small_samples(3, n_shot)
    pictures = [torch.tensor(f.image).permute(2, 0, 1) / 127.5 - 1 for f in small_faces(3)]
    which = lambda image: next(k for k, p in enumerate(pictures) if torch.equal(p, image))  # noqa: E731
    pairs = []
    for sample in samples:
        warped, target = which(sample.warp_image[0]), which(sample.tgt_image[0])
        shown = [which(image) for image in sample.ref_image]
        assert len(shown) == n_shot
        assert warped in shown
        assert target not in shown
        pairs.append((warped, target))
    assert sorted(pairs) == [(a, b) for a in range(3) for b in range(3) if a != b]
    same, again = samples[1], samples[1]
    assert torch.equal(same.warp_flow, again.warp_flow)
    with pytest.raises(IndexError):
        samples[len(samples)]


@pytest.mark.parametrize("crop_ref", [False, True])
def test_samples_are_what_synthesis_gets(crop_ref: bool) -> None:
    """Frame by frame, of a clip re-made from its own frame."""
    own, target = small_faces(2)
    sample = FaceBatch.stack([small_samples(2, crop_ref=crop_ref)[0]]).frame(0)
    reference = Reference((own,), own, own.image, own.canonical)
    geometric = GeometricGenerator(own, faces.basis(), depth=1.0, crispness=0.0)
    motion = FaceMotion(target.canonical[None], target.pose, np.zeros((1, 2), np.float32))
    frames = FewShotFrames(FewShotGenerator(replace(TINY_LITE, crop_ref=crop_ref)).eval(), reference)
    given = frames.inputs(geometric.project(motion), geometric.target_vertices(motion))
    for name in ("warp_image", "warp_sketch", "warp_flow", "ani_image", "ani_mask"):
        assert torch.equal(getattr(sample, name), getattr(given, name)), name
    assert (
        sample.sketch - given.sketch
    ).abs().mean() < 1e-3  # meshes come back within a hundredth of a pixel
    assert np.abs(apply_pose(target.canonical[None], target.pose)[0] - target.vertices).max() < 0.01


@pytest.mark.parametrize("n_shot", [1, 4])
def test_a_photo_is_tuned_on_itself(n_shot: int) -> None:
    samples = small_samples(1, n_shot)
    assert len(samples) == PHOTO_VARIANTS
    plain, mirrored = samples[0], samples[1]
    assert plain.ref_image.shape == (n_shot, 3, SIZE, SIZE)
    assert torch.equal(plain.tgt_image, plain.warp_image)
    assert torch.equal(plain.tgt_sketch.flip(-1), mirrored.tgt_sketch)
    assert not torch.equal(plain.tgt_image.flip(-1), mirrored.tgt_image)  # the light is another
    generator = FewShotGenerator(TINY_LITE).eval()
    tuned = finetune(generator, samples, None, TuningPlan(steps=30, rate=0.001))
    few = [samples[k] for k in range(4)]
    assert tuning_loss(tuned, few, None) < tuning_loss(generator, few, None)


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The portrait, sliding by a pixel a frame, for 10 frames."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    with VideoWriter(path, 320, 320) as video:
        for k in range(10):
            video.write(np.ascontiguousarray(faces.portrait()[20:340, 40 + k : 360 + k]))
    return path


def words(path: Path, folder: Path, *more: str) -> list[str]:
    return [*("--ref_video_path", str(path), "--results_dir", str(folder), "--gpu_ids", "-1"), *more]


def test_faces_of_a_clip_lie_in_one_crop(moving: Path, tmp_path: Path) -> None:
    options = parse_demo(words(moving, tmp_path, "--audio_path", str(moving)))
    reference = TalkingHead().reference(options)
    found = clip_faces(moving, 16, reference, faces.basis())  # frames 0, 4 and 8
    assert len(found) == 3
    assert {f.box for f in found} == {reference.ani.box}
    assert np.abs(found[0].vertices - reference.ani.vertices).mean() < 1
    moved = (found[2].vertices - found[0].vertices)[:, 0].mean() * reference.ani.box.side / 256
    assert moved == pytest.approx(-8, abs=1)
    assert len(clip_faces(moving, 64, reference, faces.basis())) == 10
    assert clip_faces(faces.PORTRAIT, 16, faces.reference(), faces.basis()) == [faces.reference().ani]


@pytest.fixture
def tunings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[FewShotGenerator, int, TuningPlan]]:
    """What `finetune` is called with by the pipeline, which takes two steps instead of all."""
    calls = []

    def few_steps(generator: FewShotGenerator, samples: ReferenceSamples, net: object, plan: TuningPlan):
        calls.append((generator, len(samples), plan))
        return finetune(generator, samples, net, replace(QUICK, steps=2))

    monkeypatch.setattr(talking_head, "finetune", few_steps)
    return calls


@pytest.fixture
def head() -> TalkingHead:
    torch.manual_seed(0)
    return TalkingHead(
        "cpu", FewShotGenerator(replace(TINY_LITE, n_downsample=3)).eval().requires_grad_(False)
    )


def test_flag_tunes_each_clip_from_the_original(
    tunings: list, head: TalkingHead, moving: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, animate = [], TalkingHead.animate

    def few_frames(self: TalkingHead, reference: Reference, driving: object):
        used.append(self.network)
        return animate(self, reference, replace(driving, n_frames=2))

    monkeypatch.setattr(TalkingHead, "animate", few_frames)
    before = state(head.network)
    voice = str(faces.REPO / "demo" / "voice.flac")
    common = ("--audio_path", voice, "--netG", "fewshot", "--head_motion", "still", "--seed", "7")
    for source, more in ((moving, ("--finetune_shot", "16")), (faces.PORTRAIT, ("--n_shot", "2"))):
        options = parse_demo(words(source, tmp_path, *common, "--finetune", *more))
        assert talking_head.make_video(options, head).is_file()
    assert [(n, plan) for _, n, plan in tunings] == [
        (3 * 2, TuningPlan(seed=7)),
        (PHOTO_VARIANTS, TuningPlan(seed=7)),
    ]
    assert all(generator is head.network for generator, _, _ in tunings)
    assert not changed(before, head.network)
    assert all(changed(before, network) for network in used)
    talking_head.make_video(parse_demo(words(faces.PORTRAIT, tmp_path, *common)), head)
    assert used[-1] is head.network  # without the flag


def test_without_a_network_there_is_a_remark(
    tunings: list, moving: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = parse_demo(words(moving, tmp_path, "--audio_path", str(moving), "--finetune"))
    assert "--netG geometric makes no use of --finetune" in capsys.readouterr().err
    same = TalkingHead()
    assert same.finetuned(options, faces.reference(), QUICK) is same
    assert "--finetune" in capsys.readouterr().err
    assert not tunings
