"""A prepared data set, wherever it is: a folder with an index, shards, or a folder that the public code filled.

Only columns of the index are held in memory, so that a million clips are a matter of seconds and megabytes.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from data.byte_range import ByteRange
from data.clip_index import JOURNAL, parsed_lines, read_index
from data.clip_list import audio_of, clip_records
from data.contract import INDEX, SETTINGS, SKIPPED, ClipRecord, SkippedClip, clip_paths
from data.prepared_clip import ClipFiles
from data.shards import is_shards, open_shards
from data.shards.format import SOUND
from util.errors import UserError, remark


class Names:
    """A column of N names, of which few differ."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}
        self.column: list[int] = []

    def add(self, name: str) -> None:
        self.column.append(self.known.setdefault(str(name), len(self.known)))

    def counts(self) -> dict[str, int]:
        """Clips of each name."""
        return dict(
            zip(self.known, np.bincount(self.column, minlength=len(self.known)).tolist(), strict=True)
        )


class Table:
    """What the index tells of N clips, by columns."""

    def __init__(self, records: Iterable[ClipRecord], measures: Sequence[str]) -> None:
        frames, sound, figures = [], [], []
        self.speakers, self.splits, self.emotions = Names(), Names(), Names()
        for r in records:
            frames.append(r.frames)
            sound.append(bool(r.audio))
            figures.append([_number(r.quality.get(m)) for m in measures])
            self.speakers.add(r.speaker)
            self.splits.add(r.split)
            self.emotions.add(r.emotion)
        self.frames, self.has_sound = np.array(frames, np.int64), np.array(sound, bool)  # (N,)
        table = np.array(figures, np.float32).reshape(-1, len(measures))
        self.measures = dict(zip(measures, table.T, strict=True))  # (N,) each, NaN where it isn't known

    def __len__(self) -> int:
        return len(self.frames)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and abs(value) < 1e30 else np.nan


@dataclass(frozen=True)
class PreparedFolder:
    """The clips of a prepared data set that were asked for, numbered from 0."""

    root: Path
    records: Sequence[ClipRecord]  # read when asked for
    files: Callable[[int], ClipFiles]
    sound: Callable[[int], contextlib.AbstractContextManager[Path | None]]  # a file for as long as it is open
    kind: str  # index, shards or found
    skipped: dict[str, tuple[int, SkippedClip]] = field(
        default_factory=dict
    )  # reason: how many, and the first
    settings: dict = field(default_factory=dict)  # preprocess.json
    n_kept: int = 0  # of all splits

    def lines(self) -> Iterator[dict]:
        """What the index says of the clips of all splits, as it stands there."""
        return (values for _, values in parsed_lines(self.root / INDEX))


class _IndexLines(Sequence[ClipRecord]):
    def __init__(self, path: Path, split: str) -> None:
        self.splits, self.n_kept, offsets = set(), 0, []
        for offset, values in parsed_lines(path):
            self.splits.add(str(values["split"]))
            self.n_kept += 1
            if split in ("all", values["split"]):
                offsets.append(offset)
        self._path, self._offsets = path, np.array(offsets, np.int64)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, k: int) -> ClipRecord:
        return next(self._read(self._offsets[k : k + 1] if k >= 0 else self._offsets[k:][:1]))

    def __iter__(self) -> Iterator[ClipRecord]:
        return self._read(self._offsets)

    def _read(self, offsets: np.ndarray) -> Iterator[ClipRecord]:
        with self._path.open("rb") as file:
            for offset in offsets.tolist():
                file.seek(offset)
                yield ClipRecord.from_dict(json.loads(file.readline()))


def prepared_folder(root: str | Path, dataset_name: str = "folder", split: str = "all") -> PreparedFolder:
    """The clips under `root`: by its index, in shards, or, without either, by the public code's file names.

    dataset_name: whose names are looked for in the last case; "folder": all of them. split: "all" or the name of one.
    Raises UserError where the folder is missing, not prepared, damaged, or without a clip of that split.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; a prepared data set is needed; check the spelling")
    if (root / INDEX).is_file() or (root / JOURNAL).is_file():
        return _indexed(root, split)
    if is_shards(str(root)):
        return _sharded(root, split)
    return _found(root, dataset_name, split)


def _indexed(root: Path, split: str) -> PreparedFolder:
    if not (root / INDEX).is_file():
        read_index(root)  # says what to do about a run that was cut off
    records = _IndexLines(root / INDEX, split)
    _check_split(root, split, records.splits, len(records))

    def files(k: int) -> ClipFiles:
        return ClipFiles.of(clip_paths(root, records[k].id, records[k].dataset))

    def sound(k: int) -> contextlib.AbstractContextManager[Path | None]:
        return contextlib.nullcontext(root / records[k].audio if records[k].audio else None)

    return PreparedFolder(
        root, records, files, sound, "index", _skipped(root), _settings(root), records.n_kept
    )


def _sharded(root: Path, split: str) -> PreparedFolder:
    everything = open_shards(str(root))
    splits = np.array([record.split for record in everything])
    shards = everything if split == "all" else everything.subset(splits == split)
    _check_split(root, split, set(splits.tolist()), len(shards))

    @contextlib.contextmanager
    def sound(k: int) -> Iterator[Path | None]:
        member: ByteRange | None = shards.members(k).get(SOUND)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sound.wav"
            if member is not None:
                path.write_bytes(member.read())
            yield path if member is not None else None

    return PreparedFolder(root, shards, shards.files, sound, "shards")


def _found(root: Path, dataset_name: str, split: str) -> PreparedFolder:
    parts = {name: clip_records(root, dataset_name, name) for name in ("train", "test")}
    if not any(parts.values()):
        raise UserError(
            f"{root}: not prepared, neither {INDEX} nor a clip by --dataset_name {dataset_name} is there; "
            f"run: python scripts/preprocess.py --dataroot RAW --out {root}"
        )
    records = list(chain(*(clips for name, clips in parts.items() if split in ("all", name))))
    _check_split(root, split, {name for name, clips in parts.items() if clips}, len(records))

    def files(k: int) -> ClipFiles:
        return ClipFiles.of(clip_paths(root, records[k].id, records[k].dataset))

    def sound(k: int) -> contextlib.AbstractContextManager[Path | None]:
        return contextlib.nullcontext(audio_of(root, records[k]))

    return PreparedFolder(root, records, files, sound, "found")


def _check_split(root: Path, split: str, splits: set[str], n_clips: int) -> None:
    if splits and not n_clips:
        raise UserError(
            f"--split {split}: {root} has no clip of it; choose {', '.join(sorted(splits))} or all"
        )


def _skipped(root: Path) -> dict[str, tuple[int, SkippedClip]]:
    found: dict[str, tuple[int, SkippedClip]] = {}
    for _, values in parsed_lines(root / SKIPPED, strict=False):
        n, first = found.get(values["reason"], (0, None))
        found[values["reason"]] = n + 1, first or SkippedClip(**values)
    return dict(sorted(found.items(), key=lambda item: -item[1][0]))


def _settings(root: Path) -> dict:
    try:
        values = json.loads((root / SETTINGS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        remark(f"{root / SETTINGS}: cannot be read ({error}); the page goes on without")
        return {}
    return values if isinstance(values, dict) else {}
