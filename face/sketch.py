"""The landmark sketch: 68 points drawn as curves in one channel, the picture of expression and pose that the
generator is steered by. Source: ../shared/parity/rhm/README.md, section 8, "Landmark image".

Each polyline is taken in steps of two points, three at a time; a parabola goes through the three (a line
through a leftover pair), over whichever axis the points spread along more. Everything is one batch of array
operations: all curves of all frames at once.

The public code fits each parabola iteratively, so a curve that meets a whole pixel exactly (the forehead's
points are whole) may land one pixel beside ours: 4 to 7 of about 1,950 pixels per face, and none without
the forehead.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from face.landmarks68 import check_landmarks68
from util.errors import UserError

MAX_CURVATURE = 1.0  # 1/px: a steeper parabola means points that have run together; it is left out


def _polylines(upper_face: bool) -> list[list[int]]:
    jaw = list(range(17))
    return [
        [*jaw, *range(68, 83), 0] if upper_face else jaw,
        [*range(17, 22)],
        [*range(22, 27)],
        [28, 31],
        [*range(31, 36)],
        [35, 28],
        [36, 37, 38, 39],
        [39, 40, 41, 36],
        [42, 43, 44, 45],
        [45, 46, 47, 42],
        [*range(48, 55)],
        [*range(54, 60), 48],
        [*range(60, 65)],
        [64, 65, 66, 67, 60],
    ]


def _pieces(upper_face: bool) -> np.ndarray:
    """(S, 3) point numbers of all curves: first, middle, last. A line has its last point twice."""
    pieces = []
    for line in _polylines(upper_face):
        for i in range(0, len(line) - 1, 2):
            a, b = line[i : i + 2]
            pieces.append((a, b, line[i + 2] if i + 2 < len(line) else b))
    return np.array(pieces)


_PIECES = {upper: _pieces(upper) for upper in (True, False)}


def _add_upper_face(points: np.ndarray) -> np.ndarray:
    """Append the jaw's 15 inner points, mirrored at the ears and flattened, as a forehead: (N, 83, 2)."""
    jaw = points[:, :17].astype(np.int32)
    forehead = jaw[:, 15:0:-1].astype(np.float64)
    base = (jaw[:, :1, 1] + jaw[:, 16:, 1]) / 2
    forehead[..., 1] = np.trunc(base + np.floor((base - forehead[..., 1]) * 2 / 3))
    return np.concatenate([points, forehead], 1)


def _parabolas(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Coefficients (..., 3) of v = a (u - u0)^2 + b (u - u0) + v0 through points (..., 3); a = 0 for a pair.

    Where two of the three u fall together no parabola passes: a straight line from first to last instead.
    """
    du, dv = u - u[..., :1], v - v[..., :1]
    d1, d2, d12 = du[..., 1], du[..., 2], du[..., 2] - du[..., 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        slope1, slope2 = dv[..., 1] / d1, dv[..., 2] / d2
        a = (slope2 - slope1) / d12
        b = slope1 - a * d1
        line = np.where(d2 != 0, slope2, 0.0)
    straight = (d1 == 0) | (d2 == 0) | (d12 == 0)
    return np.stack([np.where(straight, 0.0, a), np.where(straight, line, b), v[..., 0]], -1)


def _curve_pixels(points: np.ndarray, pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frame numbers, columns and rows (M,) int of all curves' samples; points (N, 83, 2) float64."""
    corners = points[:, pieces]  # (N, S, 3, 2)
    steps = np.abs(np.diff(corners, axis=2)).max(2)  # (N, S, 2)
    upright = steps[..., 1] > steps[..., 0]
    u = np.where(upright[..., None], corners[..., 1], corners[..., 0])
    v = np.where(upright[..., None], corners[..., 0], corners[..., 1])
    curve = _parabolas(u, v)
    first, last = np.minimum(u[..., 0], u[..., 2]), np.maximum(u[..., 0], u[..., 2])
    count = np.where(np.abs(curve[..., 0]) > MAX_CURVATURE, 0, (last - first).astype(np.int64)).ravel()

    piece = np.repeat(np.arange(count.size), count)  # (M,) the curve that each sample belongs to
    sample = np.arange(piece.size) - np.repeat(np.cumsum(count) - count, count)
    step = (last - first).ravel() / np.maximum(count - 1, 1)
    at = first.ravel()[piece] + sample * step[piece]
    at = np.where(
        (sample == count[piece] - 1) & (sample > 0), last.ravel()[piece], at
    )  # the end point, exactly
    a, b, c = curve.reshape(-1, 3)[piece].T
    d = at - u[..., 0].ravel()[piece]
    value = (a * d + b) * d + c
    along, across = at.astype(np.int64), value.astype(np.int64)
    turned = upright.ravel()[piece]
    return piece // len(pieces), np.where(turned, across, along), np.where(turned, along, across)


def draw_sketch(landmarks: np.ndarray, size: int | tuple[int, int], upper_face: bool = True) -> np.ndarray:
    """Draw landmarks as curves two pixels wide.

    landmarks: (..., 68, 2 or 3), pixels of the canvas; z is not used. size: side of a square canvas, or
    (height, width). upper_face closes the jaw by a forehead made from it. Returns (..., height, width)
    uint8, 0 or 255; what lies outside the canvas is drawn on its border. Raises ShapeError for other
    shapes, UserError for values that are not finite.
    """
    height, width = (size, size) if isinstance(size, int) else size
    canvas = np.zeros((*landmarks.shape[:-2], height, width), np.uint8)
    _draw(landmarks, canvas, 255, upper_face)
    return canvas


def _draw(
    landmarks: np.ndarray, canvas: np.ndarray, level: float, upper_face: bool, mirrored: bool = False
) -> None:
    """Draw landmarks (..., 68, 2 or 3) in `level` on a canvas (..., height, width), as a mirror shows them if asked."""
    check_landmarks68(landmarks, dims=(2, 3))
    height, width = canvas.shape[-2:]
    points = landmarks[..., :2].reshape(-1, 68, 2).astype(np.float64)
    if not np.isfinite(points).all():
        raise UserError(
            "landmarks: a value is not finite; 68 points are needed per frame; drop or fill that frame"
        )
    if upper_face:
        points = _add_upper_face(points)
    frame, x, y = _curve_pixels(points, _PIECES[upper_face])
    flat, first = canvas.reshape(-1), frame * (height * width)
    columns = [np.clip(x + dx, 0, width - 1) for dx in (-1, 0)]
    if mirrored:
        columns = [width - 1 - column for column in columns]
    for dy in (-1, 0):
        row = first + np.clip(y + dy, 0, height - 1) * width
        for column in columns:
            flat[row + column] = level


def sketch_maps(landmarks: np.ndarray, size: int, mirrored: bool = False) -> Tensor:
    """`draw_sketch` of N faces as the networks take it: (N, 1, size, size) float32 in [0, 1], on the CPU.

    mirrored: the picture as a mirror shows it.
    """
    canvas = np.zeros((len(landmarks), 1, size, size), np.float32)
    _draw(landmarks[:, None], canvas, 1.0, True, mirrored)
    return torch.from_numpy(canvas)
