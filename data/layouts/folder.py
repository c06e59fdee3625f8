"""Any folder of clips. A folder in it is one speaker, with all below it; a clip in none is its own speaker.

The split is by speaker. From 10 speakers on, the hash of the name puts about a tenth of them into test, the
same ones on every machine; fewer are all train, as leaving one out would cost too much of so small a set.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data.contract import RawClip
from data.layouts.walk import (
    CLIP_SUFFIXES,
    Folder,
    Layout,
    clip_names,
    read_folder,
    safe_folder,
    safe_part,
    stem_of,
)

MIN_SPEAKERS = 10


def _clips(root: Path) -> Iterator[RawClip]:
    splits = _has_speakers(root, MIN_SPEAKERS)
    for place, video in _walk(root):
        speaker = place.split("/", 1)[0]
        yield RawClip(
            id=f"clips/{place}",
            video=video,
            audio=None,
            audio_id=f"audio/{place}.wav",
            dataset="folder",
            speaker=speaker,
            split="test" if splits and in_test(speaker) else "train",
        )


def in_test(speaker: str) -> bool:
    """Is this speaker among the tenth that is kept from training?"""
    return hashlib.sha256(speaker.encode()).digest()[0] % 10 == 0


def _has_speakers(root: Path, n: int) -> bool:
    """Are there so many speakers? Looks for the first clip of each, and no further than the n-th."""
    top = read_folder(root)
    left = n - len(clip_names(top))
    for name in sorted(top.folders):
        if left <= 0:
            break
        left -= next(_walk(root / name), None) is not None
    return left <= 0


def _walk(root: Path) -> Iterator[tuple[str, Path]]:
    """(place without suffix, file) of every clip, ascending. A folder is entered once, links or not."""
    entered: set[tuple[int, int]] = set()
    open_folders = [_entries("", root, entered)]
    while open_folders:
        entry = next(open_folders[-1], None)
        if entry is None:
            open_folders.pop()
        elif entry[0].endswith("/"):
            open_folders.append(_entries(*entry, entered))
        else:
            yield entry


def _entries(place: str, path: Path, entered: set[tuple[int, int]]) -> Iterator[tuple[str, Path]]:
    """A folder's clips and, ending in a slash, its folders; in the order of their ids."""
    try:
        status = path.stat()
    except OSError:
        return
    if (status.st_dev, status.st_ino) in entered:
        return
    entered.add((status.st_dev, status.st_ino))
    folder = read_folder(path)
    parts = _parts(folder) + [(f"{safe_folder(name)}/", name) for name in folder.folders]
    for part, name in sorted(parts):
        yield place + part, path / name


def _parts(folder: Folder) -> list[tuple[str, str]]:
    """(part of the id, name) of a folder's clips: the stem, or the name where another clip has that stem."""
    names = sorted(clip_names(folder))
    n_of_stem = Counter(map(stem_of, names))
    parts: dict[str, str] = {}
    for name in names:
        part = safe_part(stem_of(name) if n_of_stem[stem_of(name)] == 1 else name)
        while part in parts:  # a.mp4 and a.avi beside a.mp4.avi
            part += "_"
        parts[part] = name
    return list(parts.items())


LAYOUT = Layout(
    clips=_clips,
    needed=f"clips ({', '.join(CLIP_SUFFIXES)})",
    advice="give a folder that holds videos, not hidden and not prepared already (*_crop.mp4)",
    fixed=False,
)
