"""The project's own pack of real clips (data/pack.py): its splits are train and dev."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.contract import RawClip
from data.layouts.walk import Layout, safe_part
from data.pack import PackRow, face_clips, read_manifest
from util.types import EMOTIONS

_EMOTIONS = {**{e: e for e in EMOTIONS}, "surprised": "surprise", "disgusted": "disgust"}
_INTENSITIES = {"L1": "low", "L2": "medium", "L3": "high"}  # MEAD's levels


def _clips(root: Path) -> Iterator[RawClip]:
    rows = read_manifest(root)
    clips = [row for split in ("train", "dev") for row in face_clips(rows, split)]
    for row in sorted(clips, key=lambda r: safe_part(r.id)):
        yield _clip(row)


def _clip(row: PackRow) -> RawClip:
    label, _, level = row.emotion.partition("_")
    emotion = _EMOTIONS.get(label, "")
    facts = {"category": row.category, "sync_class": row.sync_class, "footage": row.footage}
    if not emotion:
        facts["emotion_label"] = row.emotion
    return RawClip(
        id=f"clips/{safe_part(row.id)}",
        video=row.path,
        audio=None,
        audio_id=f"audio/{safe_part(row.id)}.wav",
        dataset="folder",
        speaker=row.identity,
        split=row.split,
        emotion=emotion,
        intensity=_INTENSITIES.get(level, "") if emotion not in ("", "neutral") else "",
        redistributable=row.redistributable,
        facts={name: value for name, value in facts.items() if value},
    )


LAYOUT = Layout(
    clips=_clips,
    needed="clips of the pack (rows of manifest.csv)",
    advice="give the pack's data folder",
    fixed=False,
)
