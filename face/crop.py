"""The square crop around a face: fixed scale, smoothed over time, and its way back into the uncropped frame.

Formulas of the data contract (../shared/parity/rhm/README.md, section 8, "Video crop"), with two changes:
the corner keeps its fraction of a pixel, so that a smooth path stays smooth, and what lies outside the
picture repeats the picture's edge instead of being black.

Points are measured in pixels from the picture's outer corner, as image fractions times its size are: pixel i
covers [i, i + 1) and its centre is at i + 0.5. A crop's own pixels are measured likewise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from face.contract_pose import smooth_hann
from face.landmarks68 import check_landmarks68
from util.curves import smoothstep
from util.errors import UserError

CROP_SIZE = 256  # pixels of the generator's square
FACE_UNIT = 90.0  # the face box that the contract's figures are for
SIDE, LEFT_OF_EYES, ABOVE_EYES = 205.0, 100.0, 80.0  # per FACE_UNIT of face box
CROP_WINDOW = 11  # frames of the Hann window over the crop's path
MAX_SHRINK = 0.2  # a window may lose this part of its side to fit into the picture
MAX_PLAIN_STEP = 1.2  # see `extract_whole`
MAX_DIRECT_STEP = 4.0  # above this reduction, whole blocks of pixels are averaged first


@dataclass(frozen=True)
class CropBox:
    """A square window in source pixels; its corner may lie outside the picture."""

    left: float
    top: float
    side: float


def face_geometry(landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Face size (T,) and point between the eyes (T, 2), pixels, of landmarks (T, 68, 2 or 3)."""
    if not np.isfinite(landmarks).all() or not len(landmarks):
        raise UserError("crop: landmarks are missing or not finite; a face in every frame is needed")
    points = landmarks[..., :2].astype(np.float64)
    face = np.ptp(points, axis=1).max(1)
    # each eye's last point is left out, as in the contract
    eyes = (points[:, 36:41].mean(1) + points[:, 42:47].mean(1)) / 2
    return face, eyes


def _inside(box: CropBox, eye: np.ndarray, width: int, height: int) -> CropBox:
    """Shrink a box about the eyes, by a fifth at most, and shift it, for the most of the picture."""
    side = min(box.side, max(min(width, height), (1 - MAX_SHRINK) * box.side))
    lost = 1 - side / box.side
    left = box.left + (eye[0] - box.left) * lost
    top = box.top + (eye[1] - box.top) * lost
    left = min(max(left, min(0.0, width - side)), max(0.0, width - side))
    top = min(max(top, min(0.0, height - side)), max(0.0, height - side))
    return CropBox(float(left), float(top), float(side))


def crop_boxes(
    landmarks: np.ndarray, static: bool = False, frame_size: tuple[int, int] | None = None
) -> list[CropBox]:
    """One box per frame of a clip, all of one side, which follow the face without jitter.

    landmarks: (T, 68, 3) source pixels. static: one box for the whole clip (the mean); else the path is
    smoothed over 11 frames (Hann). frame_size: (width, height) of the clip; if given, boxes are shifted
    into the picture, and made smaller by a fifth at most, as `photo_crop` does. Raises ShapeError for other
    shapes, UserError for values that are not finite.
    """
    check_landmarks68(landmarks, n_axes=3, dims=(2, 3))
    face, eyes = face_geometry(landmarks)
    unit = face.mean() / FACE_UNIT
    eyes = np.broadcast_to(eyes.mean(0), eyes.shape) if static else smooth_hann(eyes, CROP_WINDOW)
    side = float(max(int(SIDE * unit), 1))
    boxes = [CropBox(float(x - LEFT_OF_EYES * unit), float(y - ABOVE_EYES * unit), side) for x, y in eyes]
    if frame_size is None:
        return boxes
    return [_inside(box, eye, *frame_size) for box, eye in zip(boxes, eyes, strict=True)]


def photo_crop(landmarks: np.ndarray, width: int, height: int) -> CropBox:
    """The box of one picture (68, 3): shifted into the picture where it fits, else shrunk by a fifth at most.

    What still hangs over is filled by `extract` from the picture's edge.
    """
    check_landmarks68(landmarks, n_axes=2, dims=(2, 3))
    return crop_boxes(landmarks[None], static=True, frame_size=(width, height))[0]


