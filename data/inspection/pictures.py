"""Pictures of a prepared clip: strips of frames with what belongs to them, and a short film to play."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from face import landmarks68 as parts
from face.sketch import draw_sketch
from util.types import Voice
from util.video import VideoWriter

TILE = 136  # pixels of a frame in a strip
FILM_FRAMES = 75
_FILM_PX, _CHECKERS = 160, 8
_ANI_FACE = 10  # the contract's: where every channel is below this is background
_GAP, _GREY = 4, 128
_SUBPIXEL = 4  # bits, of OpenCV's drawing
# Okabe and Ito's colours, which the colour-blind can tell apart, on any skin; RGB
_PART_COLOURS = (
    (parts.JAW, (86, 180, 233)),
    (slice(parts.RIGHT_BROW.start, parts.LEFT_BROW.stop), (240, 228, 66)),
    (slice(parts.NOSE_BRIDGE.start, parts.NOSE_BASE.stop), (255, 255, 255)),
    (slice(parts.RIGHT_EYE.start, parts.LEFT_EYE.stop), (0, 158, 115)),
    (parts.MOUTH, (213, 94, 0)),
)


@dataclass(frozen=True)
class StripRow:
    """One row of a clip's pictures: the same frames, shown in one way."""

    name: str
    note: str  # what to look for
    picture: np.ndarray  # (TILE, W, 3) RGB uint8


def ani_mask(ani: np.ndarray) -> np.ndarray:
    """(..., H, W) bool: where an ani image (..., H, W, 3) uint8 shows face."""
    return (ani >= _ANI_FACE).any(-1)


def strip_rows(crops: np.ndarray, landmarks: np.ndarray, anis: np.ndarray | None) -> list[StripRow]:
    """Rows of the same N frames. crops, anis: (N, S, S, 3) uint8; landmarks: (N, 68, 3) pixels."""
    close, moved = _close_up(crops, landmarks)
    rows = [
        StripRow(
            "landmarks", "they lie on jaw, brows, nose, eyes and lips", _joined(_drawn(close, moved, TILE))
        ),
        StripRow("sketch", "the same face in lines", _strip(_sketches(landmarks, crops.shape[1]))),
    ]
    if anis is None:
        return [*rows, StripRow("crop", "the whole picture", _strip(crops))]
    both = np.stack([_checkered(crop, ani) for crop, ani in zip(crops, anis, strict=True)])
    return [
        *rows,
        StripRow("ani", "the face in 3D, turned as in the crop", _strip(anis)),
        StripRow("crop and ani", "in squares by turns; lines go on across their borders", _strip(both)),
    ]


def frontal_row(front: np.ndarray, frames: list[int]) -> StripRow:
    """Frontal faces of some frames, and behind a gap those of all frames, laid over one another.

    front: (T, 68, 3) pixels of the standard face.
    """
    flat = front[..., :2].astype(np.float64)
    low, high = flat.min((0, 1)), flat.max((0, 1))
    placed = (flat - (low + high) / 2) * (0.9 * TILE / max(float((high - low).max()), 1e-6)) + TILE / 2
    every = placed[:: max(len(placed) // 100, 1)]
    over = _sketches(every, TILE, upper_face=False).mean(0, keepdims=True).astype(np.uint8)
    gap = np.full((TILE, _GAP, 3), _GREY, np.uint8)
    tiles = [*_sketches(placed[frames], TILE, upper_face=False), gap, *over]
    note = "the same face, not turned; last: all frames, sharp but for lips and jaw"
    return StripRow("frontal", note, _joined(tiles))


def _close_up(crops: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The square around all landmarks, of pictures and points; as far as it is in the picture."""
    size = crops.shape[1]
    low, high = landmarks[..., :2].min((0, 1)), landmarks[..., :2].max((0, 1))
    side = int(np.clip(1.15 * float((high - low).max()), size / 4, size))
    left, top = np.clip(((low + high - side) / 2).round(), 0, size - side).astype(int).tolist()
    shift = np.array([left, top, 0], np.float32)
    return crops[:, top : top + side, left : left + side], landmarks - shift


def _drawn(crops: np.ndarray, landmarks: np.ndarray, size: int) -> np.ndarray:
    """Pictures (N, S, S, 3) resized to `size`, with the 68 points on them."""
    factor = size / crops.shape[1]
    tiles = _resized(crops, size)
    at = ((landmarks[..., :2] + 0.5) * factor - 0.5) * 2**_SUBPIXEL  # pixel centres are whole numbers
    for tile, points in zip(tiles, at.round().astype(int), strict=True):
        for part, colour in _PART_COLOURS:
            for x, y in points[part].tolist():
                cv2.circle(tile, (x, y), 24, (0, 0, 0), -1, cv2.LINE_AA, _SUBPIXEL)
                cv2.circle(tile, (x, y), 15, colour, -1, cv2.LINE_AA, _SUBPIXEL)
    return tiles


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    how = cv2.INTER_AREA if images.shape[1] > size else cv2.INTER_CUBIC
    return np.stack([cv2.resize(image, (size, size), interpolation=how) for image in images])


def _sketches(landmarks: np.ndarray, size: int, upper_face: bool = True) -> np.ndarray:
    """(N, size, size, 3) uint8."""
    return np.repeat(draw_sketch(landmarks, size, upper_face)[..., None], 3, -1)


def _checkered(crop: np.ndarray, ani: np.ndarray) -> np.ndarray:
    """Fields of crop and ani by turns; crop wherever ani shows no face."""
    field = np.arange(len(crop)) * _CHECKERS // len(crop)
    turn = (field[:, None] + field) % 2 == 1
    return np.where((turn & ani_mask(ani))[..., None], ani, crop)


def _strip(images: np.ndarray) -> np.ndarray:
    return _joined(_resized(images, TILE))


def _joined(tiles: Iterable[np.ndarray]) -> np.ndarray:
    gap = np.full((TILE, _GAP, 3), _GREY, np.uint8)
    return np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], 1)


def film(crops: np.ndarray, landmarks: np.ndarray, anis: np.ndarray | None, voice: Voice | None) -> bytes:
    """An MP4 of N frames with sound: crop with landmarks, and beside it the ani image. Arrays as in `strip_rows`."""
    shown = _drawn(crops, landmarks, _FILM_PX)
    if anis is not None:
        shown = np.concatenate([shown, _resized(anis, _FILM_PX)], 2)
    told = "Left: a filmed clip with measured points. Right, if there: its face, rendered."
    names = {"title": "Inspection of a prepared clip", "comment": told, "description": told}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        with VideoWriter(path, shown.shape[2], _FILM_PX, voice=voice, metadata=names) as video:
            for frame in shown:
                video.write(np.ascontiguousarray(frame))
        return path.read_bytes()
