"""What all layouts share: folders read one at a time, names that are safe as paths, tables and texts.

Nothing around a clip stops the walk: where a table, text or folder cannot be read, its facts are missing.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data.contract import RawClip, clip_paths
from util.errors import remark

CLIP_SUFFIXES = (".mp4", ".mpg", ".mpeg", ".avi", ".mov", ".mkv", ".webm", ".flv", ".m4v")
_MAX_TEXT_BYTES = 1 << 20
_MAX_PART_BYTES = 200  # file systems allow 255; the rest is for _aligned_track.safetensors
_OUTPUTS = (".mp4", ".npy", ".wav", ".safetensors")
# A first dot, control characters, any line end, bytes that are no UTF-8, separators, our own escapes.
_UNSAFE = re.compile(r"^\.|[\x00-\x1f\x7f-\x9f\u2028\u2029\udc80-\udcff/\\]|%(?=[0-9A-F]{2})")


@dataclass(frozen=True)
class Layout:
    """Where a data set keeps its clips."""

    clips: Callable[[Path], Iterator[RawClip]]  # lazily, ids ascending; none where it isn't there
    needed: str  # what was looked for, for the error message
    advice: str  # what to do where it isn't there
    fixed: bool = True  # are clips at certain places only?


@dataclass(frozen=True)
class Folder:
    """Names in one folder, but for hidden ones. A link to nowhere is a file: as a clip, it is reported."""

    path: Path
    files: list[str]
    folders: list[str]


def read_folder(path: Path) -> Folder:
    """What is in a folder, in no order. Empty if it is missing or, with a remark, can't be read."""
    files, folders = [], []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                kind = None if entry.name.startswith(".") else _kind(entry)
                if kind is not None:
                    (folders if kind == "folder" else files).append(entry.name)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        remark(f"{shown(path)}: cannot be read ({error.strerror}); what is in it is left out")
    return Folder(path, files, folders)


def _kind(entry: os.DirEntry) -> str | None:
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        entry.stat()
        return None  # a pipe, socket or device, which would block whoever opens it
    except OSError:
        return "file"


def shown(path: Path) -> str:
    """A path in one line that any terminal can print."""
    return os.fsencode(path).decode(errors="backslashreplace").replace("\n", "\\n")


def safe_part(name: str) -> str:
    """A file's or folder's name as one part of an id: printable, not hidden, no separator, at most 200 bytes.

    Most names stay as they are. Other characters become %XX for each of their bytes, so that two names
    never become one; a name that is too long ends in a part of its hash.
    """
    part = _UNSAFE.sub(_escape, name)
    if len(part.encode()) > _MAX_PART_BYTES:
        digest = hashlib.sha256(part.encode()).hexdigest()[:12]
        part = part.encode()[: _MAX_PART_BYTES - 13].decode(errors="ignore") + "~" + digest
    return part


def _escape(unsafe: re.Match) -> str:
    return "".join(f"%{byte:02X}" for byte in unsafe.group().encode("utf-8", "surrogateescape"))


def safe_folder(name: str) -> str:
    """`safe_part` of a folder. One named as an output file, as in a.wav/, must not stand in its way."""
    part = safe_part(name)
    return "%2E".join(part.rsplit(".", 1)) if part.endswith(_OUTPUTS) else part


def sorted_folders(folder: Folder) -> list[str]:
    """The folders in a folder, in the order of their ids."""
    return sorted(folder.folders, key=lambda name: safe_folder(name) + "/")


def _prepared_endings() -> tuple[str, ...]:
    paths = [clip_paths("", "", dataset) for dataset in ("vox", "grid")]
    return tuple(video.name for p in paths for video in (p.video, p.ani))


PREPARED = _prepared_endings()  # _crop.mp4 and its like: made by preprocessing, ours or the public code's


def clip_names(folder: Folder) -> list[str]:
    """The video files in a folder, without those that preprocessing made."""
    names = (n for n in folder.files if os.path.splitext(n)[1].lower() in CLIP_SUFFIXES)
    return [n for n in names if not n.lower().endswith(PREPARED)]


def stem_of(name: str) -> str:
    """A file's name without its suffix."""
    return os.path.splitext(name)[0]


def by_stem(names: Iterable[str], suffixes: tuple[str, ...]) -> dict[str, str]:
    """Name by stem, in the order of their ids. Of files with the same stem, the first in `suffixes`."""

    def rank(name: str) -> tuple[int, str]:
        suffix = os.path.splitext(name)[1].lower()
        return (suffixes.index(suffix) if suffix in suffixes else len(suffixes)), name

    best: dict[str, str] = {}
    for name in names:
        stem = stem_of(name)
        if stem not in best or rank(name) < rank(best[stem]):
            best[stem] = name
    return {stem: best[stem] for stem in sorted(best, key=safe_part)}


def first_file(*paths: Path) -> Path | None:
    """The first of these that is a file. (Path.is_file would raise for a name that is too long.)"""
    return next((p for p in paths if os.path.isfile(p)), None)


def read_text(path: Path | None) -> str:
    """A small UTF-8 file, or nothing where it is missing or isn't one."""
    if path is None or not os.path.isfile(path):
        return ""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_TEXT_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return ""


def read_table(path: Path | None, key: str) -> dict[str, dict[str, str]]:
    """Rows of a CSV by their `key` column, names and values without the spaces around them.

    Empty, with a remark, where the file can't be read or lacks the column; empty where `path` is None.
    """
    if path is None:
        return {}
    lines = read_text(path).splitlines()
    try:
        rows = [{_clean(k): _clean(v) for k, v in row.items()} for row in csv.DictReader(lines)]
    except csv.Error:
        rows = []
    table = {row[key]: row for row in rows if row.get(key)}
    if not table:
        remark(f"{shown(path)}: no table with the column {key}; the clips come without its facts")
    return table


def _clean(value: object) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""
