"""A prepared data set as a whole: what to make of its index and of what is on disk, and which clips to look at."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from data.contract import DATASET_NAMES, INDEX, ClipRecord, clip_paths, video_suffix
from data.inspection.folder import PreparedFolder, Table
from data.preprocessing.quality import REASONS, SYNC_MARGIN, SYNC_R
from util.types import FPS

GOOD, DOUBT, BAD, NOTE = "good", "doubt", "bad", "note"
_FEW_KEPT, _MOST_LOST = (
    0.9,
    0.5,
)  # of all clips: below the first look twice, below the second something is wrong
_MAX_NAMED = 3  # names in a sentence
_LIKE_VOICE = 0.2  # correlation of lips with what the voice tells; of the voices of others it is near 0
_LAG_MS = 80  # two frames: what a viewer may notice


@dataclass(frozen=True)
class Verdict:
    """One line of the page's head."""

    level: str  # GOOD, DOUBT, BAD, or NOTE where a figure judges nothing
    title: str
    text: str


@dataclass(frozen=True)
class Measure:
    """A figure that the index has of each clip."""

    key: str  # of ClipRecord.quality
    title: str
    unit: str
    worst: str = ""  # what the clip with the extreme value is called; empty: it isn't looked for
    badness: Callable[[np.ndarray], np.ndarray] = np.abs  # larger is worse


MEASURES = (
    Measure("face_px", "face width in source", "px"),
    Measure("brightness", "brightness of face", "/ 255", "darkest", np.negative),
    Measure("yaw", "turned (yaw)", "°", "most turned"),
    Measure("pitch", "nodding (pitch)", "°"),
    Measure("jitter", "landmark jitter", "px", "most jitter"),
    Measure("lip_r_0", "likeness of lips and voice", "r", "lips least like the voice", np.negative),
    Measure("lip_lag_ms", "voice late, if sure", "ms", "largest lip lag"),
)


def table_of(records: Iterable[ClipRecord]) -> Table:
    """The columns of the records with all MEASURES; lip lags only where they are sure."""
    table = Table(records, [*(m.key for m in MEASURES), "lip_r"])
    lag, best, as_it_is = (table.measures[key] for key in ("lip_lag_ms", "lip_r", "lip_r_0"))
    lag[~((best >= SYNC_R) & (best - as_it_is >= SYNC_MARGIN) | (lag == 0))] = np.nan
    return table


@dataclass(frozen=True)
class FileCheck:
    """What the folders' listings say against the index."""

    incomplete: dict[str, list[str]]  # id: what is missing of the clip's files
    unknown: list[str]  # videos on disk that no record is of
    leftovers: list[str]  # temporary files of a run that was ended


def check_files(folder: PreparedFolder) -> FileCheck:
    """Compare index and disk. Nothing is opened; every folder is listed."""
    incomplete, known, listing = {}, set(), lru_cache(maxsize=256)(_names)
    suffixes = {
        name: [path.name[1:] for path in vars(clip_paths("", "x", name)).values()] for name in DATASET_NAMES
    }
    for record in folder.lines():
        parent, _, name = record["id"].rpartition("/")
        endings = suffixes.get(record["dataset"], suffixes["folder"])
        known.add(record["id"] + endings[0])
        missing = [
            name + ending for ending in endings if name + ending not in listing(f"{folder.root}/{parent}")
        ]
        parent, _, sound = record["audio"].rpartition("/")
        if sound and sound not in listing(f"{folder.root}/{parent}"):
            missing.append(sound)
        if missing:
            incomplete[record["id"]] = missing
    unknown, leftovers = [], []
    for parent, _, names in os.walk(folder.root):
        for name in sorted(names):
            place = Path(parent, name).relative_to(folder.root).as_posix()
            if name.startswith(".part-"):
                leftovers.append(place)
            elif name.endswith((video_suffix("vox"), video_suffix("grid"))) and place not in known:
                unknown.append(place)
    return FileCheck(incomplete, unknown, leftovers)


def _names(parent: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(parent))
    except OSError:
        return frozenset()


def choose_clips(table: Table, n: int, seed: int) -> list[tuple[str, int]]:
    """Numbers of n clips by chance and of the worst by each measure, each with why; no clip comes twice."""
    drawn = random.Random(seed).sample(range(len(table)), min(n, len(table)))
    reasons: dict[int, list[str]] = {k: ["drawn by chance"] for k in drawn}
    for measure in MEASURES if n else ():
        values = table.measures[measure.key]
        known = np.flatnonzero(np.isfinite(values))
        if measure.worst and len(known):
            worst = int(known[measure.badness(values[known]).argmax()])
            text = f"{measure.worst} of {len(known)}: {values[worst]:.3g} {measure.unit}"
            reasons.setdefault(worst, []).append(text)
    return [("; ".join(why), k) for k, why in reasons.items()]


