"""The clip store: every clip cropped once, kept so that single frames are read without decoding a video.

One .safetensors file per clip: the frames as JPEG (quality 95, full colour resolution) in one blob with offsets, and
their meshes in the crop's pixels. A file is whole or not there, and carries its own frame size and version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.signal import savgol_filter
from tqdm import tqdm

from data.pack import MANIFEST, PackRow, face_clips, read_manifest
from data.tracks import clip_track
from face.crop import CropBox, crop_boxes, extract, to_crop
from face.expression_basis import lip_gap, load_basis
from face.landmarks68 import to_landmarks68
from face.pose import Pose, fit_pose, to_canonical
from face.reference import HALF_PIXEL
from util.errors import UserError, remark
from util.files import atomic_path
from util.video import read_frames

VERSION = "1"
CLIP_SUFFIXES = (".mp4", ".mpg", ".avi", ".mov", ".mkv", ".webm", ".flv", ".m4v")
MAX_FRAMES, RUN = 400, 50  # of a longer clip, runs of 50 successive frames spread over it are kept
MIN_FRAMES = 20
MAX_YAW = 45.0  # degrees: turned further, half of the face is a guess
STEADY = 5  # frames: target clips of a demo are smoothed likewise (models/driving.py)
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]


@dataclass(frozen=True)
class StoredClip:
    """T frames of one clip, read from its file when asked for. Frames are counted from 0 within the store."""

    path: Path
    identity: str
    number: (
        np.ndarray
    )  # (T,) int64 ascending: place in the clip at 25 fps; frames not in the store showed no face
    pose: Pose  # T frames, crop pixels
    lip_gap: np.ndarray  # (T,) float32, face units

    def __len__(self) -> int:
        return len(self.number)

    @cached_property
    def angles(self) -> np.ndarray:
        """(T, 3) yaw, pitch, roll in degrees."""
        return self.pose.angles_deg

    def images(self, frames: Sequence[int]) -> np.ndarray:
        """(N, S, S, 3) uint8 RGB. Raises UserError where a frame is damaged."""
        with safe_open(self.path, "numpy") as file:
            offsets, blob = file.get_tensor("offsets"), file.get_slice("jpeg")
            return np.stack([_decoded(blob[offsets[k] : offsets[k + 1]], self.path) for k in frames])

    def vertices(self, frames: Sequence[int]) -> np.ndarray:
        """(N, 478, 3) float32 in the crop's pixels (pixel centres are whole), smoothed over time."""
        return self._rows("vertices", frames)

    def blendshapes(self, frames: Sequence[int]) -> np.ndarray:
        """(N, 52) float32."""
        return self._rows("blendshapes", frames)

    def _rows(self, name: str, frames: Sequence[int]) -> np.ndarray:
        with safe_open(self.path, "numpy") as file:
            rows = file.get_slice(name)
            return np.concatenate([rows[int(k) : int(k) + 1] for k in frames])


def _decoded(jpeg: np.ndarray, path: Path) -> np.ndarray:
    image = cv2.imdecode(jpeg, cv2.IMREAD_COLOR) if len(jpeg) else None
    if image is None:
        raise UserError(f"{path}: holds a damaged frame; delete the file, it is made again")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def store_rows(root: str | Path, split: str = "train", free_only: bool = False) -> list[PackRow]:
    """The clips of a pack's split ("train" or "dev"), or all videos below a folder without manifest ("train").

    free_only leaves out what the manifest says may not be redistributed. Raises UserError for a missing folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"--dataroot {root}: no such folder; a folder of clips is needed; check the spelling")
    if (root / MANIFEST).is_file():
        rows = face_clips(read_manifest(root), split)
        return [r for r in rows if not (free_only and r.redistributable == "no")]
    videos = sorted(p for p in root.rglob("*") if p.suffix.lower() in CLIP_SUFFIXES and p.is_file())
    return [_plain_row(path, path.relative_to(root)) for path in videos] if split == "train" else []


def _plain_row(path: Path, below: Path) -> PackRow:
    """A clip without manifest: its identity is the first folder below the root, else it is its own."""
    name = "__".join(below.parts)
    identity = below.parts[0] if len(below.parts) > 1 else name
    return PackRow(name, "clip", "train", path, identity, "", "", "", "unknown", "")


def prepare_clips(
    rows: Sequence[PackRow], folder: str | Path, tracks: str | Path, size: int = 256, n_processes: int = 1
) -> list[StoredClip]:
    """The clips in the store `folder`, in the order of `rows`; those not there yet, or damaged, are made now.

    tracks: folder of face tracks (data/tracks.py). Clips that cannot be used are left out, counted and reported.
    """
    folder = Path(folder)
    missing = [r for r in rows if _open(_path(folder, r), r, size) is None]
    skipped = {}
    with _mapping(min(n_processes, len(missing))) as run:
        made = run(partial(_make, folder=folder, tracks=Path(tracks), size=size), missing)
        progress = tqdm(made, "clips", len(missing), unit="clip", disable=None if missing else True)
        skipped = {id_: error for id_, error in progress if error}
    if skipped:
        remark(f"{len(skipped)} clips left out; the first: {next(iter(skipped.values()))}")
    opened = (_open(_path(folder, r), r, size) for r in rows if r.id not in skipped)
    return [clip for clip in opened if clip is not None]


def _path(folder: Path, row: PackRow) -> Path:
    return folder / f"{row.id}.safetensors"


class _mapping:
    """`map` over some processes, or in this one if one is enough."""

    def __init__(self, n_processes: int) -> None:
        # Spawned, not forked: MediaPipe's and torch's threads do not survive a fork.
        self._pool = None
        if n_processes > 1:
            self._pool = ProcessPoolExecutor(n_processes, get_context("spawn"), cv2.setNumThreads, (1,))

    def __enter__(self) -> Callable[..., Iterator]:
        return self._pool.map if self._pool else map

    def __exit__(self, *exc) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)


def _make(row: PackRow, folder: Path, tracks: Path, size: int) -> tuple[str, str]:
    """Make the store's file of one clip; returns the clip's id and why it was left out, or "" if it wasn't."""
    try:
        with atomic_path(_path(folder, row), "--dataroot") as part:
            save_file(_content(row, tracks, size), part, {"version": VERSION, "size": str(size)})
    except UserError as error:
        return row.id, str(error)
    return row.id, ""


