"""LRS3: pretrain|trainval|test/ID/00001.mp4, its words in 00001.txt. ID is a video on YouTube: one talk."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from data.contract import RawClip
from data.layouts.walk import (
    CLIP_SUFFIXES,
    Layout,
    by_stem,
    clip_names,
    read_folder,
    read_text,
    safe_folder,
    safe_part,
    sorted_folders,
)

_SPLITS = {
    "pretrain": "train",
    "test": "test",
    "trainval": "train",
}  # no talk is in both, the set's authors say
_TEXT = re.compile(r"^\s*text\s*:(.*)$", re.IGNORECASE | re.MULTILINE)
_MARKS = re.compile(r"\{[^}]*\}")  # as {NS}: noise, no word


def _clips(root: Path) -> Iterator[RawClip]:
    for part in _SPLITS:
        for talk in sorted_folders(read_folder(root / part)):
            folder = read_folder(root / part / talk)
            for stem, name in by_stem(clip_names(folder), CLIP_SUFFIXES).items():
                place = f"{part}/{safe_folder(talk)}/{safe_part(stem)}"
                yield RawClip(
                    id=place,
                    video=folder.path / name,
                    audio=None,
                    audio_id=f"audio/{place}.wav",
                    dataset="lrs",
                    speaker=safe_folder(talk),
                    split=_SPLITS[part],
                    text=spoken(read_text(folder.path / f"{stem}.txt")),
                )


def spoken(transcript: str) -> str:
    """The words of a transcript, whose first line is `Text:  HELLO WORLD`; nothing where no line is such."""
    match = _TEXT.search(transcript)
    return " ".join(_MARKS.sub(" ", match.group(1)).lower().split()) if match else ""


LAYOUT = Layout(
    clips=_clips,
    needed="LRS3 clips (pretrain|trainval|test/ID/00001.mp4)",
    advice="give the folder that holds pretrain, trainval and test, as far as you have them",
)
