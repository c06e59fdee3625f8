"""The extended flow: nothing moves at rest, the border never, the oval as the face does, and no visible fold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from face.head_field import HeadField
from face.mesh import FACE_OVAL
from face.pose import Pose, apply_pose
from face.renderer import sample_pixels
from models.geometric import DEPTH, GeometricGenerator
from tests.faces import basis, motion, reference, rig, turned

SIZE = 256
TURNS = [(18, 0, 0), (-15, 0, 0), (0, 12, 0), (0, -12, 0), (0, 0, 10), (0, 0, -10)]


FLAT = np.eye(3)  # canonical points as they are, not deepened


@pytest.fixture(scope="module")
def field() -> HeadField:
    ani = reference().ani
    return HeadField(ani.vertices, ani.pose, FLAT, SIZE)


def _positions(
    field: HeadField, pose: Pose, canonical: np.ndarray | None = None, deepen: np.ndarray = FLAT
) -> Tensor:
    """(B, S, S, 2) of the portrait's face in these poses, with an expression if one is given."""
    own = reference().ani.canonical[None].repeat(len(pose), 0)
    rigid = torch.tensor(apply_pose(own @ deepen.T, pose))
    vertices = rigid if canonical is None else torch.tensor(apply_pose(canonical @ deepen.T, pose))
    tensors = (torch.tensor(a) for a in (pose.rotation, pose.scale, pose.translation))
    return field.backward_flow(*tensors, vertices, rigid)


def _grid() -> Tensor:
    axis = torch.arange(float(SIZE))
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)


def _area(positions: Tensor) -> Tensor:
    """(S - 1, S - 1) area of the reference that each pixel shows; negative where the flow folds over."""
    along, down = (positions[:, 1:] - positions[:, :-1])[:-1], (positions[1:] - positions[:-1])[:, :-1]
    return along[..., 0] * down[..., 1] - along[..., 1] * down[..., 0]


def test_identity(field: HeadField) -> None:
    positions = _positions(field, turned())
    assert positions.shape == (1, SIZE, SIZE, 2)
    assert (positions[0] - _grid()).abs().max() < 0.01


@pytest.mark.parametrize("angles", [(20, 0, 0), (-20, 0, 0), (15, -12, 10)])
def test_border_never_moves(field: HeadField, angles: tuple[float, float, float]) -> None:
    jaw = reference().ani.canonical + basis().from_blendshapes(jawOpen=1.0)
    for canonical in (None, jaw[None]):
        moved = (_positions(field, turned(*angles), canonical)[0] - _grid()).abs()
        assert max(moved[0].max(), moved[-1].max(), moved[:, 0].max(), moved[:, -1].max()) < 0.05
        assert moved.max() > 10


@pytest.mark.parametrize("angles", TURNS)
def test_oval_follows_the_face(field: HeadField, angles: tuple[float, float, float]) -> None:
    """Where the turned face's outline lies, the flow shows the reference's outline: no seam at the mask."""
    pose = turned(*angles)
    ani = reference().ani
    here = torch.tensor(apply_pose(ani.canonical[None], pose)[0, FACE_OVAL, :2])
    shown = sample_pixels(_positions(field, pose)[0].permute(2, 0, 1), here).numpy()
    distance = np.linalg.norm(shown - ani.vertices[FACE_OVAL, :2], axis=1)
    assert distance.mean() < 0.5
    assert distance.max() < 1.2


@pytest.mark.parametrize("angles", TURNS)
@pytest.mark.parametrize("depth", [1.0, DEPTH])
def test_no_visible_fold(depth: float, angles: tuple[float, float, float]) -> None:
    """Outside the face's mask, where the flow shows, it is smooth: areas keep their sign and their size."""
    ani = reference().ani
    turn = ani.pose.rotation[0]
    deepen = turn.T @ np.diag([1, 1, depth]) @ turn
    area = _area(
        _positions(HeadField(ani.vertices, ani.pose, deepen, SIZE), turned(*angles), None, deepen)[0]
    )
    frame = GeometricGenerator(ani, basis(), depth=depth)(motion(*angles))
    shows = frame.ani_mask[0, 0, :-1, :-1] < 0.5
    assert area[shows].min() > 0.3
    assert area[shows].max() < 4


def test_hair_follows_and_shoulders_stay(field: HeadField) -> None:
    """At 15 degrees of yaw the hair line moves with the oval; the collar, far below the chin, by a quarter at most."""
    x, y = reference().ani.vertices[10, :2].astype(int)
    moved = _positions(field, turned(15))[0] - _grid()
    forehead, hair = moved[y, x], moved[y - 8, x]
    assert forehead.norm() > 2
    assert (hair - forehead).norm() < 0.3 * forehead.norm()
    assert moved[-SIZE // 10 :].norm(dim=-1).max() < 0.25 * moved.norm(dim=-1).max()


def test_jaw_pulls_the_chin_and_no_more(field: HeadField) -> None:
    """An opening jaw moves what lies just below the chin down, and neither hair nor shoulders."""
    meshes = rig().canonical[None] + basis().from_blendshapes(jawOpen=0.8)
    moved = _positions(field, turned(), meshes)[0] - _grid()
    x, y = reference().ani.vertices[152, :2].astype(int)
    assert moved[y + 4, x, 1] < -2  # shows what was higher up
    assert moved[: y // 4].abs().max() < 0.5
    assert moved[:, :8].abs().max() < 0.05


def test_batch_of_two_is_two_of_one(field: HeadField) -> None:
    one, two = turned(8, 3, 0), turned(-5, 0, 6)
    parts = ((one.rotation, two.rotation), (one.scale, two.scale), (one.translation, two.translation))
    both = _positions(field, Pose(*(np.concatenate(p) for p in parts)))
    torch.testing.assert_close(both[:1], _positions(field, one), atol=1e-3, rtol=0)
    torch.testing.assert_close(both[1:], _positions(field, two), atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [128, 512])
def test_other_sizes(field: HeadField, size: int) -> None:
    """The flow of a picture twice or half the size is the same flow, twice or half as long."""
    ani = reference().ani
    factor = np.float32((size - 1) / (SIZE - 1))

    def resized(pose: Pose) -> Pose:
        return Pose(pose.rotation, pose.scale * factor, pose.translation * factor)

    positions = _positions(
        HeadField(ani.vertices * factor, resized(ani.pose), FLAT, size), resized(turned(12, -6, 4))
    )
    assert positions.shape == (1, size, size, 2)
    expected = _positions(field, turned(12, -6, 4)).permute(0, 3, 1, 2) * float(factor)
    expected = torch.nn.functional.interpolate(expected, (size, size), mode="bilinear", align_corners=True)
    assert (positions.permute(0, 3, 1, 2) - expected).abs().mean() < 0.1 * float(factor)
