"""Between the lips: teeth drawn under the upper lip of a closed mouth, an open mouth's own pixels, shade, jaw."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from face.expression_basis import LOWER_LIP, UPPER_LIP, lip_gap
from face.mesh import INNER_LIPS
from face.mouth import (
    OPEN_GAP,
    SHADED_GAP,
    MouthInterior,
    drawn_mouth,
    mouth_coordinates,
    mouth_from_reference,
)
from face.pose import apply_pose
from tests.faces import closed_reference, reference


def _image() -> np.ndarray:
    return reference().ani.image.astype(np.float32) / 255


@pytest.fixture(scope="module")
def drawn() -> MouthInterior:
    face = closed_reference()
    return drawn_mouth(_image(), face.vertices, face.canonical, "cpu")


@pytest.fixture(scope="module")
def taken() -> MouthInterior:
    face = reference().ani
    return mouth_from_reference(_image(), face.vertices, face.canonical, face.pose, "cpu")


def _look(
    mouth: MouthInterior, dx: float, dy: float, gap: float, across: float = 0.5, along: float = 0.0
) -> Tensor:
    """Colour (3,) at a place relative to the mouth line's middle, in a mouth that is open by `gap`."""
    x, y = mouth.centre
    place = torch.tensor([[x + dx, y + dy]])
    number: Callable[[float], Tensor] = lambda v: torch.tensor([v])  # noqa: E731
    return mouth.colours(place, number(across), number(along), number(y + gap), number(gap))[0]


def test_pictures_are_rgba(drawn: MouthInterior, taken: MouthInterior) -> None:
    for mouth in (drawn, taken):
        for picture in (mouth.upper, mouth.lower):
            assert picture.shape[0] == 4
            assert picture.min() >= 0
            assert picture.max() <= 1
        assert mouth.dark.shape == (3,)
        assert mouth.dark.max() < 0.25


def test_closed_mouth_gets_teeth_under_the_upper_lip(drawn: MouthInterior) -> None:
    teeth, dark = _look(drawn, 0, 0.02, gap=0.2), _look(drawn, 0, 0.09, gap=0.2)
    assert teeth.mean() > 2 * dark.mean()
    assert teeth[0] >= teeth[1] >= teeth[2]  # ivory, not blue
    assert teeth[2] > 0.6 * teeth[0]
    assert dark[0] > dark[2]  # reddish
    assert _look(drawn, 0.38, 0.02, gap=0.2).mean() < 0.5 * teeth.mean()  # none in the corners


def test_teeth_are_no_brighter_than_the_light() -> None:
    face = closed_reference()
    bright = drawn_mouth(_image(), face.vertices, face.canonical, "cpu")
    dim = drawn_mouth(0.4 * _image(), face.vertices, face.canonical, "cpu")
    assert _look(dim, 0, 0.02, 0.2).mean() == pytest.approx(
        0.4 * _look(bright, 0, 0.02, 0.2).mean().item(), rel=0.1
    )


def test_lower_teeth_go_with_the_jaw(drawn: MouthInterior) -> None:
    """The lower picture hangs on the lower lip: a jaw that drops by 0.1 takes it along, the upper teeth stay."""
    narrow, wide = _look(drawn, 0, 0.19, gap=0.2), _look(drawn, 0, 0.29, gap=0.3)
    torch.testing.assert_close(narrow, wide, atol=0.02, rtol=0)
    torch.testing.assert_close(_look(drawn, 0, 0.02, 0.2), _look(drawn, 0, 0.02, 0.3), atol=0.02, rtol=0)


def test_shade_of_the_lips(drawn: MouthInterior) -> None:
    """Darker just under the upper lip, towards the corners, and between lips that are nearly closed."""
    middle = _look(drawn, 0, 0.02, 0.2).sum()
    assert _look(drawn, 0, 0.02, 0.2, across=0.0).sum() < 0.8 * middle
    assert _look(drawn, 0, 0.02, 0.2, along=0.95).sum() < 0.8 * middle
    assert _look(drawn, 0, 0.02, 0.2 * SHADED_GAP).sum() < 0.7 * middle


def test_open_mouth_gives_its_own_pixels(taken: MouthInterior) -> None:
    """The smiling portrait's teeth: at its own opening the upper picture shows what the photo shows."""
    face = reference().ani
    assert lip_gap(face.canonical) > OPEN_GAP
    upper, lower = face.canonical[UPPER_LIP], face.canonical[LOWER_LIP]
    points = upper + (lower - upper) * np.linspace(0.3, 0.5, 4)[:, None, None].astype(np.float32)
    points = points.reshape(-1, 3)
    depth = face.canonical[np.concatenate(INNER_LIPS), 2].mean()
    points[:, 2] = depth
    pixels = apply_pose(points[None], face.pose)[0, :, :2]
    grid = torch.tensor(pixels) * (2 / 255) - 1
    photo = torch.tensor(_image()).permute(2, 0, 1)[None]
    expected = torch.nn.functional.grid_sample(photo, grid[None, None], align_corners=True)[0, :, 0].T
    shown = taken._look_up(taken.upper, torch.tensor(points[:, :2]))
    assert (shown[:, 3] > 0.9).all()
    assert (shown[:, :3] - expected).abs().mean() < 0.05


def test_open_mouth_has_its_teeth_bright_and_its_depth_dark(taken: MouthInterior) -> None:
    teeth = _look(taken, 0, 0.04, gap=0.3)
    assert teeth.mean() > 0.5
    assert _look(taken, 0, 0.17, gap=0.3).mean() < 0.5 * teeth.mean()


def test_coordinates_of_the_mouth() -> None:
    place = mouth_coordinates()
    assert place.shape == (478, 2)
    upper, lower = INNER_LIPS
    assert (place[upper[1:-1], 0] == 0).all()
    assert (place[lower[1:-1], 0] == 1).all()
    np.testing.assert_array_equal(place[[78, 308]], [[0.5, -1], [0.5, 1]])
    assert (np.diff(place[upper, 1]) > 0).all()
    rest = np.setdiff1d(np.arange(478), np.concatenate(INNER_LIPS))
    assert not place[rest].any()
