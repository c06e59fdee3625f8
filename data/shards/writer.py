"""Pack a prepared folder into shards: the same folder gives the same bytes, and a run that was killed goes on."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from data.clip_index import JOURNAL, read_index
from data.contract import INDEX, SETTINGS, ClipRecord
from data.shards.format import (
    RECORD,
    SHARD_INDEX,
    SHARDS,
    VERSION,
    Shard,
    ShardedClip,
    clip_members,
    sample_key,
)
from util.errors import UserError, remark
from util.files import atomic_path, results_folder

FLAG = "--shards"
_NOTES = ".index"  # folder: each finished shard's part of the index
_CHUNK = 1 << 20
_PADDING = bytes(tarfile.RECORDSIZE)


def write_shards(
    out: Path, shards: Path, clips_per_shard: int = 100, splits: Sequence[str] = (), seed: int = 0
) -> list[Path]:
    """Pack the clips of the prepared folder `out` (all splits, or those named) into tars in the folder `shards`.

    Which clip goes where depends on seed and ids alone, so that a shard holds many speakers. A shard that is there
    in its full size and made of the same records, settings and file sizes is kept; those of an earlier run that
    don't belong here are removed. Returns the tars in order.
    Raises UserError where a clip's file is missing, the folder is full, or it holds tars of somebody else.
    """
    out, shards = Path(out), results_folder(shards, FLAG)
    plan = _planned(_records(out, splits), clips_per_shard, seed)
    notes, settings = shards / _NOTES, _settings(out)
    for path in [*shards.glob(".part-*"), *notes.glob(".part-*")]:
        path.unlink()  # of a run that was killed
    old = {p.name.removesuffix(".jsonl") for p in notes.glob("*.jsonl")}
    for path in sorted(shards.glob("*.tar")):
        if path.name not in old | plan.keys():
            raise UserError(
                f"{FLAG} {shards}: holds {path.name}, which is not of this run; choose an empty folder"
            )
    _write_text(shards / SHARDS, json.dumps({"version": VERSION, "unfinished": True}))
    for name in old - plan.keys():
        (shards / name).unlink(missing_ok=True)
        (notes / f"{name}.jsonl").unlink()
    n_kept, made = 0, []
    for name, records in tqdm(plan.items(), "shards", unit="shard", disable=None):
        source = _fingerprint(out, records, settings)
        shard = _kept(shards / name, notes / f"{name}.jsonl", source)
        n_kept += shard is not None
        made.append(shard or _write_shard(shards / name, out, records, source))
    if n_kept:
        remark(f"{n_kept} of {len(made)} shards were there already")
    _write_index(shards, made)
    return [shards / shard.name for shard in made]


def _records(out: Path, splits: Sequence[str]) -> list[ClipRecord]:
    records = read_index(out)
    if (out / JOURNAL).exists():
        raise UserError(f"{out}: its preparation was cut off; give that command again, then this one")
    there = {r.split for r in records}
    for split in splits:
        if split not in there:
            raise UserError(
                f"{out / INDEX}: has no split {split}; there are: {', '.join(sorted(there)) or 'none'}"
            )
    for split in there:
        if not re.fullmatch(r"[A-Za-z0-9_]+", split):
            raise UserError(
                f"{out / INDEX}: split {split!r}; letters, digits and _ are needed for a file's name"
            )
    chosen = [r for r in records if r.split in splits or not splits]
    if not chosen:
        raise UserError(f"{out / INDEX}: holds no clip; see its skipped.jsonl for the reasons")
    return chosen


def _planned(records: Sequence[ClipRecord], per_shard: int, seed: int) -> dict[str, list[ClipRecord]]:
    """The clips of each shard by its name; the shards of a split differ by one clip at most."""
    if per_shard < 1:
        raise UserError(f"clips per shard: {per_shard}; at least 1 is needed")
    plan = {}
    for split in sorted({r.split for r in records}):
        mine = sorted((r for r in records if r.split == split), key=lambda r: r.id)
        order = np.random.default_rng(seed).permutation(len(mine))
        for k, part in enumerate(np.array_split(order, -(-len(mine) // per_shard))):
            plan[f"{split}-{k:06d}.tar"] = sorted((mine[i] for i in part), key=lambda r: r.id)
    return plan


def _settings(out: Path) -> bytes:
    path = out / SETTINGS
    return path.read_bytes() if path.is_file() else b""


def _fingerprint(out: Path, records: Sequence[ClipRecord], settings: bytes) -> str:
    seen = hashlib.sha256(settings)
    for record in records:
        seen.update(f"{record.line()}\n{sample_key(record.id)}\n".encode())
        for name, path in clip_members(out, record).items():
            seen.update(f"{name} {_size(path, record)}\n".encode())
    return seen.hexdigest()


def _size(path: Path, record: ClipRecord) -> int:
    try:
        return path.stat().st_size
    except OSError:
        raise UserError(
            f"{path}: missing, though {INDEX} has the clip {record.id}; run preprocess again"
        ) from None


def _kept(tar: Path, note: Path, source: str) -> Shard | None:
    """The shard, if it is there, whole and up to date."""
    try:
        with note.open(encoding="utf-8") as file:
            shard = Shard(**json.loads(file.readline()))
        return shard if (shard.source, shard.bytes) == (source, tar.stat().st_size) else None
    except (OSError, ValueError, TypeError):
        return None


def _write_shard(path: Path, out: Path, records: Sequence[ClipRecord], source: str) -> Shard:
    clips = []
    with atomic_path(path, FLAG) as part, part.open("wb") as file:
        tar = _Tar(file)
        for record in records:
            key, members = sample_key(record.id), {}
            text = record.line().encode() + b"\n"
            for name, content in sorted({**clip_members(out, record), RECORD: text}.items()):
                members[name] = tar.add(f"{key}.{name}", content)
            clips.append(ShardedClip(path.name, record, members))
        n_bytes, checksum = tar.end()
    shard = Shard(path.name, records[0].split, len(records), n_bytes, checksum, source)
    lines = [json.dumps(asdict(shard), sort_keys=True), *(clip.line() for clip in clips)]
    _write_text(path.parent / _NOTES / f"{path.name}.jsonl", "\n".join(lines) + "\n")
    return shard


class _Tar:
    """A tar whose bytes depend on names and contents alone; tells where each member's bytes lie."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.at, self.sum = file, 0, hashlib.sha256()

    def add(self, name: str, content: Path | bytes) -> tuple[int, int]:
        """Append a member; its offset and size. Raises UserError where its file cannot be read to the end."""
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        info = tarfile.TarInfo(name)  # no time, owner 0, mode 0644
        info.size = size
        self._write(info.tobuf(tarfile.PAX_FORMAT))  # USTAR where the name allows
        start = self.at
        for chunk in [content] if isinstance(content, bytes) else _chunks(content):
            self._write(chunk)
        if self.at - start != size:
            raise UserError(f"{content}: changed while it was packed; let nothing write there, and run again")
        self._write(_PADDING[: -size % tarfile.BLOCKSIZE])
        return start, size

    def end(self) -> tuple[int, str]:
        """Close the archive; its size and SHA-256."""
        self._write(_PADDING[: 2 * tarfile.BLOCKSIZE])
        self._write(_PADDING[: -self.at % tarfile.RECORDSIZE])
        return self.at, self.sum.hexdigest()

    def _write(self, data: bytes) -> None:
        self.file.write(data)
        self.sum.update(data)
        self.at += len(data)


def _chunks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); run scripts/preprocess.py again"
        ) from None


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path, FLAG) as part:
        part.write_text(text, encoding="utf-8")


def _write_index(folder: Path, shards: Sequence[Shard]) -> None:
    checksum = hashlib.sha256()
    with atomic_path(folder / SHARD_INDEX, FLAG) as part:
        with part.open("wb") as file:
            for shard in shards:
                with (folder / _NOTES / f"{shard.name}.jsonl").open("rb") as note:
                    note.readline()
                    shutil.copyfileobj(note, file)
            n_bytes = file.tell()
        for chunk in _chunks(part):
            checksum.update(chunk)
    content = {
        "version": VERSION,
        "index": {"bytes": n_bytes, "sha256": checksum.hexdigest()},
        "shards": [asdict(shard) for shard in shards],
    }
    _write_text(folder / SHARDS, json.dumps(content, indent=1, sort_keys=True) + "\n")
