"""VoxCeleb2: dev|test/mp4/id00012/VIDEO/00001.mp4, and its sound in dev|test/aac/id00012/VIDEO/00001.m4a.

The test archives unpack to mp4/ and aac/ with no folder around them, so a root with these is understood too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from data.contract import RawClip
from data.layouts.walk import (
    CLIP_SUFFIXES,
    Layout,
    by_stem,
    clip_names,
    first_file,
    read_folder,
    read_table,
    safe_folder,
    safe_part,
    sorted_folders,
)
from util.errors import remark

_SPLITS = {"dev": "train", "test": "test"}
_SOUNDS = (".m4a", ".aac", ".wav")  # wav: many convert them
_SEX = {"m": "male", "f": "female"}
_META = "vox2_meta.csv"
_NAMED = re.compile(r"(?:vox(?:celeb)?2?[_-])?(dev|test)(?:[_-](?:mp4|video))?")


def _clips(root: Path) -> Iterator[RawClip]:
    parts = _parts(root)
    people = _people(root) if parts else {}
    for part, base in parts:
        for speaker in sorted_folders(read_folder(base / "mp4")):
            sex = _SEX.get(people.get(speaker, {}).get("Gender", "").lower())
            for video in sorted_folders(read_folder(base / "mp4" / speaker)):
                yield from _of_video(base, part, Path(speaker) / video, {"sex": sex} if sex else {})


def _people(root: Path) -> dict[str, dict[str, str]]:
    return read_table(first_file(root / _META, root.absolute().parent / _META), "VoxCeleb2 ID")


def _parts(root: Path) -> list[tuple[str, Path]]:
    """dev and test, as far as they are there, with the folder that holds mp4 and aac."""
    parts = {part: root / part for part in _SPLITS if os.path.isdir(root / part / "mp4")}
    if os.path.isdir(root / "mp4"):
        part = _part_of_bare(root, beside=set(parts))
        if part in parts:
            remark(f"{root / 'mp4'}: left out; the {part} part is taken from {parts[part]}")
        parts.setdefault(part, root)
    return sorted(parts.items())


def _part_of_bare(root: Path, beside: set[str]) -> str:
    """Which part the root itself is: told by its name, by the table of its people, or by what is beside."""
    if named := _NAMED.fullmatch(root.absolute().name.lower()):
        return named[1]
    people = _people(root)
    speakers = sorted_folders(read_folder(root / "mp4"))
    told = [people[s].get("Set", "") for s in speakers if s in people]
    if told and told[0] in _SPLITS:
        return told[0]
    return "test" if beside == {"dev"} else "dev"


def _of_video(base: Path, part: str, below: Path, facts: dict[str, str]) -> Iterator[RawClip]:
    """The clips of one video; `below` is id00012/VIDEO."""
    folder, sounds = read_folder(base / "mp4" / below), read_folder(base / "aac" / below)
    names = by_stem(clip_names(folder), CLIP_SUFFIXES)
    sound_names = by_stem((n for n in sounds.files if n.lower().endswith(_SOUNDS)), _SOUNDS)
    speaker, video = map(safe_folder, below.parts)
    for stem, name in names.items():
        place = f"{speaker}/{video}/{safe_part(stem)}"
        yield RawClip(
            id=f"unzip/{part}_video/{place}",
            video=folder.path / name,
            audio=sounds.path / sound_names[stem] if stem in sound_names else None,
            audio_id=f"unzip/{part}_audio/{place}.wav",
            dataset="vox",
            speaker=speaker,
            split=_SPLITS[part],
            facts=dict(facts),
        )


LAYOUT = Layout(
    clips=_clips,
    needed="VoxCeleb2 clips (dev/mp4/id00012/VIDEO/00001.mp4, test/mp4/...)",
    advice="give the folder that holds dev and test, or the one that holds mp4 and aac",
)