def _resample(image: np.ndarray, left: float, top: float, step: float, width: int, height: int) -> np.ndarray:
    """Average `image` over squares of `step` pixels from (left, top) on: (height, width, ...), same dtype.

    Beyond the image its edge repeats. Enlarging (step < 1) interpolates cubically. When shrinking, every
    output pixel is the mean of all that it covers, so fine texture does not turn into false patterns.
    """
    margin = 3 + 2 * math.ceil(step)
    x0, x1 = (int(np.clip(v, 0, image.shape[1])) for v in (left - margin, left + step * width + margin))
    y0, y1 = (int(np.clip(v, 0, image.shape[0])) for v in (top - margin, top + step * height + margin))
    x0, y0 = min(x0, image.shape[1] - 1), min(y0, image.shape[0] - 1)
    image = image[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
    left, top = left - x0, top - y0
    if step >= MAX_DIRECT_STEP:
        block = int(step / 2)
        bottom, right = -image.shape[0] % block, -image.shape[1] % block
        image = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
        shape = (image.shape[1] // block, image.shape[0] // block)
        image = cv2.resize(image, shape, interpolation=cv2.INTER_AREA)
        left, top, step = left / block, top / block, step / block
    n = max(math.ceil(step - 1e-6), 1)  # samples per output pixel, each way
    fine = step / n
    # OpenCV measures from the centre of the first pixel
    to_source = np.array([[fine, 0, left + fine / 2 - 0.5], [0, fine, top + fine / 2 - 0.5]])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    big = cv2.warpAffine(
        image, to_source, (n * width, n * height), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    return big if n == 1 else cv2.resize(big, (width, height), interpolation=cv2.INTER_AREA)


def extract(image: np.ndarray, box: CropBox, size: int = CROP_SIZE) -> np.ndarray:
    """The picture inside a box, (size, size) or (size, size, C) of image's dtype (uint8 or float32).

    image: (H, W) or (H, W, C). Accurate to 1/32 pixel; free of aliasing at any reduction.
    """
    return _resample(image, box.left, box.top, box.side / size, size, size)


def whole(box: CropBox) -> CropBox:
    """The box of whole pixels nearest to this one; `extract_whole` is several times as fast as `extract`."""
    return CropBox(float(round(box.left)), float(round(box.top)), float(max(round(box.side), 1)))


def extract_whole(image: np.ndarray, box: CropBox, size: int = CROP_SIZE) -> np.ndarray:
    """`extract` of a box of whole pixels, (H, W, 3) to (size, size, 3), uint8 or float32.

    Up to a reduction by 1.2 plain cubic interpolation is nearer to the truth than a mean: a grating of 0.3 waves per
    pixel is off by 9 % then, not by 21 %, and only what is finer than 0.42 can alias.
    """
    height, width = image.shape[:2]
    left, top, side = (int(v) for v in (box.left, box.top, box.side))
    over = max(-top, 0), max(top + side - height, 0), max(-left, 0), max(left + side - width, 0)
    part = image[max(top, 0) : top + side, max(left, 0) : left + side]
    if not part.size or max(over) >= side:  # nothing of the picture is inside: its edge alone
        return extract(image, box, size)
    if any(over):
        part = cv2.copyMakeBorder(part, *over, cv2.BORDER_REPLICATE)
    shrinks = side > MAX_PLAIN_STEP * size
    return cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def to_crop(points: np.ndarray, box: CropBox, size: int = CROP_SIZE) -> np.ndarray:
    """Points (..., 2 or 3) from source pixels into a crop's pixels; z is scaled like x."""
    return _move(points, box, size / box.side, inverse=False)


def from_crop(points: np.ndarray, box: CropBox, size: int = CROP_SIZE) -> np.ndarray:
    """Points (..., 2 or 3) from a crop's pixels into source pixels. Inverse of `to_crop`."""
    return _move(points, box, box.side / size, inverse=True)


def _move(points: np.ndarray, box: CropBox, scale: float, inverse: bool) -> np.ndarray:
    corner = np.zeros(points.shape[-1])
    corner[:2] = box.left, box.top
    moved = points * scale + corner if inverse else (points - corner) * scale
    return moved.astype(np.float32)


def paste(frame: np.ndarray, patch: np.ndarray, box: CropBox, feather: float = 0.1) -> np.ndarray:
    """Put a generated square back into the frame that its box was taken from; returns a new frame.

    frame: (H, W, 3) uint8. patch: (S, S, 3) uint8, any S. feather: part of the box's side, at each border,
    over which the patch fades in (0 to 0.5). The fade has no kink and ends at the box, so no edge shows. A
    box that hangs over the frame's border fades by its own border, thus smoothly in time as it moves.
    """
    if not 0 <= feather <= 0.5:
        raise UserError(f"feather: {feather}; a part of the box's side is needed; choose 0 to 0.5")
    height, width = frame.shape[:2]
    x0, x1 = max(math.floor(box.left), 0), min(math.ceil(box.left + box.side), width)
    y0, y1 = max(math.floor(box.top), 0), min(math.ceil(box.top + box.side), height)
    out = frame.copy()
    if x1 <= x0 or y1 <= y0:
        return out
    step = patch.shape[0] / box.side
    fitted = _resample(patch, (x0 - box.left) * step, (y0 - box.top) * step, step, x1 - x0, y1 - y0)
    alpha = _fade(np.arange(y0, y1) - box.top, box.side, feather)[:, None]
    alpha = alpha * _fade(np.arange(x0, x1) - box.left, box.side, feather)
    out[y0:y1, x0:x1] = cv2.blendLinear(fitted, frame[y0:y1, x0:x1], alpha, 1 - alpha)
    return out


def _fade(at: np.ndarray, side: float, feather: float) -> np.ndarray:
    """The patch's weight (N,) float32 at pixels that begin at `at` (N,) in a box: 0 at its border, then 1."""
    depth = np.minimum(at + 0.5, side - at - 0.5) / max(feather * side, 1.0)
    return smoothstep(depth).astype(np.float32)


def crop_motion(boxes: Sequence[CropBox]) -> float:
    """Mean distance in source pixels that the crop's corner moves from frame to frame."""
    corner = np.array([(b.left, b.top) for b in boxes])
    return float(np.linalg.norm(np.diff(corner, axis=0), axis=1).mean()) if len(corner) > 1 else 0.0
