"""Face tracks of clips, made once and kept as .npz files in a cache folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from data.pack import PackRow
from face.tracker import FaceTrack, track_frames
from util.errors import UserError, remark
from util.video import read_frames

_FIELDS = ("vertices", "blendshapes", "matrix", "seen")


def clip_track(row: PackRow, cache: str | Path) -> FaceTrack:
    """The face track of one clip at 25 fps: read from `cache`/<id>.npz, or tracked now and kept there.

    A file that is damaged is made again. Raises UserError for a clip that cannot be read or shows no face.
    """
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


def seen_only(track: FaceTrack, step: int = 1) -> FaceTrack:
    """Every step-th of the frames in which the face was seen, not filled in."""
    keep = np.flatnonzero(track.seen)[::step]
    return FaceTrack(*(getattr(track, f)[keep] for f in _FIELDS))


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
