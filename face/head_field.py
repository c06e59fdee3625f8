"""The extended flow: how hair, ears, neck, shoulders and background follow a face that turns.

The face mesh ends at its oval. Around it, every point of the reference picture is given a depth behind the oval and
turns rigidly with the head as far as it belongs to it: fully at the hair, less and less down the neck and towards the
picture's border, which never moves. What the expression does to the oval (a dropping jaw) fades out below it. This
forward displacement is smooth, so it is inverted by fixed-point iteration on a coarse grid into a backward flow.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from face.mesh import FACE_OVAL
from face.pose import Pose
from util.curves import smoothstep

GRID = 65  # coarse grid points along each side
N_ITERATIONS, DAMPING = 12, 0.5  # damped, without it, places stretched more than twofold diverge
# In face units (outer-eye distances):
HAIR_RIGID, HAIR_END = 0.55, 1.6  # the head is rigid up to here above the chin, and still beyond
NECK_END = 1.5  # below the chin the motion has faded here
DEPTH_SLOPE, DEPTH_REACH = 0.8, 0.6  # depth gained per distance from the oval, and where it levels off
EXPRESSION_REACH = 0.45  # how far an expression pulls at what lies outside the oval
BORDER_STILL, BORDER_FREE = 0.01, 0.16  # of the picture's side: no motion up to, free motion from


def _nearest_on_oval(points: np.ndarray, oval: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance (N,) of points (N, 2) to the closed polygon (M, 3), 0 inside; and depth (N,) of its nearest point."""
    x, y = points[:, :1], points[:, 1:]
    (ax, ay, az), by = oval.T, np.roll(oval[:, 1], -1)
    dx, dy, dz = np.roll(oval, -1, 0).T - oval.T
    # One array per axis: a third of the time that arrays of points take.
    t = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx**2 + dy**2), 0, 1)  # (N, M)
    squared = (ax + t * dx - x) ** 2 + (ay + t * dy - y) ** 2
    best = squared.argmin(1)
    rows = np.arange(len(points))
    crosses = ((ay > y) != (by > y)) & (x < dx * ((y - ay) / np.where(dy == 0, 1e-9, dy)) + ax)
    inside = crosses.sum(1) % 2 == 1
    return np.where(inside, 0, np.sqrt(squared[rows, best])), az[best] + t[rows, best] * dz[best]


class HeadField:
    """Backward flow of a whole picture for a reference face, from head pose and the oval's expression."""

    def __init__(
        self,
        vertices: np.ndarray,
        pose: Pose,
        deepen: np.ndarray,
        size: int,
        device: str | torch.device = "cpu",
    ) -> None:
        """vertices (478, 3) of the reference in pixels of a size x size picture; its pose (one frame).

        deepen (3, 3): the transform of canonical points that gives the mesh its depth (models/geometric.py).
        """
        scale = float(pose.scale[0])
        axis = np.linspace(0, size - 1, GRID)
        points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)  # (G * G, 2)
        oval = vertices[FACE_OVAL].astype(np.float64)
        distance, depth = _nearest_on_oval(points, oval)
        distance = distance / scale
        depth = depth + scale * DEPTH_SLOPE * DEPTH_REACH * (1 - np.exp(-distance / DEPTH_REACH))
        positions = np.concatenate([points, depth[:, None]], 1)
        canonical = (positions - pose.translation[0]) @ pose.rotation[0] / scale
        weight = self._rigid_weight(points, canonical, distance, vertices, size)
        self._size = size
        tensor = lambda a: torch.tensor(np.ascontiguousarray(a), dtype=torch.float32, device=device)  # noqa: E731
        self._points = tensor(points)
        self._canonical = tensor(canonical @ deepen.T)
        self._weight = tensor(weight[:, None])
        self._pull = tensor(
            self._expression_pull(points, distance, oval, scale) * _taper(points, size)[:, None]
        )

    @staticmethod
    def _rigid_weight(
        points: np.ndarray, canonical: np.ndarray, distance: np.ndarray, vertices: np.ndarray, size: int
    ) -> np.ndarray:
        hair = 1 - smoothstep((distance - HAIR_RIGID) / (HAIR_END - HAIR_RIGID))
        neck = 1 - smoothstep(distance / NECK_END)
        below = smoothstep((canonical[:, 1] - 0.15) / 0.6)  # 0 at the nose, 1 below the chin
        return (hair * (1 - below) + neck * below) * _taper(points, size)

    @staticmethod
    def _expression_pull(
        points: np.ndarray, distance: np.ndarray, oval: np.ndarray, scale: float
    ) -> np.ndarray:
        """(N, M) share of each oval point's own displacement in the displacement of each grid point."""
        squared = ((points[:, :1] - oval[:, 0]) ** 2 + (points[:, 1:] - oval[:, 1]) ** 2) / scale**2
        share = np.exp(-(squared - squared.min(1, keepdims=True)) / 0.05)
        share /= share.sum(1, keepdims=True)
        return share * np.exp(-((distance / EXPRESSION_REACH) ** 2))[:, None]

    def backward_flow(
        self, rotation: Tensor, scale: Tensor, translation: Tensor, vertices: Tensor, rigid: Tensor
    ) -> Tensor:
        """Positions (B, S, S, 2) in the reference that each pixel of the target shows.

        rotation (B, 3, 3), scale (B,), translation (B, 3): the target poses. vertices (B, 478, 3): the target mesh;
        rigid (B, 478, 3): the reference's mesh in the target poses, without new expression.
        """
        turned = (self._canonical @ rotation.transpose(1, 2)) * scale[:, None, None] + translation[:, None]
        displacement = self._weight * (turned[..., :2] - self._points)
        expression = (vertices - rigid)[:, FACE_OVAL, :2]
        displacement = displacement + self._pull @ expression
        batch = len(rotation)
        forward = displacement.reshape(batch, GRID, GRID, 2).permute(0, 3, 1, 2)
        own = self._points.reshape(1, GRID, GRID, 2)
        source = own.expand(batch, -1, -1, -1)
        for _ in range(N_ITERATIONS):
            grid = source * (2 / (self._size - 1)) - 1
            moved = F.grid_sample(forward, grid, padding_mode="border", align_corners=True)
            source = torch.lerp(source, own - moved.permute(0, 2, 3, 1), DAMPING)
        size = (self._size, self._size)
        fine = F.interpolate(
            source.permute(0, 3, 1, 2).contiguous(), size, mode="bilinear", align_corners=True
        )
        return fine.permute(0, 2, 3, 1)


def _taper(points: np.ndarray, size: int) -> np.ndarray:
    """(N,) 0 at the picture's border, 1 well inside."""
    edge = np.minimum(points, size - 1 - points).min(1) / size
    return smoothstep((edge - BORDER_STILL) / (BORDER_FREE - BORDER_STILL))
