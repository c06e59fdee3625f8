"""CREMA-D: 7,442 clips of 91 actors, github.com/CheyneyComputerScience/CREMA-D.

VideoFlash/1001_IEO_NEU_XX.flv (actor, sentence, emotion, level), AudioWAV/*.wav (the same names, 16 kHz),
VideoDemographics.csv (the actors).
"""

from __future__ import annotations

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
    safe_part,
)

# CREMA-D defines no split. The public code trains on the first 80 % of its list, whoever is in them. 80 % of
# the actors, in order, are 1001 ... 1073; the number decides, so it does not matter which files are there.
LAST_TRAIN_ACTOR = 1073
EMOTIONS = {"ANG": "angry", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
INTENSITIES = {"LO": "low", "MD": "medium", "HI": "high"}  # XX: not told
SENTENCES = {
    "IEO": "it's eleven o'clock",
    "TIE": "that is exactly what happened",
    "IOM": "i'm on my way to the meeting",
    "IWW": "i wonder what this is about",
    "TAI": "the airplane is almost full",
    "MTI": "maybe tomorrow it will be cold",
    "IWL": "i would like a new alarm clock",
    "ITH": "i think i have a doctor's appointment",
    "DFA": "don't forget a jacket",
    "ITS": "i think i've seen this before",
    "TSI": "the surface is slick",
    "WSI": "we'll stop in a couple of minutes",
}
_FACTS = {"age": "Age", "sex": "Sex", "race": "Race", "ethnicity": "Ethnicity"}


def _clips(root: Path) -> Iterator[RawClip]:
    folder = read_folder(root / "VideoFlash")
    names = by_stem(clip_names(folder), (".flv", *CLIP_SUFFIXES))
    name = "VideoDemographics.csv"
    actors = read_table(first_file(root / name, root.absolute().parent / name), "ActorID") if names else {}
    for stem, name in names.items():
        yield _clip(root, stem, folder.path / name, actors)


def _clip(root: Path, stem: str, video: Path, actors: dict[str, dict[str, str]]) -> RawClip:
    """One clip. Of a name that breaks the pattern (the set has a 1040_ITH_SAD_X), what can be told is."""
    actor, sentence, emotion, level = (*stem.upper().split("_"), "", "", "")[:4]
    number = int(actor) if actor.isascii() and actor.isdigit() else 0
    row = actors.get(actor, {})
    facts = {fact: row[column] for fact, column in _FACTS.items() if row.get(column)}
    if "sex" in facts:
        facts["sex"] = facts["sex"].lower()
    return RawClip(
        id=f"VideoFlash/{safe_part(stem)}",
        video=video,
        audio=first_file(root / "AudioWAV" / f"{stem}.wav"),
        audio_id=f"AudioWAV/{safe_part(stem)}.wav",
        dataset="crema",
        speaker=safe_part(actor) or safe_part(stem),
        split="test" if number > LAST_TRAIN_ACTOR else "train",
        emotion=EMOTIONS.get(emotion, ""),
        intensity=INTENSITIES.get(level, ""),
        text=SENTENCES.get(sentence, ""),
        facts=facts,
    )


LAYOUT = Layout(
    clips=_clips,
    needed="CREMA-D clips (VideoFlash/*.flv)",
    advice="give the folder that holds VideoFlash and AudioWAV",
)
