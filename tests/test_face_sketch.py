"""The landmark sketch: the golden pictures of the data contract, and what must hold for any face."""

from __future__ import annotations

import numpy as np
import pytest

from face.sketch import draw_sketch
from util.errors import ShapeError, UserError


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    """Six made-up faces (6, 68, 3) on a 256 px canvas: ellipses for jaw, eyes and mouth, arcs for brows."""

    def arc(x: float, y: float, a: float, b: float, start: float, end: float, n: int) -> np.ndarray:
        angle = np.radians(np.linspace(start, end, n))
        return np.stack([x + a * np.cos(angle), y - b * np.sin(angle), 0 * angle], 1)

    def ring(x: float, y: float, a: float, b: float, n: int) -> np.ndarray:
        return arc(x, y, a, b, 180, -180, n + 1)[:-1]

    nose = np.array(
        [[128, y, 0] for y in (105, 115, 125, 135)] + [[x, 143, 0] for x in (116, 122, 128, 134, 140)]
    )
    face = [
        arc(128, 110, 75, 95, 180, 360, 17),
        arc(95, 92, 24, 12, 170, 10, 5),
        arc(161, 92, 24, 12, 170, 10, 5),
    ]
    face += [nose, ring(97, 107, 14, 6, 6), ring(159, 107, 14, 6, 6)]
    face += [ring(128, 168, 26, 12, 12), ring(128, 168, 20, 6, 8)]
    shake = np.random.default_rng(3).normal(0, 0.8, (6, 68, 3))
    return (np.concatenate(face) + shake).astype(np.float32)


def _unpack(bits: np.ndarray) -> np.ndarray:
    return np.unpackbits(bits, axis=-1).astype(bool)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def test_golden_without_forehead_is_exact(golden: dict[str, np.ndarray]) -> None:
    ours = draw_sketch(golden["lmark_smoothed"][4], 256, upper_face=False) > 0
    np.testing.assert_array_equal(ours, _unpack(golden["edges_noupper_t4"]))


def test_golden_with_forehead(golden: dict[str, np.ndarray]) -> None:
    """The forehead's whole-numbered points lie on pixel borders, where an iterative fit falls either way."""
    ours = draw_sketch(golden["lmark_smoothed"][[0, 4, 9]], 256) > 0
    for sketch, true in zip(ours, _unpack(golden["edges_upper_t0_t4_t9"]), strict=True):
        assert _overlap(sketch, true) > 0.996
        assert (sketch != true).sum() <= 7
        below = slice(125, None)  # no forehead there
        np.testing.assert_array_equal(sketch[below], true[below])


def test_golden_on_a_crop(golden: dict[str, np.ndarray]) -> None:
    y0, y1, x0, x1 = golden["crop_coords_t4"]
    ours = draw_sketch(golden["lmark_smoothed"][4] - [x0, y0, 0], (int(y1 - y0), int(x1 - x0)))
    assert _overlap(ours > 0, golden["crop_edges_t4"] > 0) > 0.996


def test_kind_of_picture(faces: np.ndarray) -> None:
    sketch = draw_sketch(faces, (200, 300))
    assert sketch.shape == (6, 200, 300)
    assert sketch.dtype == np.uint8
    assert set(np.unique(sketch)) == {0, 255}
    assert draw_sketch(faces[0, :, :2], 64).shape == (64, 64)
    assert draw_sketch(faces.reshape(2, 3, 68, 3), 256).shape == (2, 3, 256, 256)


def test_batch_equals_single_frames(faces: np.ndarray) -> None:
    batch = draw_sketch(faces, 256)
    np.testing.assert_array_equal(batch, np.stack([draw_sketch(f, 256) for f in faces]))


def test_moved_by_whole_pixels_moves_the_picture(faces: np.ndarray) -> None:
    small = np.floor(faces[..., :2]) * [0.5, 0.5]  # halves: no rounding when they are moved
    moved = draw_sketch(small + np.array([40, 20]), 256, upper_face=False)
    expected = np.roll(draw_sketch(small, 256, upper_face=False), (20, 40), (1, 2))
    np.testing.assert_array_equal(moved, expected)


def test_curves_pass_near_their_points(faces: np.ndarray) -> None:
    sketch = draw_sketch(faces, 256)
    drawn = [*range(17), *range(17, 27), 28, *range(31, 68)]  # points 27, 29 and 30 are in no curve
    for t, points in enumerate(faces[:, drawn, :2]):
        ys, xs = np.nonzero(sketch[t])
        distance = np.hypot(points[:, :1] - xs - 0.5, points[:, 1:] - ys - 0.5).min(1)
        assert distance.max() < 2.5


def test_forehead_only_adds(faces: np.ndarray) -> None:
    with_it, without = draw_sketch(faces, 256), draw_sketch(faces, 256, upper_face=False)
    assert (with_it >= without).all()
    ears = int(faces[:, [0, 16], 1].max()) + 2
    np.testing.assert_array_equal(with_it[:, ears:], without[:, ears:])


def test_points_outside_are_drawn_on_the_border(faces: np.ndarray) -> None:
    sketch = draw_sketch(faces - np.array([90, 0, 0], np.float32), 256)
    assert sketch[:, :, 0].any()
    far = draw_sketch(faces + 1000, 256)
    assert far[:, :-1, :-1].sum() == 0


@pytest.mark.parametrize("value", [0.0, 50.0])
def test_points_run_together_draw_little_and_do_not_fail(value: float) -> None:
    sketch = draw_sketch(np.full((1, 68, 3), value), 64, upper_face=False)
    assert sketch.sum() == 0


def test_two_equal_abscissas_give_a_straight_line(faces: np.ndarray) -> None:
    points = faces[0].copy()
    points[17:20, :2] = [(30, 60), (30, 62), (60, 66)]  # brow: first two above each other
    sketch = draw_sketch(points, 256)
    assert sketch[62:65, 44:47].any()


def test_steep_parabola_is_left_out(faces: np.ndarray) -> None:
    points = faces[0].copy()
    plain = draw_sketch(points, 256, upper_face=False)
    points[17:20, :2] = [(30, 40), (33, 20), (36, 40)]  # 20 px high, 6 px wide: steps in y are larger ...
    assert not draw_sketch(points, 256, upper_face=False)[:22, 25:40].any()  # ... and its ends fall together
    points[17:20, :2] = [(30, 20), (30.5, 27), (40, 20)]
    sketch = draw_sketch(points, 256, upper_face=False)
    assert not sketch[:40, 25:38].any()
    assert plain.any()


def test_refusals(faces: np.ndarray) -> None:
    with pytest.raises(ShapeError, match=r"needed \(\.\.\., 68, 2 or 3\)"):
        draw_sketch(faces[:, :60], 256)
    broken = faces.copy()
    broken[2, 3, 1] = np.inf
    with pytest.raises(UserError, match="not finite"):
        draw_sketch(broken, 256)
