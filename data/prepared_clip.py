"""One prepared clip, by the data contract's files (ours or the public code's), read frame by frame.

What counts as a frame here, and smoothing: ../shared/parity/rhm/README.md, section 8, "Cleaning".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from data.array_files import TensorFile, npy_shape, read_npy
from data.byte_range import ByteRange
from data.clip_frames import Frames, JpegFrames, open_frames
from data.contract import ClipPaths
from face.contract_pose import frontal_key_frame, reverse_rt, smooth_landmarks
from face.pose import Pose
from util.errors import UserError

CONTRACT_SIZE = 256  # pixels: the side of every video that carries no track of ours
MAX_FRAMES = 250_000  # almost three hours: more is a made-up header
MAX_PIXELS = 16 * CONTRACT_SIZE  # a landmark farther away than this would be drawn for minutes
SPARE_FRAMES, SPARE_SHARE = 3, 0.05  # by how much the files of a clip may differ in length
_INNER_FACE = slice(17, 68)  # brows, eyes, nose and mouth
_UPPER_LIP, _LOWER_LIP = [61, 62, 63], [67, 66, 65]


@dataclass(frozen=True)
class ClipFiles:
    """The files of one prepared clip, wherever they lie."""

    video: ByteRange
    landmarks: ByteRange
    rt: ByteRange
    front: ByteRange
    ani: ByteRange | None = None
    track: ByteRange | None = None

    @classmethod
    def of(cls, paths: ClipPaths) -> ClipFiles:
        """The files of a folder; ani and track may be missing. Raises UserError where another is."""
        needed = (ByteRange.whole(p) for p in (paths.video, paths.landmarks, paths.rt, paths.front))
        return cls(*needed, ByteRange.if_there(paths.ani), ByteRange.if_there(paths.track))

    @property
    def n_frames(self) -> int:
        """T of the landmarks, by their header alone. Raises UserError where that is damaged."""
        return npy_shape(self.landmarks)[0]


@dataclass(frozen=True, eq=False)
class PreparedClip:
    """N frames of one clip in which a face was seen; frames are counted from 0 among these.

    Pixels are those of the pictures that `images` gives. Our meshes are steadied already and come as they are; the
    public code's landmarks are smoothed here.
    """

    files: ClipFiles
    size: int  # S: side of the pictures
    number: np.ndarray  # (N,) int64 ascending: place in the video at 25 fps
    landmarks: np.ndarray  # (N, 68, 3) float32 pixels
    rt: np.ndarray  # (N, 6) float32: rotation vector in radians, translation in the prepared clip's pixels
    key: int  # the frame of the video that gives `ani` its texture
    _side: int  # of the prepared pictures
    _video: Frames
    _ani: Frames | None
    _track: TensorFile | None

    @classmethod
    def open(
        cls,
        files: ClipFiles,
        size: int | None = None,
        cache: Path | None = None,
        with_ani: bool = True,
        key_frame: int = -1,
    ) -> PreparedClip:
        """size: pictures are resized to it; None leaves them as they are. cache: of `open_frames`.

        with_ani: whether `ani` is going to be asked for. key_frame: the frame of the video that gives `ani` its
        texture; -1 finds the one turned least. Where video, ani and arrays differ by 5 % or 3 frames in length,
        the shortest counts. Raises UserError where they differ by more, or a file is damaged, of another shape, or
        holds values that are not finite; where no frame shows a face.
        """
        track = TensorFile(files.track) if files.track else None
        landmarks, rt = _points(files.landmarks), read_npy(files.rt, (6,))
        n_front = npy_shape(files.front)[0]
        video = _frames(files.video, track, "video_bytes", cache)
        ani = _frames(files.ani, track, "ani_bytes", cache) if with_ani and files.ani else None
        n = _common_length(files, [n_front, *map(len, (landmarks, rt, video, *([ani] if ani else [])))])
        landmarks = landmarks[:n]
        side = _prepared_size(track)
        kept = _usable(landmarks, track, side)
        if not len(kept):
            raise UserError(f"{files.landmarks}: no frame shows a face; leave the clip out")
        if not -1 <= key_frame < n_front:
            raise UserError(
                f"{files.front}: has no frame {key_frame}, the one for the 3D image; prepare it again"
            )
        landmarks = landmarks[kept] if track else smooth_landmarks(landmarks[kept])
        size = size or side
        return cls(
            files=files,
            size=size,
            number=kept,
            landmarks=_resized(landmarks, size / side),
            rt=rt[kept],
            key=key_frame if key_frame >= 0 else int(kept[frontal_key_frame(rt[kept])]),
            _side=side,
            _video=video,
            _ani=ani,
            _track=track,
        )

    def __len__(self) -> int:
        return len(self.number)

    @property
    def has_ani(self) -> bool:
        """Whether `ani` can be asked for."""
        return self._ani is not None

    @property
    def has_mesh(self) -> bool:
        """Whether there is a track of ours: pose, `vertices` and `blendshapes`; and `ani` shows the expression."""
        return self._track is not None

    @cached_property
    def opening(self) -> np.ndarray:
        """(N,) float32: how far the mouth is open, pixels of the standard face. Raises UserError."""
        lips = self._front[self.number][..., 1]
        return (lips[:, _LOWER_LIP] - lips[:, _UPPER_LIP]).mean(1)

    @cached_property
    def pose(self) -> Pose:
        """N frames by the mesh, in the pictures' pixels; with a track of ours only. Raises UserError."""
        return _pose(self._track, self.number, self.size / self._side)

    @cached_property
    def _front(self) -> np.ndarray:
        """(T, 68, 3) of all frames of the video."""
        return _points(self.files.front)

    @cached_property
    def angles(self) -> np.ndarray:
        """(N, 3) yaw, pitch, roll in degrees by the mesh's pose."""
        return self.pose.angles_deg

    def images(self, frames: Sequence[int]) -> np.ndarray:
        """(F, S, S, 3) uint8 RGB. Raises UserError where a frame is damaged."""
        return np.stack(self.pictures(frames))

    def ani(self, frames: Sequence[int]) -> np.ndarray:
        """(F, S, S, 3) uint8 RGB: the 3D projection images, (nearly) black outside the face. As `images`."""
        return np.stack(self.ani_pictures(frames))

    def pictures(self, frames: Sequence[int]) -> list[np.ndarray]:
        """`images`, not copied into one array."""
        return self._read(self._video, self.files.video, frames)

    def ani_pictures(self, frames: Sequence[int]) -> list[np.ndarray]:
        """`ani`, not copied into one array."""
        if self._ani is None:
            raise UserError(f"{self.files.video}: has no 3D projection video beside it; leave --warp_ani out")
        return self._read(self._ani, self.files.ani, frames)

    def ani_landmarks(self, frames: Sequence[int]) -> np.ndarray:
        """(F, 68, 3) float32 pixels of the face that `ani` shows: ours has the frame's expression, others' don't."""
        if self.has_mesh:
            return self.landmarks[list(frames)]
        return self.posed(self._front[self.key], frames)

    def posed(self, front: np.ndarray, frames: Sequence[int]) -> np.ndarray:
        """(F, 68, 3) float32 pixels: a frontal face (68, 3) in this clip's head poses."""
        return _resized(reverse_rt(front, self.rt[list(frames)]), self.size / self._side)

    def front(self, frames: Sequence[int]) -> np.ndarray:
        """(F, 68, 3) float32 frontal landmarks, pixels of the standard face."""
        return self._front[self.number[list(frames)]]

    def vertices(self, frames: Sequence[int]) -> np.ndarray:
        """(F, 478, 3) float32 pixels (pixel centres are whole), steadied over time; with a track of ours only."""
        rows = self._track.rows("vertices", self.number[list(frames)], (478, 3))
        return _resized(rows.astype(np.float32) / 64, self.size / self._side)

    def blendshapes(self, frames: Sequence[int]) -> np.ndarray:
        """(F, 52) float32; with a track of ours only."""
        return self._track.rows("blendshapes", self.number[list(frames)], (52,)).astype(np.float32) / 255

    def _read(self, source: Frames, file: ByteRange, frames: Sequence[int]) -> list[np.ndarray]:
        pictures, side = source(self.number[list(frames)].tolist()), self._side
        if odd := next((p.shape for p in pictures if p.shape != (side, side, 3)), None):
            raise UserError(
                f"{file}: has a frame of {odd[1]} x {odd[0]} pixels; {side} x {side} are needed; prepare the clip again"
            )
        if side == self.size:
            return pictures
        how = cv2.INTER_AREA if side > self.size else cv2.INTER_LINEAR
        return [cv2.resize(p, (self.size, self.size), interpolation=how) for p in pictures]


