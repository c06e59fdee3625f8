"""GRID: 34 speakers, 1,000 sentences each, s1 ... s34 (of s21 there is no video).

spandh.dcs.shef.ac.uk/gridcorpus: s1/video/mpg_6000/*.mpg (720x576), s1/*.mpg (360x288), s1/align/*.align.
zenodo.org/records/3625687: s1/*.mpg or s1/CLIP/*.jpg, alignments/s1/*.align. 75 frames at 25 per second.
"""

from __future__ import annotations

import os
import re
import wave
from collections.abc import Iterator
from pathlib import Path

from data.contract import RawClip
from data.layouts.walk import (
    CLIP_SUFFIXES,
    Folder,
    Layout,
    by_stem,
    clip_names,
    first_file,
    read_folder,
    read_text,
    safe_folder,
    safe_part,
    sorted_folders,
)
from util.types import FPS

# GRID defines no split. These four are the unseen speakers of LipNet (Assael et al. 2016, arXiv 1611.01599),
# whose split the lip reading papers after it took over.
TEST_SPEAKERS = {"s1", "s2", "s20", "s22"}
_SPEAKER = re.compile(r"s\d+")
_PLACES = ("video/mpg_6000", ".", "video/mpg_vcd", "video")  # best first
_NO_CLIPS = {"video", "align", "audio", "mpg_6000", "mpg_vcd"}
_SUFFIXES = (".mpg", ".mpeg", *CLIP_SUFFIXES)
_PICTURE = re.compile(r".*\d\.(jpe?g|png|bmp)", re.IGNORECASE)
_SILENCE = ("sil", "sp")
_MAX_APART_S = 0.25  # between the lengths of a clip's pictures and its sound


def _clips(root: Path) -> Iterator[RawClip]:
    for speaker in sorted_folders(read_folder(root)):
        if _SPEAKER.fullmatch(speaker):
            videos = _videos(root / speaker)
            for stem in sorted(videos, key=safe_part):
                yield _clip(root, speaker, stem, videos[stem])


def _videos(speaker: Path) -> dict[str, Path]:
    """A speaker's clips by name, each in its best version; files before folders of pictures without sound."""
    places = [read_folder(speaker / place) for place in _PLACES]
    videos: dict[str, Path] = {}
    for folder in places:
        for stem, name in by_stem(clip_names(folder), _SUFFIXES).items():
            videos.setdefault(stem, folder.path / name)
    for folder in places:
        for name in _picture_folders(folder, known=videos):
            videos[name] = folder.path / name
    return videos


def _picture_folders(folder: Folder, known: dict[str, Path]) -> list[str]:
    names = [n for n in folder.folders if n not in _NO_CLIPS and n not in known]
    return [n for n in names if _n_pictures(folder.path / n, at_most=1)]


def _n_pictures(path: Path, at_most: int = 1 << 30) -> int:
    n_pictures = 0
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                n_pictures += bool(_PICTURE.fullmatch(entry.name)) and not entry.name.startswith(".")
                if n_pictures >= at_most:
                    break
    except OSError:
        pass  # then there are none that could be read
    return n_pictures


def _clip(root: Path, speaker: str, stem: str, video: Path) -> RawClip:
    audio, facts = None, {}
    if os.path.isdir(video):
        audio, facts = _sound(root, speaker, stem, video)
    place = f"{safe_folder(speaker)}/{safe_part(stem)}"
    return RawClip(
        id=f"align/{place}",
        video=video,
        audio=audio,
        audio_id=f"audio/{place}.wav",
        dataset="grid",
        speaker=speaker,
        split="test" if speaker in TEST_SPEAKERS else "train",
        text=spoken(read_text(_align_file(root, speaker, f"{stem}.align"))),
        facts=facts,
    )


def _align_file(root: Path, speaker: str, name: str) -> Path | None:
    own, places = root / speaker, (root / "align", root / "alignments")
    return first_file(own / "align" / name, *(place / speaker / name for place in places), own / name)


def spoken(align: str) -> str:
    """The words of an align file without its pauses. Its lines: start, end (25,000ths of a second), word."""
    lines = [line.split() for line in align.splitlines()]
    words = [x[2].lower() for x in lines if len(x) == 3 and x[0].isdigit() and x[1].isdigit()]
    return " ".join(w for w in words if w not in _SILENCE)


def _sound(root: Path, speaker: str, stem: str, pictures: Path) -> tuple[Path | None, dict[str, str]]:
    """The sound of a folder of pictures, and what is to be said of one that does not fit.

    GRID's own 25 kHz wav files are cut to the speech, about 1.2 s of 3: they are not in step with pictures.
    """
    name = f"{stem}.wav"
    wav = first_file(root / speaker / "audio" / name, root / "audio" / speaker / name, root / speaker / name)
    if wav is None:
        return None, {}
    seconds, shown_s = _wav_seconds(wav), _n_pictures(pictures) / FPS
    if seconds is not None and abs(seconds - shown_s) > _MAX_APART_S:
        return None, {"unused_sound": f"{seconds:.1f} s for {shown_s:.1f} s of pictures"}
    return wav, {}


def _wav_seconds(path: Path) -> float | None:
    """The length that a wav's header tells; None where it can't be read, as will show in preparation."""
    try:
        with wave.open(str(path), "rb") as file:
            return file.getnframes() / file.getframerate()
    except (OSError, EOFError, wave.Error, ZeroDivisionError):
        return None


LAYOUT = Layout(
    clips=_clips,
    needed="GRID clips (s1/*.mpg, s1/video/mpg_6000/*.mpg, or pictures s1/CLIP/0001.jpg ...)",
    advice="give the folder that holds s1 ... s34, or take --dataset_name folder",
)
