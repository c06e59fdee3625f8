"""The index of a prepared folder: clips.jsonl and skipped.jsonl, and the journal that a run writes before them.

The journal gets one line per clip as it is done, so a run that is killed loses nothing. `merge_journal` puts it
into the two sorted files. None of them is held in memory as a whole: a million lines are half a gigabyte.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

from data.contract import INDEX, SKIPPED, ClipRecord, SkippedClip
from util.errors import UserError
from util.files import atomic_path, write_error

JOURNAL = ".progress.jsonl"


class DoneClip(NamedTuple):
    """What a later run has to know of a clip that is done."""

    kept: bool
    has_sound: bool
    source_bytes: int


@dataclass(frozen=True)
class _Line:
    """Where a clip's newest line is."""

    file: str
    offset: int
    kept: bool


class Journal:
    """Appends a line per clip, which is on its way to the disk when `add` returns. Only one process may."""

    def __init__(self, out: Path) -> None:
        self._path = out / JOURNAL
        self._file: BinaryIO | None = None  # opened by the first line: a run without work leaves no trace

    def add(self, result: ClipRecord | SkippedClip) -> None:
        """Write one line. Raises UserError where the disk is full."""
        try:
            if self._file is None:
                self._file = self._path.open("ab")
            self._file.write(result.line().encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise write_error(self._path.parent, error, "--out") or error from None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk has been told of by `add`
                self._file.close()


def read_index(out: str | Path) -> list[ClipRecord]:
    """The kept clips of a prepared folder, sorted by id.

    Raises UserError where there is no index or a line of it is damaged.
    """
    path = Path(out) / INDEX
    if not path.is_file():
        raise UserError(
            f"{out}: no {INDEX} there; a folder made by scripts/preprocess.py is needed "
            "(a run that was cut off writes it when the same command is given again)"
        )
    return [ClipRecord.from_dict(values) for _, values in parsed_lines(path)]


def done_clips(out: Path) -> dict[str, DoneClip]:
    """Id to what is known of every clip in the index, skipped ones included. Raises UserError."""
    done = {}
    for name in (SKIPPED, INDEX):
        for _, values in parsed_lines(out / name):
            kept = name == INDEX
            done[values["id"]] = DoneClip(kept, bool(values.get("audio")), values["source_bytes"])
    return done


def parsed_lines(path: Path, strict: bool = True) -> Iterator[tuple[int, dict]]:
    """(offset in bytes, values) of every line of an index file; none where there is no file.

    A damaged line raises UserError, or with strict=False is left out, as an unfinished last one is.
    """
    if not path.is_file():
        return
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            values = _parse(line)
            if values is not None:
                yield offset, values
            elif strict:
                raise UserError(
                    f"{path}, line {number}: damaged, a clip's entry is needed; delete that line "
                    f"(sed -i {number}d {path.name}) and give the preprocessing command again: "
                    "it makes up for what is missing"
                )
            offset += len(line)


def merge_journal(out: Path) -> None:
    """Put the journal's lines into the two index files, sorted by id, and remove it.

    Being killed in here does no harm: the journal goes last. Raises UserError.
    """
    journal = out / JOURNAL
    if not journal.is_file():
        return
    newest: dict[str, _Line] = {}
    for name in (SKIPPED, INDEX, JOURNAL):  # a later line replaces an earlier one
        for offset, values in parsed_lines(out / name, strict=name != JOURNAL):
            newest[values["id"]] = _Line(name, offset, "reason" not in values)
    ids = sorted(newest)
    with contextlib.ExitStack() as stack:
        names = {line.file for line in newest.values()}
        files = {name: stack.enter_context((out / name).open("rb")) for name in names}
        for name, kept in ((INDEX, True), (SKIPPED, False)):
            with atomic_path(out / name, "--out") as part, part.open("wb") as target:
                for line in (newest[i] for i in ids if newest[i].kept == kept):
                    files[line.file].seek(line.offset)
                    target.write(files[line.file].readline())
    journal.unlink()


def _parse(line: bytes) -> dict | None:
    if not line.endswith(b"\n"):
        return None
    try:
        values = json.loads(line)
        if not isinstance(values, dict):
            return None
        record = SkippedClip(**values) if "reason" in values else ClipRecord.from_dict(values)
        return values if isinstance(record.id, str) and isinstance(record.source_bytes, int) else None
    except (ValueError, TypeError):
        return None