def _points(file: ByteRange) -> np.ndarray:
    """(T, 68, 3) float32 landmarks."""
    if (shape := npy_shape(file)) and shape[0] > MAX_FRAMES:
        raise UserError(f"{file}: tells of {shape[0]} frames; {MAX_FRAMES} at most; cut the clip")
    points = read_npy(file, (68, 3))
    if len(points) and np.abs(points).max() > MAX_PIXELS:
        raise UserError(f"{file}: a point is {np.abs(points).max():.0f} pixels away; prepare the clip again")
    return points


def _frames(file: ByteRange, track: TensorFile | None, places: str, cache: Path | None) -> Frames:
    if track and places in track:
        return JpegFrames(file, track.tensor(places, (2,)))
    return open_frames(file, cache)


def _common_length(files: ClipFiles, lengths: list[int]) -> int:
    shortest, longest = min(lengths), max(lengths)
    if not shortest or longest - shortest > max(SPARE_FRAMES, SPARE_SHARE * longest):
        raise UserError(
            f"{files.video}: video and arrays have {shortest} to {longest} frames; they don't belong together, "
            "prepare the clip again"
        )
    return shortest


def _prepared_size(track: TensorFile | None) -> int:
    if track is None:
        return CONTRACT_SIZE
    size = str(track.metadata.get("size", CONTRACT_SIZE))
    if track.metadata.get("version") != "1" or not size.isdigit() or not 16 <= int(size) <= 4096:
        raise UserError(f"{track.file}: is of another version; prepare the clip again")
    return int(size)


