"""Fetch a file by http or https: continued where it broke off, checked, and given up with a plain word."""

from __future__ import annotations

import hashlib
import http.client
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from util.errors import UserError

_CHUNK = 1 << 20
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # what a server may get over
_HEADERS = {"User-Agent": "tilt-your-head", "Accept-Encoding": "identity"}


class _WrongError(Exception):
    """What came is not the file that was asked for."""


@dataclass(frozen=True)
class Fetcher:
    """How patient to be."""

    tries: int = 6  # in a row without a byte of progress, or with the wrong file
    wait_s: float = 0.5  # before the second try; doubled up to half a minute
    timeout_s: float = 30.0  # without a byte

    def text(self, url: str, limit: int = 1 << 28) -> bytes | None:
        """A small file's content; None where the server has none. Raises UserError, naming the URL."""
        for k in range(self.tries):
            try:
                with self._open(url) as answer:
                    content = answer.read(limit + 1)
                if len(content) > limit:
                    raise UserError(f"{url}: is larger than {limit / 1e6:.0f} MB; that is no list of shards")
                return content
            except urllib.error.HTTPError as error:
                if error.code in (404, 410):
                    return None
                last = self._refused(url, error)
            except (OSError, http.client.HTTPException) as error:
                last = error
            self._wait(k)
        raise self._gone(url, last)

    def size(self, url: str) -> int:
        """A file's size in bytes, without fetching it. Raises UserError where the server doesn't say it."""
        for k in range(self.tries):
            try:
                with self._open(url, method="HEAD") as answer:
                    said = answer.headers.get("Content-Length", "")
                if not said.isdigit():
                    raise UserError(f"{url}: the server doesn't say the file's size; put a shards.json there")
                return int(said)
            except urllib.error.HTTPError as error:
                last = self._refused(url, error)
            except (OSError, http.client.HTTPException) as error:
                last = error
            self._wait(k)
        raise self._gone(url, last)

    def file(self, url: str, path: Path, size: int, sha256: str = "") -> None:
        """Fetch into `path`, of `size` bytes; what is there already is taken as the beginning.

        sha256: what the content must have; empty where it isn't known. Raises UserError, naming the URL, where the
        server is gone, refuses, or keeps sending another file; and where the disk is full.
        """
        failures = most = 0
        while True:
            have = path.stat().st_size if path.exists() else 0
            try:
                if have < size:
                    self._append(url, path, have, size)
                if sha256 and _checksum(path) != sha256:
                    raise _WrongError("its checksum is another than the index says")
                return
            except urllib.error.HTTPError as error:
                last = self._refused(url, error)
            except (OSError, http.client.HTTPException, _WrongError) as error:
                if _of_disk(error):
                    raise disk_error(path.parent, error) from None
                last = error
            if isinstance(last, _WrongError):
                path.unlink(missing_ok=True)
                most = size  # from now on a new beginning is no progress
            have = path.stat().st_size if path.exists() else 0
            failures, most = (0, have) if have > most else (failures + 1, most)
            if failures >= self.tries:
                raise self._gone(url, last)
            self._wait(failures)

    def _append(self, url: str, path: Path, have: int, size: int) -> None:
        """Go on from byte `have` until all are there or the connection ends."""
        with self._open(url, f"bytes={have}-" if have else "") as answer:
            if answer.status == 206:
                said = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
                if not said or int(said[1]) != have or said[2] not in ("*", str(size)):
                    raise _WrongError(
                        f"it answers {answer.headers.get('Content-Range')}, not byte {have} of {size}"
                    )
            else:
                have = 0  # this server always begins at the beginning
            with path.open("r+b" if path.exists() else "w+b") as file:
                file.truncate(have)
                file.seek(have)
                while chunk := answer.read(_CHUNK):
                    have += len(chunk)
                    if have > size:
                        raise _WrongError(f"it has more than the {size} bytes that the index says")
                    file.write(chunk)
        if have < size:
            raise ConnectionError(f"broke off at byte {have} of {size}")

    def _open(self, url: str, byte_range: str = "", method: str = "GET") -> http.client.HTTPResponse:
        headers = _HEADERS | ({"Range": byte_range} if byte_range else {})
        request = urllib.request.Request(url, headers=headers, method=method)
        return urllib.request.urlopen(request, timeout=self.timeout_s)

    def _refused(self, url: str, error: urllib.error.HTTPError) -> Exception:
        """The error, where it may pass. Raises UserError where asking again is no use."""
        if error.code == 416:  # ours is as long as theirs or longer
            return _WrongError("it is shorter than the index says")
        if error.code not in _PASSING:
            raise UserError(
                f"{url}: the server answers {error.code} {error.reason}; check the address"
            ) from None
        return error

    def _wait(self, k: int) -> None:
        time.sleep(min(self.wait_s * 2**k, 30.0))

    def _gone(self, url: str, error: Exception) -> UserError:
        reason = getattr(error, "reason", None) or error
        return UserError(
            f"{url}: cannot be fetched ({reason}), {self.tries} times tried; is the server there?"
        )


def disk_error(folder: Path, error: OSError) -> UserError:
    """What to tell the user when what was fetched cannot be kept."""
    why = (error.strerror or str(error)).lower()
    return UserError(f"{folder}: the cache of shards cannot be written to ({why}); free some space there")


def _of_disk(error: Exception) -> bool:
    """Was it writing that failed? Connections have error numbers of their own, and urllib's wrap them."""
    return isinstance(error, OSError) and not isinstance(
        error, (urllib.error.URLError, ConnectionError, TimeoutError)
    )


def _checksum(path: Path) -> str:
    seen = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            seen.update(chunk)
    return seen.hexdigest()
