"""Remote shards in a local folder of bounded size; all reader processes of a machine share it.

Who fetches a shard holds its lock; the others wait for it and find the file. A file is whole or not there. Locks are
the kernel's (flock), so that a process that dies leaves none behind, only the beginning of a file to go on from.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from data.shards.format import Shard
from data.shards.http_fetch import Fetcher, disk_error
from util.errors import UserError

_PART = ".part"
_POLL_S = 0.2


@dataclass(frozen=True)
class ShardCache:
    """The shards below one URL; those not used for longest make room for others."""

    base: str  # the URL of the shards' folder, with its last slash
    folder: Path
    max_bytes: int
    fetcher: Fetcher = field(default_factory=Fetcher)

    def get(self, shard: Shard) -> Path:
        """The shard's file here, fetched if it isn't here yet.

        Raises UserError, naming the URL, where it can't be fetched or isn't what the index says.
        """
        path = self._path(shard)
        if _used(path, shard):
            return path
        with self._lock(path.name):
            if not _used(path, shard):  # meanwhile another process may have fetched it
                part = path.with_name(f"{path.name}.{shard.bytes}{_PART}")
                self._make_room(part, shard)
                self.fetcher.file(self.url(shard.name), part, shard.bytes, shard.sha256)
                part.replace(path)
        return path

    def url(self, name: str) -> str:
        """Where a file comes from."""
        return self.base + quote(name)

    def keep(self, shards: Iterable[Shard]) -> None:
        """Let these, of which more is to be read, be the last to go."""
        for shard in shards:
            _used(self._path(shard), shard)

    def index(self, name: str, n_bytes: int, sha256: str) -> Path:
        """A file that all readers need, kept beside the shards and not counted with them."""
        path = self.folder / f"{sha256[:16]}-{name}"
        with self._lock(path.name):
            if not (path.is_file() and path.stat().st_size == n_bytes):
                part = path.with_name(path.name + ".fetching")
                self.fetcher.file(self.url(name), part, n_bytes, sha256)
                part.replace(path)
        return path

    def _path(self, shard: Shard) -> Path:
        """Named by its content, too: shards written anew on the server aren't mixed with what is here."""
        return self.folder / f"{shard.sha256[:16] or shard.bytes}-{shard.name}"

    def _make_room(self, part: Path, shard: Shard) -> None:
        """Remove shards until this one fits, and count it from now on, by its part's file."""
        if shard.bytes > self.max_bytes:
            raise UserError(
                f"{self.url(shard.name)}: {shard.bytes / 1e6:.0f} MB; the cache may hold only "
                f"{self.max_bytes / 1e6:.0f} MB; give it more, or write smaller shards"
            )
        while True:
            with self._lock("room"):
                if self._fits(part, shard.bytes):
                    part.touch()
                    return
                part.unlink(missing_ok=True)  # what isn't being fetched takes no room from others
            time.sleep(_POLL_S)

    def _fits(self, part: Path, needed: int) -> bool:
        """Is there room beside what others are fetching, once enough shards are gone?"""
        for other in self.folder.glob(f"*{_PART}"):
            if other != part and self._is_free(other.name.split(".tar.")[0] + ".tar"):
                other.unlink(missing_ok=True)  # whoever fetched it has died
            elif other != part:
                needed += int(other.name.removesuffix(_PART).rpartition(".")[2])
        if needed > self.max_bytes:
            return False
        shards = sorted(_stats(self.folder.glob("*.tar")))
        taken = sum(size for _, size, _ in shards)
        for _, size, path in shards:
            if taken + needed <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            taken -= size
        return True

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """Hold a lock. Raises UserError where the folder cannot be written to, in the block too."""
        try:
            with self._lock_file(name) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise disk_error(self.folder, error) from None

    def _is_free(self, name: str) -> bool:
        with self._lock_file(name) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
            return True

    @contextmanager
    def _lock_file(self, name: str) -> Iterator[int]:
        (self.folder / ".locks").mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder / ".locks" / name, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            yield lock
        finally:
            os.close(lock)


def _used(path: Path, shard: Shard) -> bool:
    """Is the shard there, in full? Then it is now the one last used."""
    try:
        facts = path.stat()
        if facts.st_size != shard.bytes:
            return False
        os.utime(
            path, ns=(time.time_ns(), facts.st_mtime_ns)
        )  # by hand: many disks don't note when they are read
    except FileNotFoundError:
        return False
    return True


def _stats(paths: Iterable[Path]) -> Iterator[tuple[int, int, Path]]:
    """When last used, size, path."""
    for path in paths:
        try:
            facts = path.stat()
        except FileNotFoundError:  # another process made room
            continue
        yield facts.st_atime_ns, facts.st_size, path
