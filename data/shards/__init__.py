"""Shards as a set of clips: in a folder, by a pattern of names, or on a web server; read in place, never unpacked."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from data.byte_range import ByteRange
from data.contract import INDEX
from data.shards.cache import ShardCache
from data.shards.format import SHARD_INDEX, SHARDS, Shard, read_shard_list
from data.shards.http_fetch import Fetcher
from data.shards.scan import scan_shard
from data.shards.shard_set import LineFile, ShardIndex, ShardSet
from data.shards.writer import write_shards
from util.errors import UserError, remark
from util.files import atomic_path

DEFAULT_CACHE_BYTES = 64_000_000_000
_REMOTE = ("http://", "https://")
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MAX_SHARDS = 1_000_000

__all__ = ["ShardSet", "is_shards", "open_shards", "write_shards"]


def is_shards(where: str) -> bool:
    """Is this --dataroot a set of shards: a URL, a pattern or name of tars, or a folder of them?"""
    if where.startswith(_REMOTE) or where.endswith(".tar"):
        return True
    folder = Path(where)
    if (folder / SHARDS).is_file():
        return True
    # Downloads may lie as tars beside the folders that they were unpacked to.
    there = list(folder.glob("[!.]*")) if folder.is_dir() else []
    return any(p.suffix == ".tar" for p in there) and not any(p.is_dir() or p.name == INDEX for p in there)


def open_shards(
    where: str,
    cache: Path | None = None,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    fetcher: Fetcher | None = None,
) -> ShardSet:
    """The clips of a folder of shards, of a pattern as in DIR/train-{000000..000012}.tar, or of a URL of either.

    cache: folder for remote shards, at most `cache_bytes` of them, and for the index of tars that have none. The
    order of `ShardSet.plan_epoch` depends on it: processes that train together give the same one. Raises UserError
    where there are no shards, or they can't be read.
    """
    base, names = _split(where)
    if not base.startswith(_REMOTE):
        return _open_local(Path(base), names, cache)
    if cache is None:
        raise UserError(f"--dataroot {where}: a folder to keep remote shards in is needed")
    folder = cache / f"{re.sub(r'[^A-Za-z0-9]+', '-', base)[:60]}{_digest(base)[:8]}"
    store = ShardCache(base, folder, cache_bytes, fetcher or Fetcher())
    found = store.fetcher.text(base + SHARDS)
    if found is None:
        return _scanned_remote(store, names, where)
    shards, n_bytes, checksum = read_shard_list(found, base + SHARDS)
    lines = LineFile.of(store.index(SHARD_INDEX, n_bytes, checksum))
    chosen = _chosen(shards, lines, store, names, where)
    _check_room(folder, min(cache_bytes, sum(s.bytes for s in shards)))
    return chosen


def _open_local(folder: Path, names: Sequence[str] | None, cache: Path | None) -> ShardSet:
    where = f"--dataroot {folder}"
    if not folder.is_dir():
        raise UserError(f"{where}: no such folder; a folder of shards is needed; check the spelling")
    if (folder / SHARDS).is_file():
        shards, n_bytes, _ = read_shard_list((folder / SHARDS).read_bytes(), str(folder / SHARDS))
        if ByteRange.whole(folder / SHARD_INDEX).size != n_bytes:
            raise UserError(
                f"{folder / SHARD_INDEX}: is not the one of {SHARDS}; write or copy the shards again"
            )
        lines = LineFile.of(folder / SHARD_INDEX)
        chosen = _chosen(shards, lines, folder, names, where)
        for k in np.unique(chosen.shard_of):
            if (size := ByteRange.whole(folder / shards[k].name).size) != shards[k].bytes:
                raise UserError(
                    f"{folder / shards[k].name}: has {size} of {shards[k].bytes} bytes; copy it again"
                )
        return chosen
    names = sorted(p.name for p in folder.glob("[!.]*.tar")) if names is None else names
    if not names:
        raise UserError(f"{where}: holds no .tar; a folder of shards is needed")
    return _scanned([folder / name for name in names], cache, folder)


def _chosen(
    shards: list[Shard], lines: LineFile, store: Path | ShardCache, names: Sequence[str] | None, where: str
) -> ShardSet:
    """Of all shards that the index tells of, those that were asked for."""
    everything = ShardSet(ShardIndex(shards, lines), store)
    if names is None:
        return everything
    if missing := sorted({*names} - {s.name for s in shards}):
        raise UserError(f"{where}: {SHARDS} there doesn't know {missing[0]}; check the numbers")
    wanted = np.array([s.name in set(names) for s in shards], bool)
    return everything.subset(wanted[everything.shard_of])


def _scanned_remote(store: ShardCache, names: Sequence[str] | None, where: str) -> ShardSet:
    """Shards of others, without an index: each has to be fetched once to learn what is in it."""
    if names is None:
        raise UserError(
            f"--dataroot {where}: no {SHARDS} there; give a pattern as in URL/train-{{000000..000012}}.tar"
        )
    remark(f"{store.base} has no {SHARDS}: all {len(names)} shards are fetched once to see what is in them")
    found = []
    for name in names:
        shard = Shard(name, _split_of(name), 0, store.fetcher.size(store.url(name)))
        note = store.folder / f"{shard.bytes}-{name}.jsonl"
        if (known := _noted(note)) is None:
            _, clips = scan_shard(store.get(shard), shard.split)
            known = replace(shard, clips=len(clips)), [replace(c, shard=name).line().encode() for c in clips]
            _note(note, *known)
        found.append(known)
    return ShardSet(_index(found), store)


def _scanned(paths: Sequence[Path], cache: Path | None, store: Path) -> ShardSet:
    found = []
    for path in paths:
        whole = ByteRange.whole(path)
        seen = _digest(f"{path.resolve()}|{whole.size}|{path.stat().st_mtime_ns}")
        note = cache / "scans" / f"{seen}.jsonl" if cache else None
        if note is None or (known := _noted(note)) is None:
            shard, clips = scan_shard(path, _split_of(path.name))
            known = shard, [clip.line().encode() for clip in clips]
            if note:
                _note(note, *known)
        found.append(known)
    return ShardSet(_index(found), store)


def _index(found: Sequence[tuple[Shard, list[bytes]]]) -> ShardIndex:
    return ShardIndex([shard for shard, _ in found], [line for _, lines in found for line in lines])


def _noted(path: Path) -> tuple[Shard, list[bytes]] | None:
    try:
        head, *lines = path.read_bytes().splitlines()
        shard = Shard(**json.loads(head))
        return (shard, lines) if len(lines) == shard.clips else None
    except (OSError, ValueError, TypeError):
        return None


def _note(path: Path, shard: Shard, lines: Sequence[bytes]) -> None:
    with atomic_path(path, "the cache's folder") as part:
        part.write_bytes(b"".join(line + b"\n" for line in [json.dumps(asdict(shard)).encode(), *lines]))


def _split(where: str) -> tuple[str, list[str] | None]:
    """A folder or URL with its last slash, and the names of the tars there; None: all."""
    if not where.endswith(".tar"):
        return where.rstrip("/") + "/", None
    folder, slash, pattern = where.rpartition("/")
    return folder + slash if slash else "./", list(_expanded(pattern))


def _expanded(pattern: str) -> Iterator[str]:
    found = _BRACES.search(pattern)
    if not found:
        yield pattern
        return
    first, last = found.groups()
    if not 0 <= int(last) - int(first) < _MAX_SHARDS:
        raise UserError(
            f"--dataroot {pattern}: {first} to {last} are no numbers of shards; write the lower one first"
        )
    for k in range(int(first), int(last) + 1):
        name = pattern[: found.start()] + str(k).zfill(len(first)) + pattern[found.end() :]
        yield from _expanded(name)


def _split_of(name: str) -> str:
    """The split that a shard's name tells of: what is before its number."""
    return name.rpartition("-")[0] or name.removesuffix(".tar")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free + sum(p.stat().st_size for p in folder.glob("*.tar"))
    if free < needed:
        raise UserError(
            f"{folder}: {free / 1e9:.1f} GB are free for shards, {needed / 1e9:.1f} GB may be needed; free some"
        )
