"""Teachers of the flow networks on images whose flow is known. FlowNet2's parity is in test_flownet2_nets.py."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import flow_teacher
from models.flow_teacher import (
    DisTeacher,
    FlowNet2Teacher,
    MeshTeacher,
    confidence,
    make_flow_teacher,
)
from third_party.flownet2.flownet2 import FlowNet2C
from util.checkpoints import save_tensors
from util.errors import ShapeError, UserError

SHIFT = (3.0, -2.0)  # pixels, x and y


def texture(height: int, width: int) -> Tensor:
    """[1, 3, H, W] in [-1, 1], smooth and without repetition."""
    noise = np.random.default_rng(5).standard_normal((height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    return torch.from_numpy(np.tanh(6 * smooth)).permute(2, 0, 1)[None]


@pytest.fixture(scope="module")
def pair() -> tuple[Tensor, Tensor]:
    """Target and source [2, 3, 96, 128]: the first sample shifted by SHIFT, the second not."""
    large = texture(116, 148)
    target, shifted = large[..., 10:106, 10:138], large[..., 12:108, 7:135]
    return target.repeat(2, 1, 1, 1), torch.cat((shifted, target))


class FixedNet(nn.Module):
    """Answers one flow, and remembers what it was asked."""

    def __init__(self, flow: tuple[float, float]) -> None:
        super().__init__()
        self.flow, self.pair = torch.tensor(flow), None

    def forward(self, pair: Tensor) -> Tensor:
        self.pair = pair
        return self.flow.view(1, 2, 1, 1).expand(len(pair), 2, *pair.shape[3:])


def test_dis_finds_a_shift(pair):
    flow, sure = DisTeacher()(*pair)
    assert flow.shape == (2, 2, 96, 128)
    assert flow.dtype == sure.dtype == torch.float32
    inner = flow[0, :, 12:-12, 12:-12].flatten(1).median(1).values
    torch.testing.assert_close(inner, torch.tensor(SHIFT), rtol=0, atol=0.1)
    assert flow[1].abs().max() < 0.1
    assert sure.shape == (2, 1, 96, 128)
    assert set(sure.unique().tolist()) <= {0.0, 1.0}
    assert sure[0, :, 12:-12, 12:-12].mean() > 0.95


def test_dis_of_two_is_dis_of_one(pair):
    teacher = DisTeacher()
    whole = teacher(*pair)
    for part, expected in zip(teacher(*(x[1:] for x in pair)), whole, strict=True):
        assert part.equal(expected[1:])


def test_dis_refuses_images_that_are_too_small():
    small = torch.zeros(1, 3, 15, 64)
    with pytest.raises(ShapeError, match="sides of 16 or more for --flow_teacher dis"):
        DisTeacher()(small, small)
    DisTeacher()(torch.zeros(1, 3, 16, 40), torch.zeros(1, 3, 16, 40))


def test_confidence_is_one_below_the_bound():
    target, source = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    source[0, :, 0, 0] = torch.tensor([0.1, 0.1, 0.0])  # 0.02, but for rounding
    source[0, :, 0, 1] = torch.tensor([0.09, 0.09, 0.05])  # 0.0187
    source[0, :, 1, 0] = torch.tensor([0.1, 0.1, 0.05])  # 0.0225
    sure = confidence(target, source, torch.zeros(1, 2, 2, 2))
    assert sure.flatten()[1:].tolist() == [1.0, 0.0, 1.0]


def test_flownet2_gets_sides_of_64_and_its_flow_is_scaled_back(pair):
    teacher = FlowNet2Teacher(FixedNet((4.0, 8.0)))
    flow, sure = teacher(*pair)
    assert teacher.net.pair.shape == (2, 3, 2, 64, 128)
    assert flow[0, :, 50, 60].tolist() == [4.0, 12.0]  # x was not resized, y was, by 1.5
    assert sure.shape == (2, 1, 96, 128)
    teacher(*(x[..., :40, :64] for x in pair))
    assert teacher.net.pair.shape == (2, 3, 2, 64, 64)


def test_flownet2_is_confident_of_the_true_flow(pair):
    flow, sure = FlowNet2Teacher(FixedNet((SHIFT[0], SHIFT[1] / 1.5)))(*pair)
    assert flow[0, :, 5, 5].tolist() == pytest.approx(SHIFT)
    assert sure[0, :, 2:, :-3].mean() == 1
    assert sure[1].mean() < 0.9


def test_flownet2_gives_no_gradient_and_stays_in_float32(pair):
    net = FlowNet2C().eval()
    target = pair[0][:, :, :64, :64].clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        flow, sure = FlowNet2Teacher(net)(target, target)
    assert flow.dtype == torch.float32
    assert not flow.requires_grad
    assert not sure.requires_grad


def test_mesh_gives_the_callers_flow(pair):
    flow = torch.tensor(SHIFT).view(1, 2, 1, 1).expand(2, 2, 96, 128)
    mask = torch.zeros(2, 1, 96, 128)
    mask[..., :64] = 1
    told, sure = MeshTeacher()(*pair, mesh_flow=flow)
    assert told is flow
    assert sure[0, :, 2:, :-3].mean() == 1
    told, sure = MeshTeacher()(*pair, mesh_flow=flow, mesh_mask=mask)
    assert sure[0, :, 2:, :64].mean() == 1
    assert sure[..., 64:].sum() == 0
    with pytest.raises(AssertionError, match="called without mesh_flow"):
        MeshTeacher()(*pair)
    with pytest.raises(ShapeError, match="mesh_mask"):
        MeshTeacher()(*pair, mesh_flow=flow, mesh_mask=mask[:1])


@pytest.mark.parametrize("teacher", [DisTeacher(), MeshTeacher(), FlowNet2Teacher(FixedNet((0, 0)))])
@pytest.mark.parametrize("shape", [(1, 3, 64, 32), (2, 3, 64, 64), (1, 1, 64, 64)])
def test_images_that_do_not_fit_are_named(teacher, shape):
    with pytest.raises(ShapeError, match="images of the flow teacher"):
        teacher(torch.zeros(1, 3, 64, 64), torch.zeros(shape))


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "flownet2.safetensors"
    monkeypatch.setattr(flow_teacher, "checkpoint_path", lambda name: tmp_path / name)
    return path


def test_auto_without_weights_is_dis_and_says_so(checkpoint, capsys):
    assert isinstance(make_flow_teacher("auto"), DisTeacher)
    said = capsys.readouterr().err
    assert said == (
        f"note: --flow_teacher auto: dis (without {checkpoint}; for FlowNet2 run "
        "python scripts/download_flownet2.py)\n"
    )


def test_auto_with_weights_is_flownet2(checkpoint, capsys, monkeypatch):
    asked = []
    checkpoint.write_bytes(b"weights")
    monkeypatch.setattr(
        flow_teacher, "load_network", lambda path, **_: asked.append(path) or FixedNet((0, 0))
    )
    assert isinstance(make_flow_teacher("auto"), FlowNet2Teacher)
    assert asked == [checkpoint]
    assert capsys.readouterr().err == f"note: --flow_teacher auto: flownet2 ({checkpoint} is there)\n"


def test_names_give_their_teachers(checkpoint):
    assert isinstance(make_flow_teacher("dis"), DisTeacher)
    assert isinstance(make_flow_teacher("mesh"), MeshTeacher)
    assert make_flow_teacher("none") is None
    with pytest.raises(
        UserError, match="--flow_teacher raft: unknown; choose one of auto, flownet2, dis, mesh"
    ):
        make_flow_teacher("raft")


def test_flownet2_without_weights_names_the_command(checkpoint):
    with pytest.raises(
        UserError, match=r"--flow_teacher flownet2: no .*run python scripts/download_flownet2\.py"
    ):
        make_flow_teacher("flownet2")
    save_tensors(checkpoint, {"conv1": torch.zeros(1)})
    with pytest.raises(UserError, match=r"--flow_teacher flownet2 .*: lacks flownetc\."):
        make_flow_teacher("flownet2")
