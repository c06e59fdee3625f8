"""What preparing a clip needs of the models: its 3D projection images, and the lips that its voice tells of.

Handed to `data.preprocessing.prepare_clip`, which may import no model: ClipTools(**clip_tools()).

The images are those of `models.geometric` (reference and target of one clip: no depth or sharpness is guessed), drawn
in numpy: a clip's every frame is drawn once, on a CPU, without the head's flow, and this takes a sixth of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import cv2
import numpy as np
import torch

from face.expression_basis import LOWER_LIP, UPPER_LIP, load_basis
from face.mesh import FaceTopology
from face.mouth import mouth_coordinates
from face.pose import Pose, apply_pose
from face.reference import ReferenceFace
from models.expression import ExpressionLearner
from models.geometric import mouth_interior
from util.types import Voice

_MIN_AREA = 1e-3  # twice the area in square pixels: what is less, or faces away, is not drawn
_BORDER = 1e-5  # of a triangle's weights: pixels on its edges are its own
_BINOMIAL = np.array([0.25, 0.5, 0.25], np.float32)
_ROW = 256  # samples per row that OpenCV is asked for


@cache
def _topology() -> FaceTopology:
    return FaceTopology(load_basis().template)


class AniDrawer:
    """Draws a reference face's texture on meshes that were tracked in its own clip and crop."""

    def __init__(self, face: ReferenceFace) -> None:
        topology = _topology()
        self._image, self._size = face.image, face.image.shape[0]
        self._corners = np.ascontiguousarray(topology.triangles.T)  # (3, F)
        self._n_solid = topology.n_skin_and_eyes
        self._texture = face.vertices[self._corners, :2].astype(np.float64)  # (3, F, 2)
        self._mouth = mouth_interior(face)
        self._mouth_triangles = topology.triangles[self._n_solid :]
        self._mouth_place = mouth_coordinates()[self._mouth_triangles]  # (M, 3, 2)

    def __call__(self, canonical: np.ndarray, pose: Pose) -> np.ndarray:
        """(B, S, S, 3) uint8 RGB, black outside the face. canonical (B, 478, 3) face units; pose: crop pixels."""
        vertices = apply_pose(canonical, pose).astype(np.float64)
        images = np.zeros((len(vertices), self._size, self._size, 3), np.uint8)
        drawn = [self._draw_skin(v, image) for v, image in zip(vertices, images, strict=True)]
        self._draw_mouths(canonical, drawn, images)
        return images

    def _draw_skin(
        self, vertices: np.ndarray, image: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw one face; returns pixels, mouth triangles and weights (N, 3) of what shows between its lips."""
        points = vertices[self._corners].transpose(2, 0, 1)  # (xyz, 3 corners, F)
        weights, area = _weights(points[0], points[1])
        shown = np.flatnonzero(area > _MIN_AREA)
        shown = shown[np.argsort(-points[2].sum(0)[shown], kind="stable")]
        owner, pixel = self._cover(points[1][:, shown], weights[..., shown])
        owner_of = np.full(self._size**2, -1, np.int32)
        owner_of[pixel] = shown[owner]  # from the farthest to the nearest: the last one stays
        pixel = np.flatnonzero(owner_of >= 0)
        owner = owner_of[pixel].astype(np.intp)
        row = pixel // self._size
        x, y = (pixel - row * self._size).astype(np.float64), row.astype(np.float64)
        # Where a pixel lies in the texture is affine in its place, for each triangle.
        affine = np.einsum("kcf,kfa->acf", weights, self._texture)
        u, v = (a[0][owner] * x + a[1][owner] * y + a[2][owner] for a in affine)
        image.reshape(-1, 3)[pixel] = self._sample(u, v)
        inside = np.flatnonzero(owner >= self._n_solid)
        owner, place = owner[inside], np.stack([x[inside], y[inside], np.ones(len(inside))])
        return pixel[inside], owner - self._n_solid, np.einsum("cn,kcn->nk", place, weights[..., owner])

    def _cover(self, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Triangle and pixel of all that the triangles cover, in their order; row by row.

        y: (3 corners, F) pixels. weights: (3, 3, F).
        """
        first = np.ceil(y.min(0)).clip(0, self._size)
        n_rows = (np.floor(y.max(0)).clip(-1, self._size - 1) - first + 1).clip(0).astype(np.int64)
        owner, row = _runs(n_rows)
        row = row + first[owner]
        low, high = np.zeros(len(row)), np.full(len(row), self._size - 1.0)
        for slope, by_y, rest in weights:  # where no corner's weight is negative
            level = np.abs(slope) < 1e-12  # the rows themselves end at level edges
            over = np.where(level, 1, -slope)
            edge = (by_y / over)[owner] * row + ((rest + _BORDER) / over)[owner]
            side = np.where(level, 0, np.sign(slope))[owner]
            np.maximum(low, np.where(side > 0, edge, 0), out=low)
            np.minimum(high, np.where(side < 0, edge, self._size), out=high)
        low = np.minimum(np.ceil(low), self._size)
        n_pixels = (np.floor(high).clip(-1) - low + 1).clip(0).astype(np.int64)
        span, column = _runs(n_pixels)
        column += (row * self._size + low).astype(np.int64)[span]
        return owner[span], column

    def _sample(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """(N, 3) uint8 of the reference at (N,) positions, cubic."""
        n = len(u)
        maps = np.zeros((2, -(-max(n, 1) // _ROW) * _ROW), np.float32)
        maps[0, :n], maps[1, :n] = u, v
        maps = maps.reshape(2, -1, _ROW)
        return cv2.remap(
            self._image, maps[0], maps[1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
        ).reshape(-1, 3)[:n]

    def _draw_mouths(self, canonical: np.ndarray, drawn: list, images: np.ndarray) -> None:
        """What shows between the lips of all frames, in place."""
        frame = np.repeat(np.arange(len(drawn)), [len(pixel) for pixel, _, _ in drawn])
        if not len(frame):
            return
        pixel, triangle, weights = (np.concatenate(part) for part in zip(*drawn, strict=True))
        corners = canonical[frame[:, None], self._mouth_triangles[triangle], :2]  # (N, 3, 2)
        xy = np.einsum("nk,nkc->nc", weights, corners)
        across, along = np.einsum("nk,nkc->cn", weights, self._mouth_place[triangle])
        lower = canonical[:, LOWER_LIP, 1].mean(1)
        gap = lower - canonical[:, UPPER_LIP, 1].mean(1)
        told = (torch.from_numpy(a.astype(np.float32)) for a in (xy, across, along, lower[frame], gap[frame]))
        colours = (self._mouth.colours(*told).clamp(0, 1) * 255).round().byte().numpy()
        images.reshape(len(images), -1, 3)[frame, pixel] = colours
        for k, image in enumerate(images):
            _soften_border(image, drawn[k][0])


def _weights(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Barycentric weights of triangles (3 corners, F), as factors of x, y and 1: (3, 3, F); and twice their areas."""
    after, before = [1, 2, 0], [2, 0, 1]
    cross = x[after] * y[before] - x[before] * y[after]
    area = cross.sum(0)
    weights = np.stack([y[after] - y[before], x[before] - x[after], cross], 1)
    return weights / np.where(area == 0, 1, area), area


def _runs(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For runs of these lengths, one after the other: the number of each item's run, and its place in the run."""
    owner = np.repeat(np.arange(len(lengths)), lengths)
    ends = np.cumsum(lengths)
    place = np.arange(len(owner))
    place -= (ends - lengths)[owner]
    return owner, place


def _soften_border(image: np.ndarray, pixel: np.ndarray) -> None:
    """Soften, in place, the stairs along the border of the mouth's pixels."""
    if not len(pixel):
        return
    y, x = np.divmod(pixel, image.shape[1])
    y0, x0 = max(y.min() - 2, 0), max(x.min() - 2, 0)
    part = image[y0 : y.max() + 3, x0 : x.max() + 3]
    region = np.zeros(part.shape[:2], np.uint8)
    region[y - y0, x - x0] = 1
    square = np.ones((3, 3), np.uint8)
    border = cv2.dilate(region, square) != cv2.erode(region, square)
    part[border] = cv2.sepFilter2D(part, -1, _BINOMIAL, _BINOMIAL)[border]


class _Last:
    """The drawer of the face that was drawn last: a clip's frames come in pieces."""

    face: ReferenceFace | None = None
    drawer: AniDrawer | None = None


def draw_ani(face: ReferenceFace, canonical: np.ndarray, pose: Pose) -> np.ndarray:
    """The 3D projection images ('ani') of B frames of the clip that `face` is a frame of.

    canonical: (B, 478, 3) face units, expression included; pose: B frames, pixels of the face's crop.
    Returns (B, S, S, 3) uint8 RGB, black outside the face.
    """
    if _Last.face is not face:
        _Last.face, _Last.drawer = face, AniDrawer(face)
    return _Last.drawer(canonical, pose)


@cache
def _learner() -> ExpressionLearner:
    return ExpressionLearner.load()


def lip_gap(voice: Voice) -> np.ndarray:
    """(T,) lip opening in face units at 25 per second that a voice tells of."""
    return _learner().predict(voice).lip_gap


def clip_tools() -> dict[str, Callable[..., Any]]:
    """The fields of `data.preprocessing.prepare_clip.ClipTools`; found by name in another process."""
    return {"ani": draw_ani, "lip_gap": lip_gap}
