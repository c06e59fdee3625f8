"""The learnt generator in the pipeline: loading, encoding once, frames in order, and what is refused."""

from __future__ import annotations

import io
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import faces
import numpy as np
import pytest
import torch
from tiny_generator import TINY_LITE

from face.landmarks68 import to_landmarks68
from models import fewshot
from models.fewshot import FewShotFrames, load_generator
from models.generator import FewShotGenerator
from models.generator_config import GeneratorConfig
from options import parse_demo
from talking_head import TalkingHead, find_generator
from util.checkpoints import save_tensors
from util.errors import UserError

SMALL = replace(TINY_LITE, n_downsample=3)


def saved(path: Path, config: GeneratorConfig = SMALL, note: dict | None = None) -> FewShotGenerator:
    """A generator of random weights, written as training writes it."""
    torch.manual_seed(0)
    generator = FewShotGenerator(config).eval()
    written = {"format": "fewshot", "config": config.to_json_dict()} if note is None else note
    save_tensors(path, generator.state_dict(), written)
    return generator


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for checkpoints/, with a shipped generator and the run "mine"."""
    monkeypatch.setattr(fewshot, "checkpoint_path", lambda name: tmp_path / name)
    monkeypatch.setattr("talking_head.checkpoint_path", lambda name: tmp_path / name)
    saved(tmp_path / "generator.safetensors")
    saved(tmp_path / "mine" / "latest_G.safetensors", replace(SMALL, ngf=6))
    return tmp_path


def two_motions() -> faces.FaceMotion:
    one, other = faces.motion(), faces.motion(yaw=8)
    pose = faces.Pose(
        *(np.concatenate([getattr(m.pose, f) for m in (one, other)]) for f in faces.Pose.__dataclass_fields__)
    )
    return faces.FaceMotion(
        np.concatenate([one.canonical, other.canonical]), pose, np.zeros((2, 2), np.float32)
    )


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    generator = saved(tmp_path / "g.safetensors")
    loaded = load_generator(tmp_path / "g.safetensors")
    assert loaded.config == SMALL
    assert not loaded.training
    for name, value in generator.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])


def test_inputs_are_what_the_face_shows() -> None:
    torch.manual_seed(0)
    frames = FewShotFrames(FewShotGenerator(SMALL).eval(), faces.reference())
    motion, geometric = two_motions(), faces.generator()
    vertices = geometric.target_vertices(motion)
    inputs = frames.inputs(geometric.project(motion), vertices)
    assert inputs.sketch.shape == (2, 1, 256, 256)
    assert inputs.ani_image.min() == -1
    assert inputs.ani_image[inputs.ani_mask.expand(-1, 3, -1, -1) > 0.9].mean() > -0.5
    x, y = to_landmarks68(vertices)[0, 36, :2].astype(int)
    assert inputs.sketch[0, 0, y - 2 : y + 3, x - 2 : x + 3].any()
    assert inputs.warp_flow[0].abs().max() < 1  # the reference's own pose
    assert inputs.warp_flow[1].abs().max() > 3
    assert torch.equal(inputs.warp_sketch[0], inputs.sketch[0])


def test_frames_of_a_temporal_generator_follow_one_another() -> None:
    """Whether frames come one by one or together, the second sees the first; without time it does not."""
    motion, geometric = two_motions(), faces.generator()
    shown, vertices = geometric.project(motion), geometric.target_vertices(motion)
    torch.manual_seed(0)
    generator = FewShotGenerator(replace(SMALL, temporal=True)).eval()
    together = FewShotFrames(generator, faces.reference())(shown, vertices)
    assert together.shape == (2, 3, 256, 256)
    alone = FewShotFrames(generator, faces.reference())
    one = replace(shown, **{n: getattr(shown, n)[1:] for n in shown.__dataclass_fields__})
    first_of_its_own = alone(one, vertices[1:])
    assert (together[1:] - first_of_its_own).abs().max() > 1e-3
    again = FewShotFrames(generator, faces.reference())(shown, vertices)
    assert torch.equal(together, again)


@pytest.mark.parametrize(("flags", "channels"), [([], 4), (["--name", "mine"], 6)])
def test_the_run_named_is_used_and_else_the_shipped_one(runs: Path, flags: list, channels: int) -> None:
    options = parse_demo(["--example", "--netG", "fewshot", *flags])
    assert find_generator(options, "cpu").config.ngf == channels


def test_flags_that_the_run_was_not_trained_with_are_refused(runs: Path) -> None:
    options = parse_demo(
        ["--example", "--netG", "fewshot", "--name", "mine", "--warp_ref", "--spade_combine"]
    )
    with pytest.raises(UserError, match="--use_new/--no_atten: asks for embedding fewshot"):
        find_generator(options, "cpu")


def test_the_shipped_one_stands_in_for_a_run_that_is_not_there(runs: Path, capsys) -> None:
    options = parse_demo(["--example", "--netG", "fewshot", "--name", "none", "--warp_ref"])
    assert find_generator(options, "cpu").config.ngf == 4
    assert "--name none: no such run under checkpoints/" in capsys.readouterr().err


def test_an_epoch_that_is_not_there_is_named(runs: Path) -> None:
    options = parse_demo(["--example", "--netG", "fewshot", "--name", "mine", "--which_epoch", "7"])
    with pytest.raises(UserError, match=r"7_G.safetensors: no such file"):
        find_generator(options, "cpu")


class Hostile:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_hostile_pickle_does_nothing_and_is_refused(tmp_path: Path, legacy: bool) -> None:
    path, trace = tmp_path / "latest_G.safetensors", tmp_path / "trace"
    torch.save({"config": Hostile(trace)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="is a pickle") as refused:
        load_generator(path)
    assert "\n" not in str(refused.value)
    assert not trace.exists()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _other(path: Path) -> None:
    saved(path, note={"format": "expression"})


def _sizes(path: Path) -> None:
    saved(path, note={"format": "fewshot", "config": replace(SMALL, ngf=8).to_json_dict()})


def _version(path: Path) -> None:
    saved(path, note={"format": "fewshot", "config": {"ngf": 4, "norm": "batch"}})


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a", io.BytesIO(b"b").read())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "is damaged or no checkpoint"),
        (_other, "holds expression; a generator is needed"),
        (_sizes, "differ in shape"),
        (_version, "not those of this version"),
        (_zip, "is a pickle"),
        (lambda p: p.write_bytes(b""), "the file is empty"),
        (lambda p: p.unlink(), "no such file"),
    ],
)
def test_a_checkpoint_that_is_none_is_refused_in_one_line(tmp_path: Path, damage, message: str) -> None:
    path = tmp_path / "g.safetensors"
    saved(path)
    damage(path)
    with pytest.raises(UserError, match=message) as refused:
        load_generator(path)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)


def test_the_pipeline_makes_frames_with_it(runs: Path) -> None:
    options = parse_demo(["--example", "--netG", "fewshot", "--gpu_ids", "-1"])
    head = TalkingHead.load(options)
    reference = faces.reference()
    driving = head.driving(options, reference)
    learnt = next(head.animate(reference, driving))
    geometric = next(TalkingHead().animate(reference, driving))
    assert learnt.shape == geometric.shape == (256, 256, 3)
    difference = np.abs(learnt.astype(int) - geometric).mean()
    assert 0 < difference < 20  # it starts from the geometric frame


def test_eyes_and_mouth_are_blank_for_a_network_that_was_trained_so() -> None:
    torch.manual_seed(0)
    frames = FewShotFrames(FewShotGenerator(replace(SMALL, crop_ref=True)).eval(), faces.reference())
    motion, geometric = two_motions(), faces.generator()
    vertices = geometric.target_vertices(motion)
    inputs = frames.inputs(geometric.project(motion), vertices)
    mouth = to_landmarks68(vertices)[:, 48:, :2].mean(1).round().astype(int)
    for k, (x, y) in enumerate(mouth):
        assert (inputs.ani_image[k, :, y, x] == -1).all()
    x, y = mouth[0]
    assert (inputs.warp_image[0, :, y, x] == -1).all()
    assert (inputs.warp_image[0] > -1).float().mean() > 0.9