def _usable(landmarks: np.ndarray, track: TensorFile | None, side: int) -> np.ndarray:
    """Numbers of the frames that are kept."""
    xy = np.ascontiguousarray(landmarks[..., :2].transpose(2, 0, 1))  # (2, T, 68): sums along rows are fast
    good = ((xy.max(2) - xy.min(2)).astype(int) > 0).all(0)
    if track:
        # The crop may stand still while the head leaves it. The public code keeps such frames.
        inner = xy[..., _INNER_FACE]
        good &= ((inner.min(2) >= 0) & (inner.max(2) <= side - 1)).all(0)
        good &= _column(track, "seen", (), len(good)).astype(bool)
    return np.flatnonzero(good)


def _pose(track: TensorFile, kept: np.ndarray, factor: float) -> Pose:
    n = int(kept[-1]) + 1
    rotation = _column(track, "rotation", (3, 3), n)[kept]
    scale, shift = _column(track, "scale", (), n)[kept], _column(track, "translation", (3,), n)[kept]
    if not all(np.isfinite(a).all() for a in (rotation, scale, shift)):
        raise UserError(f"{track.file}: a pose is not finite; prepare the clip again")
    return Pose(rotation, scale * np.float32(factor), _resized(shift, factor))


def _column(track: TensorFile, name: str, shape: tuple[int, ...], n: int) -> np.ndarray:
    """The first n rows of a tensor."""
    column = track.tensor(name, shape)
    if len(column) < n:
        raise UserError(f"{track.file}: {name} is of {len(column)} frames, not {n}; prepare the clip again")
    return column[:n]


def _resized(points: np.ndarray, factor: float) -> np.ndarray:
    """Points (..., 3) in pixels, whose centres are whole, in a picture that was resized."""
    if factor == 1:
        return points
    half = np.array([0.5, 0.5, 0], np.float32)
    return ((points + half) * np.float32(factor) - half).astype(np.float32)
