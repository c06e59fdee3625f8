"""Boxes of a face's parts, from its 68 landmarks: for the discriminators, and to be blanked (--crop_ref)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from face.landmarks68 import MOUTH

FACE_MARGIN, MOUTH_MARGIN = 0.1, 0.25  # of the part's larger side, at each side
# The data contract's boxes: points, and by how many pixels of a 256 grid their box is widened.
_TEMPLATE = ((slice(36, 42), 2), (slice(42, 48), 2), ([48, 50, 51, 54, 57], 5))
_GRID = 256


def template_masks(landmarks: np.ndarray, size: int) -> Tensor:
    """(N, 1, S, S) float32: 1 in the boxes about both eyes and the mouth, else 0.

    landmarks: (N, 68, 2 or 3) pixels. Data contract, "crop_ref mask", on its 256 grid scaled to S.
    """
    masks = np.zeros((len(landmarks), 1, size, size), np.float32)
    points = landmarks[..., :2] * (_GRID / size)
    for part, margin in _TEMPLATE:
        box = points[:, part]
        corners = np.concatenate([box.min(1) - margin, box.max(1) + margin], 1).astype(int)
        edges = np.round(np.clip(corners, 0, _GRID - 1) * (size / _GRID)).astype(int).tolist()
        for mask, (x0, y0, x1, y1) in zip(masks, edges, strict=True):
            mask[0, y0:y1, x0:x1] = 1
    return torch.from_numpy(masks)


def face_boxes(landmarks: np.ndarray, size: int) -> Tensor:
    """(N, 4) float32 x0, y0, x1, y1: whole pixels' edges of a square about each face, inside the picture."""
    return _squares(landmarks[..., :2], FACE_MARGIN, size)


def mouth_boxes(landmarks: np.ndarray, size: int) -> Tensor:
    """(N, 4) float32, as `face_boxes`: a square about each mouth."""
    return _squares(landmarks[:, MOUTH, :2], MOUTH_MARGIN, size)


def _squares(points: np.ndarray, margin: float, size: int) -> Tensor:
    low, high = points.min(1), points.max(1)
    side = np.clip(np.ceil((high - low).max(1) * (1 + 2 * margin)), 1, size)[:, None]
    corner = np.clip(np.round((low + high + 1 - side) / 2), 0, size - side)
    return torch.from_numpy(np.concatenate([corner, corner + side], 1).astype(np.float32))
