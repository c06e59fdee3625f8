"""Head pose and canonical (frontal) vertices by a weak-perspective similarity fit (paper: 3D facial generation).

A frame's mesh V (478, 3) pixels is V = s (R C) + t: C canonical vertices in face units (outer-eye distance of the
template = 1), R a rotation in image axes (x right, y down, z away), s pixels per face unit, t pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from util.errors import ShapeError

# Points that hardly move with expression (design.md, section 4; measured on real clips).
STABLE_POINTS = np.array(
    [10, 151, 9, 8, 168, 6, 197, 195, 5, 4, 1, 67, 297, 103, 332, 54, 284, 127, 356, 234, 454, 93, 323]
    + [33, 263, 133, 362, 21, 251]
)
_FLIP = np.array([1.0, -1.0, -1.0], np.float32)  # image axes to camera axes (y up, z towards the viewer)


@dataclass(frozen=True)
class Pose:
    """Similarity transforms of T frames, from canonical face units to pixels."""

    rotation: np.ndarray  # (T, 3, 3) image axes
    scale: np.ndarray  # (T,) pixels per face unit
    translation: np.ndarray  # (T, 3) pixels

    def __len__(self) -> int:
        return len(self.scale)

    def __getitem__(self, frames: slice | np.ndarray) -> Pose:
        return Pose(self.rotation[frames], self.scale[frames], self.translation[frames])

    @property
    def angles_deg(self) -> np.ndarray:
        """(T, 3) yaw, pitch, roll in degrees."""
        return angles_deg(self.rotation)


def fit_pose(vertices: np.ndarray, template: np.ndarray) -> Pose:
    """Least-squares similarity of the template's stable points to each frame (Umeyama 1991).

    vertices: (T, 478, 3) pixels. template: (478, 3) face units. Raises ShapeError on other shapes.
    """
    if vertices.ndim != 3 or vertices.shape[1:] != (len(template), 3):
        raise ShapeError("vertices", f"(T, {len(template)}, 3)", vertices.shape)
    points = vertices[:, STABLE_POINTS].astype(np.float64)
    model = template[STABLE_POINTS].astype(np.float64)
    mean_p, mean_m = points.mean(1), model.mean(0)
    p, m = points - mean_p[:, None], model - mean_m
    u, d, vt = np.linalg.svd(np.einsum("tni,nj->tij", p, m))
    sign = np.ones((len(points), 3))
    sign[:, 2] = np.sign(np.linalg.det(u @ vt))
    rotation = (u * sign[:, None]) @ vt
    scale = (d * sign).sum(1) / (m**2).sum()
    translation = mean_p - scale[:, None] * (rotation @ mean_m)
    return Pose(rotation.astype(np.float32), scale.astype(np.float32), translation.astype(np.float32))


def to_canonical(vertices: np.ndarray, pose: Pose) -> np.ndarray:
    """Pixels (T, N, 3) to canonical face units (T, N, 3). Inverse of `apply_pose`."""
    centred = (vertices - pose.translation[:, None]) / pose.scale[:, None, None]
    return np.einsum("tji,tnj->tni", pose.rotation, centred).astype(np.float32)


def apply_pose(canonical: np.ndarray, pose: Pose) -> np.ndarray:
    """Canonical face units (T, N, 3) to pixels (T, N, 3): s (R C) + t."""
    turned = np.einsum("tij,tnj->tni", pose.rotation, canonical)
    return (turned * pose.scale[:, None, None] + pose.translation[:, None]).astype(np.float32)


def angles_deg(rotation: np.ndarray) -> np.ndarray:
    """(..., 3, 3) rotations in image axes to (..., 3) yaw, pitch, roll in degrees.

    Positive yaw turns the nose to the picture's right, pitch downwards, roll the crown to the picture's left.
    """
    return camera_angles_deg(rotation * _FLIP[:, None] * _FLIP[None])


def camera_angles_deg(m: np.ndarray) -> np.ndarray:
    """(..., 3, 3) rotations in camera axes (y up, z to the viewer) to (..., 3) yaw, pitch, roll in degrees."""
    yaw = np.arctan2(m[..., 0, 2], m[..., 2, 2])
    pitch = np.arcsin(np.clip(-m[..., 1, 2], -1, 1))
    roll = np.arctan2(m[..., 1, 0], m[..., 1, 1])
    return np.degrees(np.stack([yaw, pitch, roll], -1)).astype(np.float32)


def rotation_from_angles(angles: np.ndarray) -> np.ndarray:
    """(..., 3) yaw, pitch, roll in degrees to (..., 3, 3) rotations in image axes: yaw after pitch after roll."""
    yaw, pitch, roll = np.moveaxis(np.radians(np.asarray(angles, np.float64)), -1, 0)
    zero, one = np.zeros_like(yaw), np.ones_like(yaw)

    def matrix(*rows: np.ndarray) -> np.ndarray:
        return np.stack(rows, -1).reshape(*yaw.shape, 3, 3)

    cy, sy, cp, sp, cr, sr = (
        np.cos(yaw),
        np.sin(yaw),
        np.cos(pitch),
        np.sin(pitch),
        np.cos(roll),
        np.sin(roll),
    )
    turn = matrix(cy, zero, sy, zero, one, zero, -sy, zero, cy)
    nod = matrix(one, zero, zero, zero, cp, -sp, zero, sp, cp)
    tilt = matrix(cr, -sr, zero, sr, cr, zero, zero, zero, one)
    return ((turn @ nod @ tilt) * _FLIP[:, None] * _FLIP[None]).astype(np.float32)