def verdicts(folder: PreparedFolder, table: Table, files: FileCheck | None) -> list[Verdict]:
    """What to make of the whole. files: None where there is no index to compare with the disk."""
    found = [_amount(table)]
    if folder.kind == "index":
        found += [*_skipped(folder, len(table))]
    found.append(_splits(table))
    if files is not None:
        found += _files(len(table), files)
    if unreadable := int((table.frames == 0).sum()):
        found.append(Verdict(BAD, "Damaged", f"the landmarks of {unreadable} clips cannot be read"))
    return [*found, *_sound(folder, table)]


def _amount(table: Table) -> Verdict:
    n = len(table.speakers.known)
    text = (
        f"{len(table):,} clips, {_duration(table.frames.sum() / FPS / 3600)}, {n:,} speaker{'s' * (n != 1)}"
    )
    if not len(table):
        return Verdict(BAD, "Amount", "no clip was kept; the reasons are below")
    if n == 1:
        return Verdict(DOUBT, "Amount", text + "; a network trained on one person knows no other")
    return Verdict(GOOD, "Amount", text)


def _duration(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 2 else f"{60 * hours:.1f} minutes"


def _skipped(folder: PreparedFolder, n_shown: int) -> Iterator[Verdict]:
    lost = sum(n for n, _ in folder.skipped.values())
    total = lost + folder.n_kept
    share = 1 - lost / max(total, 1)
    level = GOOD if share >= _FEW_KEPT else DOUBT if share >= _MOST_LOST else BAD
    text = f"{total - lost:,} of {total:,} clips ({share:.0%}), {lost:,} skipped"
    yield Verdict(level, "Kept", text + ("" if n_shown == total - lost else f"; {n_shown:,} in this split"))
    for reason, (n, first) in folder.skipped.items():
        why = REASONS.get(reason, "a reason that this program does not know")
        level = DOUBT if n / total < _MOST_LOST else BAD
        yield Verdict(level, f"Skipped: {reason}", f"{n:,}: {why}. The first: {first.id}: {first.detail}")


def _splits(table: Table) -> Verdict:
    splits = ", ".join(f"{name or 'none'} {n:,}" for name, n in sorted(table.splits.counts().items()))
    pairs = set(zip(table.speakers.column, table.splits.column, strict=True))
    n_splits = Counter(speaker for speaker, _ in pairs)
    shared = [name for name, k in table.speakers.known.items() if n_splits[k] > 1]
    if shared:
        text = f"{len(shared)} speakers are in more than one ({_listed(shared)}): results on them flatter"
        return Verdict(BAD, "Splits", f"{splits}; {text}")
    if len(table.splits.known) < 2:
        return Verdict(DOUBT, "Splits", f"{splits or 'none'}; no second one here to judge a training on")
    return Verdict(GOOD, "Splits", f"{splits}; no speaker is in two of them")


def _files(n_clips: int, files: FileCheck) -> Iterator[Verdict]:
    if files.incomplete:
        first, missing = next(iter(files.incomplete.items()))
        text = f"{len(files.incomplete):,} clips of the index lack files; the first: {first} lacks "
        text += f"{_listed(missing)}; run scripts/preprocess.py again"
        yield Verdict(BAD, "Files", text)
    elif n_clips:
        yield Verdict(GOOD, "Files", "every clip of the index has all its files")
    if files.unknown:
        text = f"{len(files.unknown):,} prepared videos are not in {INDEX}: {_listed(files.unknown)}"
        yield Verdict(DOUBT, "Unknown files", text + "; run scripts/preprocess.py again, or delete them")
    if files.leftovers:
        text = f"{len(files.leftovers):,} temporary files: {_listed(files.leftovers)}; delete them"
        yield Verdict(DOUBT, "Leftovers", text)


def _sound(folder: PreparedFolder, table: Table) -> Iterator[Verdict]:
    n, silent = len(table), int((~table.has_sound).sum())
    if n and folder.kind != "found":
        level = GOOD if not silent else DOUBT if silent < n / 2 else BAD
        yield Verdict(level, "Sound", f"{n - silent:,} of {n:,} clips have it")
    likeness, lag = table.measures["lip_r_0"], table.measures["lip_lag_ms"]
    n_heard, late = int(np.isfinite(likeness).sum()), int((np.abs(lag) > _LAG_MS).sum())
    if n_heard:
        typical = float(np.nanmedian(likeness))
        level = (
            BAD if late >= n_heard / 2 else DOUBT if late > n_heard / 10 or typical < _LIKE_VOICE else GOOD
        )
        text = f"surely more than {_LAG_MS} ms apart in {late:,} of {n_heard:,} clips; the opening that the voice "
        yield Verdict(
            level, "Lips and voice", text + f"tells of and the lips' correlate by {typical:.2f} (median)"
        )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def shown(text: str, limit: int = 200, lines: bool = False) -> str:
    """A name or text from a file as it may stand on a page: no control characters, not endless.

    lines: line ends stay. It is not HTML: what shows it escapes it.
    """
    kept = "".join(c if c.isprintable() or (lines and c == "\n") else "\ufffd" for c in text[: limit + 1])
    return kept if len(text) <= limit else kept[:limit] + "…"
