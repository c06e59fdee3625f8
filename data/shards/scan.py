"""Read a tar's headers: the clips of a shard that has no index of ours. Nothing is ever unpacked."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import BinaryIO

from data.contract import ClipRecord
from data.shards.format import MEMBERS, RECORD, Shard, ShardedClip, safe_member
from util.errors import UserError, remark

_MAX_HEADER = 1 << 20  # bytes: long names and the like; a hostile tar may claim any number
_MAX_RECORD = 1 << 20
_NEEDED = {MEMBERS[what] for what in ("video", "landmarks", "rt", "front")}


class _Headers:
    """A file of which only small pieces are read: tarfile takes a header's word for how much is to be."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self.file.read(size)


def scan_shard(path: Path, split: str) -> tuple[Shard, list[ShardedClip]]:
    """The shard at `path` and its clips, found by the headers alone.

    Members that belong to no clip are passed over, with a remark. Raises UserError for a file that is no tar, is cut
    off, or holds a member that could do harm where it is unpacked: a link, a device, a way out of the folder.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            found, strange = _members(file, path, size)
            clips = [_clip(file, path, key, places) for key, places in found.items()]
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UserError(f"{path}: is no whole tar of clips ({error}); fetch it again") from None
    kept = [clip for clip in clips if clip is not None]
    if lost := len(clips) - len(kept) + strange:
        remark(f"{path}: {lost} of its samples and files are no clip of ours; they are passed over")
    return Shard(path.name, split, len(kept), size), kept


def _members(file: BinaryIO, path: Path, size: int) -> tuple[dict[str, dict[str, tuple[int, int]]], int]:
    found, strange = {}, 0
    with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:
        for info in tar:
            tar.members = []  # else the list of them grows
            if not safe_member(info.name) or not (info.isreg() or info.isdir()) or info.issparse():
                raise UserError(
                    f"{path}: holds {info.name!r}, which no shard of clips needs; don't use this file"
                )
            if info.isdir():
                continue
            if info.offset_data + info.size > size:
                raise UserError(f"{path}: is cut off within {info.name}; fetch it again")
            folder, _, name = info.name.rpartition("/")
            stem, dot, suffix = name.partition(".")
            if not dot or not stem:
                strange += 1
                continue
            members = found.setdefault(f"{folder}/{stem}" if folder else stem, {})
            if suffix.lower() in members:
                raise UserError(f"{path}: holds {info.name} twice; write the shard again")
            members[suffix.lower()] = (info.offset_data, info.size)
    return found, strange


def _clip(file: BinaryIO, path: Path, key: str, members: dict[str, tuple[int, int]]) -> ShardedClip | None:
    """The clip of one sample; None where it is none of ours."""
    offset, size = members.get(RECORD, (0, 0))
    if not 0 < size <= _MAX_RECORD or not members.keys() >= _NEEDED:
        return None
    file.seek(offset)
    try:
        record = ClipRecord.from_dict(json.loads(file.read(size)))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return ShardedClip(path.name, record, members)