def _content(row: PackRow, tracks: Path, size: int) -> dict[str, np.ndarray]:
    track = clip_track(row, tracks)
    kept = spread(np.flatnonzero(track.seen))
    frames, wanted = {}, set(kept.tolist())
    box = None
    for k, image in enumerate(read_frames(row.path, "clip")):
        if k in wanted:
            box = box or _static_box(track.vertices[kept], image)
            frames[k] = cv2.imencode(".jpg", extract(image, box, size)[..., ::-1], _JPEG)[1]
    meshes = to_crop(_steady(track.vertices, track.seen), box or CropBox(0, 0, 1), size) - HALF_PIXEL
    kept = np.array([k for k in kept.tolist() if k in frames and _inside(meshes[k], size)], np.int64)
    if len(kept) < MIN_FRAMES:
        raise UserError(f"clip {row.path.name}: {len(kept)} usable frames; {MIN_FRAMES} are needed")
    meshes = meshes[kept]
    pose = fit_pose(meshes, load_basis().template)
    yaw = float(np.median(np.abs(pose.angles_deg[:, 0])))
    if yaw > MAX_YAW:
        raise UserError(
            f"clip {row.path.name}: the face is turned by {yaw:.0f} degrees; {MAX_YAW:.0f} at most"
        )
    return {
        "jpeg": np.concatenate([frames[k] for k in kept]),
        "offsets": np.cumsum([0, *(len(frames[k]) for k in kept)]),
        "number": kept,
        "vertices": meshes,
        "blendshapes": track.blendshapes[kept],
        "lip_gap": lip_gap(to_canonical(meshes, pose)),
        "rotation": pose.rotation,
        "scale": pose.scale,
        "translation": pose.translation,
    }


def spread(frames: np.ndarray, limit: int = MAX_FRAMES, run: int = RUN) -> np.ndarray:
    """Frame numbers, or of more than `limit` of them as many in runs of `run` neighbours, evenly spread."""
    if len(frames) <= limit:
        return frames
    starts = np.linspace(0, len(frames) - run, limit // run).astype(int)
    return frames[(starts[:, None] + np.arange(run)).ravel()]


def _static_box(vertices: np.ndarray, image: np.ndarray) -> CropBox:
    return crop_boxes(to_landmarks68(vertices), static=True, frame_size=image.shape[1::-1])[0]


def _inside(mesh: np.ndarray, size: int) -> bool:
    """Are brows, eyes, nose and mouth in the crop, which stands still while the head may not?"""
    points = to_landmarks68(mesh)[17:, :2]
    return bool((points >= 0).all() and (points <= size - 1).all())


def _steady(vertices: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """(T, 478, 3) meshes without the tracker's jitter, each run of seen frames for itself; peaks are kept."""
    steady = vertices.copy()
    there = np.flatnonzero(seen)
    for run in np.split(there, np.flatnonzero(np.diff(there) > 1) + 1):
        if len(run) >= STEADY:
            steady[run] = savgol_filter(vertices[run], STEADY, 2, axis=0)
    return steady


def _open(path: Path, row: PackRow, size: int) -> StoredClip | None:
    """The clip, or None where its file is missing, damaged, or of another size or version."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "numpy") as file:
            facts = file.metadata() or {}
            if (facts.get("version"), facts.get("size")) != (VERSION, str(size)):
                return None
            number, gap, *pose = map(
                file.get_tensor, ("number", "lip_gap", "rotation", "scale", "translation")
            )
    except (OSError, SafetensorError):
        remark(f"{path}: damaged; the clip is prepared again")
        return None
    return StoredClip(path, row.identity, number, Pose(*pose), gap)
