"""A file, or a stretch of one: so that clips are read alike from plain files and from the members of a tar."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from util.errors import UserError


@dataclass(frozen=True)
class ByteRange:
    """`size` bytes from `offset` on in a file."""

    path: Path
    offset: int
    size: int
    member: str = ""  # its name in a tar

    @classmethod
    def whole(cls, path: str | Path) -> ByteRange:
        """All of a file. Raises UserError where it isn't there."""
        path = Path(path)
        try:
            return cls(path, 0, os.stat(path).st_size)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); prepare the clip again") from None

    @classmethod
    def if_there(cls, path: Path) -> ByteRange | None:
        """All of a file; None where there is none."""
        try:
            return cls(path, 0, os.stat(path).st_size)
        except OSError:
            return None

    def __str__(self) -> str:
        return f"{self.path}, {self.member}" if self.member else str(self.path)

    def read(self) -> bytes:
        """All of it. Raises UserError as `read_parts`."""
        return self.read_part(0, self.size)

    def read_part(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on, counted from the range's start. Raises UserError as `read_parts`."""
        return self.read_parts([(offset, size)])[0]

    def read_parts(self, parts: Iterable[tuple[int, int]]) -> list[bytes]:
        """Several (offset, size) stretches of the range, the file opened once.

        Raises UserError where one lies outside of the range, or the file is gone, shorter, or cannot be read.
        """
        try:
            file = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            try:
                return [self._part(file, int(offset), int(size)) for offset, size in parts]
            finally:
                os.close(file)
        except OSError as error:
            raise UserError(f"{self}: cannot be read ({error.strerror}); prepare the clip again") from None

    def _part(self, file: int, offset: int, size: int) -> bytes:
        inside = 0 <= offset <= offset + size <= self.size
        data = os.pread(file, size, self.offset + offset) if inside else b""
        if not inside or len(data) < size:
            found = f"bytes {offset} to {offset + size} are not in it"
            raise UserError(f"{self}: is damaged or cut off ({found}); prepare the clip again")
        return data

    def open(self) -> BinaryIO:
        """A binary file object of these bytes, for readers that seek. Raises UserError where there is no file."""
        try:
            return io.BufferedReader(_Window(self))
        except OSError as error:
            raise UserError(f"{self}: cannot be read ({error.strerror}); prepare the clip again") from None


class _Window(io.RawIOBase):
    """The bytes of a range as a file of its own."""

    def __init__(self, of: ByteRange) -> None:
        self._range, self._place = of, 0
        self._file = os.open(of.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._range.size}[whence]
        self._place = max(start + offset, 0)
        return self._place

    def readinto(self, buffer: memoryview) -> int:
        n = min(len(buffer), max(self._range.size - self._place, 0))
        data = os.pread(self._file, n, self._range.offset + self._place)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            os.close(self._file)
        super().close()
