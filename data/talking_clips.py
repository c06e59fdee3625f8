"""The clips that the learners of motion see: of the pack, or of a data set that scripts/preprocess.py prepared."""

from __future__ import annotations

from pathlib import Path

from data.clip_index import read_index
from data.contract import INDEX, ClipRecord, clip_paths
from data.pack import PackRow, face_clips, read_manifest


def talking_clips(root: str | Path, split: str, flag: str = "--dataroot") -> list[PackRow]:
    """The clips of one split, sorted by id. "dev" of a prepared data set is what is left out of training.

    Raises UserError, naming `flag`, where `root` is neither a pack nor a prepared data set.
    """
    root = Path(root)
    if not (root / INDEX).is_file():
        return face_clips(read_manifest(root, flag), split)
    return [_row(root, r) for r in read_index(root) if (r.split == "train") == (split == "train")]


def _row(root: Path, record: ClipRecord) -> PackRow:
    """A prepared clip as the pack's rows tell of clips; its voice was found to fit its lips, as far as can be known."""
    paths = clip_paths(root, record.id, record.dataset)
    return PackRow(
        id=record.id,
        kind="clip",
        split=record.split,
        path=root / record.audio if record.audio else paths.video,
        identity=f"{record.dataset}_{record.speaker}",
        category=record.dataset,
        sync_class="B" if record.audio else "D",
        emotion=record.emotion,
        redistributable=record.redistributable,
        footage=record.facts.get("footage", ""),
        track=paths.track,
    )
