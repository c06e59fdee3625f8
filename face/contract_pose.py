"""Rigid frontalisation of 68 landmarks: the data contract's `*_front.npy` and `*_rt.npy`, and smoothing.

A frame's rotation R and translation t map the frame onto a standard face, without scale: front = R x + t.
They are kept as rt = [rotation vector in radians, translation in pixels]. Source:
../shared/parity/rhm/README.md, section 8.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.spatial.transform import Rotation

from face.landmarks68 import check_landmarks68
from util.errors import ShapeError, UserError

# jaw without the chin, nose, eye corners, brow ends: what moves least with expression
STABLE_POINTS = np.array(
    (1, 2, 3, 4, 5, 11, 12, 13, 14, 15, 27, 28, 29, 30, 31, 32, 33, 34, 35, 39, 42, 36, 45, 17, 21, 22, 26)
)
LANDMARK_WINDOW = 5  # frames of the Hann window over landmark tracks
_STACK = 2048  # frames per batch of singular value decompositions: bounds the memory of hour-long clips


@cache
def standard_face(size: int = 256) -> np.ndarray:
    """(68, 3) float32: the face without a pose that our `*_front.npy` and `*_rt.npy` refer to, pixels of a crop.

    The expression basis' mean face, as large and where `face.crop` puts a frontal one in its size x size pixels.
    """
    from face.crop import ABOVE_EYES, FACE_UNIT, LEFT_OF_EYES, SIDE, face_geometry  # which imports this file
    from face.expression_basis import load_basis
    from face.landmarks68 import to_landmarks68

    face = to_landmarks68(load_basis().template).astype(np.float64)
    unit = size / SIDE  # crop pixels per pixel of the contract
    (extent,), _ = face_geometry(face[None])
    face *= FACE_UNIT * unit / extent
    _, (eyes,) = face_geometry(face[None])
    face[:, :2] += np.array([LEFT_OF_EYES, ABOVE_EYES]) * unit - eyes - 0.5  # the centres of pixels are whole
    face = face.astype(np.float32)
    face.flags.writeable = False
    return face


def rigid_fit(points: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least-squares rotation and translation, without scale, of point sets onto one target (Kabsch).

    points: (..., N, 3). target: (N, 3), same unit. Returns R (..., 3, 3), proper (determinant 1), and
    t (..., 3), float64, so that R x + t is nearest to the target.
    """
    centre, target_centre = points.mean(-2, keepdims=True), target.mean(-2)
    covariance = np.swapaxes(points - centre, -1, -2) @ (target - target_centre)
    u, _, vt = np.linalg.svd(covariance)
    mirrored = np.linalg.det(u) * np.linalg.det(vt) < 0
    vt[..., 2, :] *= np.where(mirrored, -1.0, 1.0)[..., None]
    rotation = np.swapaxes(vt, -1, -2) @ np.swapaxes(u, -1, -2)
    shift = target_centre - (rotation @ np.swapaxes(centre, -1, -2))[..., 0]
    return rotation, shift


def frontalise(landmarks: np.ndarray, standard: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Take the head's pose out of landmarks, frame by frame.

    landmarks: (T, 68, 3) pixels. standard: (68, 3), a frontal face in pixels; files made with another
    standard face are not comparable. Returns front (T, 68, 3) float32 pixels, in the standard's frame, and
    rt (T, 6) float32: rotation vector in radians, then translation in pixels. Inverse: `reverse_rt`. Raises
    ShapeError for other shapes, UserError for values that are not finite.
    """
    check_landmarks68(landmarks, n_axes=3)
    check_landmarks68(standard, n_axes=2)
    if not np.isfinite(landmarks).all():
        bad = int(np.flatnonzero(~np.isfinite(landmarks).all((1, 2)))[0])
        raise UserError(
            f"landmarks: frame {bad} is not finite; every frame needs 68 points; drop or fill that frame"
        )
    goal = standard[STABLE_POINTS].astype(np.float64)
    front, rt = np.empty(landmarks.shape, np.float32), np.empty((len(landmarks), 6), np.float32)
    for i in range(0, len(landmarks), _STACK):
        part = landmarks[i : i + _STACK].astype(np.float64)
        rotation, shift = rigid_fit(part[:, STABLE_POINTS], goal)
        front[i : i + _STACK] = part @ np.swapaxes(rotation, -1, -2) + shift[:, None]
        rt[i : i + _STACK, :3] = Rotation.from_matrix(rotation).as_rotvec()
        rt[i : i + _STACK, 3:] = shift
    return front, rt


def reverse_rt(front: np.ndarray, rt: np.ndarray) -> np.ndarray:
    """Give frontal landmarks a frame's head pose: R^T (front - t). Inverse of `frontalise`.

    front: (T, N, 3) or one face (N, 3) for all poses, pixels. rt: (T, 6). Returns (T, N, 3) float32, pixels.
    Raises ShapeError unless rt is (T, 6) and front fits it.
    """
    if rt.ndim != 2 or rt.shape[1] != 6:
        raise ShapeError("rt", "(T, 6)", rt.shape)
    if front.ndim not in (2, 3) or front.shape[-1] != 3 or (front.ndim == 3 and len(front) != len(rt)):
        raise ShapeError("front", f"({len(rt)}, N, 3) or (N, 3)", front.shape)
    rotation = Rotation.from_rotvec(rt[:, :3]).as_matrix()
    return ((front - rt[:, None, 3:].astype(np.float64)) @ rotation).astype(np.float32)


def frontal_key_frame(rt: np.ndarray) -> int:
    """The frame of rt (T, 6) that is turned least: smallest |r1| + |r2| + |r3|."""
    return int(np.abs(rt[:, :3]).sum(1).argmin())


def smooth_hann(track: np.ndarray, window: int) -> np.ndarray:
    """Smooth a track (T, ...) over time with a Hann window of an odd number of frames; ends are reflected.

    Returns float64 of the same shape. A one-frame track comes back as it is.
    """
    half = window // 2
    weights = np.hanning(window) / np.hanning(window).sum()
    padded = np.pad(track.astype(np.float64), [(half, half)] + [(0, 0)] * (track.ndim - 1), mode="reflect")
    return sum(w * padded[k : k + len(track)] for k, w in enumerate(weights))


def smooth_landmarks(landmarks: np.ndarray) -> np.ndarray:
    """Smooth x and y of landmarks (T, 68, 3) over 5 frames (Hann); z is left as it is. Returns float32."""
    check_landmarks68(landmarks, n_axes=3)
    smooth = landmarks.astype(np.float32)
    smooth[..., :2] = smooth_hann(landmarks[..., :2], LANDMARK_WINDOW)
    return smooth
