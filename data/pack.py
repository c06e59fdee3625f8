"""The pack of real talking-face clips: its manifest as typed rows (../shared/pack/README.md explains the columns)."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from util.errors import UserError

MANIFEST = "manifest.csv"
_COLUMNS = (
    "id",
    "kind",
    "split",
    "path",
    "identity",
    "category",
    "sync_class",
    "speaking",
    "redistributable",
)


@dataclass(frozen=True)
class PackRow:
    """One item of the pack."""

    id: str
    kind: str  # clip, photo or audio
    split: str  # train or dev
    path: Path
    identity: str
    category: str
    sync_class: str  # A or B: the voice is this face's own; C: unverified; D: silent; empty: no clip
    emotion: str
    redistributable: str
    footage: str  # rows with the same non-empty footage show the same scene
    track: Path | None = None  # the face track that scripts/preprocess.py made of it

    @property
    def talks_in_sync(self) -> bool:
        """Is this a clip whose voice belongs to its lips?"""
        return self.kind == "clip" and self.sync_class in ("A", "B")

    @property
    def is_segment(self) -> bool:
        """Is this one of the 1.2 s Arabic segments (all speech, no pauses)?"""
        return self.path.parent.name == "clips_ar" and self.identity.startswith("lrcar")

    @property
    def is_raw_take(self) -> bool:
        """Is this the uncropped copy of a clip that the pack also holds cropped?"""
        return "raw_mead" in self.path.parts


def read_manifest(root: str | Path, flag: str = "--dataroot") -> list[PackRow]:
    """All rows of the pack in `root` (the folder with manifest.csv), in the manifest's order.

    Raises UserError, naming `flag`, where the manifest is missing or lacks a column.
    """
    path = Path(root) / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{flag} {root}: no {MANIFEST} there; the pack's data folder is needed; give its path"
        )
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    missing = [c for c in _COLUMNS if rows and c not in rows[0]]
    if not rows or missing:
        found = f"the column {missing[0]} is missing" if missing else "it has no rows"
        raise UserError(f"{flag} {path}: {found}; the pack's own manifest is needed; copy it again")
    return [_row(Path(root), r) for r in rows]


def _row(root: Path, r: dict[str, str]) -> PackRow:
    return PackRow(
        id=r["id"],
        kind=r["kind"],
        split=r["split"],
        path=root / r["path"],
        identity=r["identity"],
        category=r["category"],
        sync_class=r["sync_class"][:1],
        emotion=r.get("emotion", ""),
        redistributable=r["redistributable"],
        footage=r.get("overlap_group", ""),
    )


def face_clips(rows: Iterable[PackRow], split: str) -> list[PackRow]:
    """The clips of one split that are worth tracking: no second copies, sorted by id."""
    clips = (r for r in rows if r.kind == "clip" and r.split == split and not r.is_raw_take)
    return sorted(clips, key=lambda r: r.id)
