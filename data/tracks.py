"""Face tracks of clips: a prepared clip's own, else made once and kept as .npz files in a cache folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from data.array_files import TensorFile
from data.byte_range import ByteRange
from data.pack import PackRow
from face.reference import HALF_PIXEL
from face.tracker import FaceTrack, track_frames
from util.errors import UserError, remark
from util.video import read_frames

_FIELDS = ("vertices", "blendshapes", "matrix", "seen")


def clip_track(row: PackRow, cache: str | Path) -> FaceTrack:
    """The face track of one clip at 25 fps: `row.track`, or read from `cache`/<id>.npz, or made now and kept there.

    A file in the cache that is damaged is made again. Raises UserError for a prepared clip whose track is damaged, and
    for a raw one that cannot be read or shows no face.
    """
    if row.track:
        return prepared_track(row.track)
    path = Path(cache) / f"{row.id}.npz"
    if (track := _read(path)) is not None:
        return track
    track = track_frames(read_frames(row.path, "clip"), f"clip {row.path.name}")
    _write(path, track)
    return track


def clip_tracks(rows: Iterable[PackRow], cache: str | Path) -> Iterator[tuple[PackRow, FaceTrack]]:
    """Tracks of many clips, in order. Clips that cannot be tracked are left out, counted and reported."""
    skipped = []
    for row in rows:
        try:
            track = clip_track(row, cache)
        except UserError as error:
            skipped.append(str(error))
            continue
        yield row, track
    if skipped:
        remark(f"{len(skipped)} clips left out; the first: {skipped[0]}")


def prepared_track(path: Path) -> FaceTrack:
    """The track of a prepared clip in source pixels, steadied over time. Raises UserError where it is damaged."""
    file = TensorFile(ByteRange.whole(path))
    size = int(file.metadata.get("size", 0))
    box = file.tensor("crop", (3,))  # (T, 3) left, top, side
    mesh = file.tensor("vertices", (478, 3)).astype(np.float32) / 64 + HALF_PIXEL
    vertices = mesh * (box[:, 2] / size)[:, None, None]
    vertices[..., :2] += box[:, None, :2]
    blendshapes = file.tensor("blendshapes", (52,)).astype(np.float32) / 255
    return FaceTrack(vertices, blendshapes, None, file.tensor("seen", ()))


def seen_only(track: FaceTrack, step: int = 1) -> FaceTrack:
    """Every step-th of the frames in which the face was seen, not filled in."""
    keep = np.flatnonzero(track.seen)[::step]
    columns = (getattr(track, f) for f in _FIELDS)
    return FaceTrack(*(None if c is None else c[keep] for c in columns))


def _read(path: Path) -> FaceTrack | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return FaceTrack(*(file[f] for f in _FIELDS))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        remark(f"{path}: damaged; the clip is tracked again")
        return None


def _write(path: Path, track: FaceTrack) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    try:
        np.savez(part, **{f: getattr(track, f) for f in _FIELDS})
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
