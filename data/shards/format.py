"""What a shard is: the files of prepared clips in a tar by WebDataset's rules, and a line of the index per clip.

A sample's members share all up to the first dot of the base name: align/s1/bbaf2n.crop.mp4, .landmarks.npy, ....json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.contract import ClipRecord, clip_paths
from util.errors import UserError

SHARDS = "shards.json"  # the shards, their sizes and checksums, and the index's
SHARD_INDEX = "index.jsonl"  # one line per clip, in the order in which they lie in the shards
VERSION = 1
MEMBERS = {  # what it is, as in data.contract.ClipPaths -> what it is called after the key
    "video": "crop.mp4",
    "landmarks": "landmarks.npy",
    "rt": "rt.npy",
    "front": "front.npy",
    "ani": "ani.mp4",
    "track": "track.safetensors",
}
SOUND = "wav"
RECORD = "json"  # the clip's line in the prepared folder's index
_NAME = re.compile(r"[^./\\\0][^/\\\0]*\.tar")


@dataclass(frozen=True)
class Shard:
    """One tar."""

    name: str
    split: str
    clips: int
    bytes: int
    sha256: str = ""  # empty where nobody has said it
    source: str = ""  # what it was made of: another one means that it is out of date

    def __post_init__(self) -> None:
        """Raises ValueError where the name could lead out of the folder, or a number makes no sense."""
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is no name of a shard")
        if not (
            isinstance(self.clips, int) and isinstance(self.bytes, int) and min(self.clips, self.bytes) >= 0
        ):
            raise ValueError(f"{self.name} has {self.clips} clips and {self.bytes} bytes")


@dataclass(frozen=True)
class ShardedClip:
    """A clip's line in the index: where its members lie, so that nobody has to walk through the tar."""

    shard: str
    record: ClipRecord
    members: Mapping[str, tuple[int, int]]  # name after the key -> offset and size in bytes

    def line(self) -> str:
        """The same as one line of JSON, without its end."""
        return json.dumps(
            {"shard": self.shard, "record": asdict(self.record), "members": dict(self.members)},
            sort_keys=True,
            ensure_ascii=False,
        )

    @classmethod
    def from_line(cls, line: str | bytes, shard: Shard) -> ShardedClip:
        """The clip of one line. Raises UserError where it is damaged or points outside of `shard`."""
        try:
            said = json.loads(line)
            members = {str(name): _range(place, shard.bytes) for name, place in said["members"].items()}
            record = ClipRecord.from_dict(said["record"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{shard.name}: damaged line in its index ({error}); fetch or write it again"
            ) from None
        if said.get("shard") != shard.name:
            raise UserError(
                f"{SHARD_INDEX}: a line is of {said.get('shard')}, not {shard.name}; write it again"
            )
        return cls(shard.name, record, members)


def _range(place: Any, end: int) -> tuple[int, int]:
    offset, size = place
    if type(offset) is not int or type(size) is not int or offset < 0 or size < 0 or offset + size > end:
        raise ValueError(f"bytes {place} of {end}")
    return offset, size


def clip_members(root: Path, record: ClipRecord) -> dict[str, Path]:
    """The files of a prepared clip by the names of their members; the record itself is not among them."""
    paths = clip_paths(root, record.id, record.dataset)
    members = {name: getattr(paths, what) for what, name in sorted(MEMBERS.items())}
    return members | ({SOUND: root / record.audio} if record.audio else {})


def sample_key(id_: str) -> str:
    """A clip's key in a shard: its id, with what WebDataset would misread written as %2E for the dot, and so on.

    Raises UserError for an id that leads out of a folder.
    """
    *folders, name = id_.split("/")
    if not name or any(part in ("", ".", "..") for part in [*folders, name]) or "\0" in id_:
        raise UserError(f"clip {id_!r}: a name like this may not stand in a shard; rename the clip")
    key = "/".join([*folders, name.replace("%", "%25").replace(".", "%2E")])
    return "%5F" + key[1:] if key.startswith("__") else key  # WebDataset skips what begins with two


def safe_member(name: str) -> bool:
    """Does a member's name stay within a folder? Nothing is unpacked by name here, but others may."""
    return bool(name) and not name.startswith("/") and "\\" not in name and ".." not in name.split("/")


def read_shard_list(text: str | bytes, where: str) -> tuple[list[Shard], int, str]:
    """Shards, and bytes and SHA-256 of the index, out of shards.json. Raises UserError, naming `where`."""
    try:
        said = json.loads(text)
        if said.get("unfinished"):
            raise UserError(f"{where}: the shards were not written to the end; run the command again")
        if said["version"] != VERSION:
            raise UserError(
                f"{where}: version {said['version']}, {VERSION} is needed; write the shards again"
            )
        shards = [Shard(**shard) for shard in said["shards"]]
        n_bytes, checksum = int(said["index"]["bytes"]), str(said["index"]["sha256"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{where}: damaged ({error}); write the shards again") from None
    if not shards or len({s.name for s in shards}) < len(shards):
        raise UserError(f"{where}: names no shard, or one twice; write the shards again")
    return shards, n_bytes, checksum
