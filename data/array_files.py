"""Arrays out of .npy and .safetensors files that may be damaged or made up, and single rows of them.

What a header tells is checked against the file's size before any memory is taken for it; nothing is unpickled.
"""

from __future__ import annotations

import io
import json
import math
from functools import lru_cache

import numpy as np

from data.byte_range import ByteRange
from util.errors import UserError

MAX_HEADER = 4096  # bytes of a .npy header: ours have 128
MAX_INDEX = 1 << 20  # bytes of a .safetensors header
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2"}
_DTYPES |= {"U16": "<u2", "U8": "<u1", "I8": "<i1", "BOOL": "?"}


def npy_shape(file: ByteRange) -> tuple[int, ...]:
    """The shape of the array of numbers in a .npy file, by its header alone. Raises UserError as `read_npy`."""
    return _npy_header(file)[0]


def read_npy(file: ByteRange, shape: tuple[int, ...]) -> np.ndarray:
    """The array (T, *shape) in a .npy file as float32.

    Raises UserError where the file is no array of finite numbers of this shape, or is cut off.
    """
    found, fortran, dtype, start = _npy_header(file)
    if found[1:] != shape or len(found) != len(shape) + 1:
        wanted = ", ".join(["T", *map(str, shape)])
        raise UserError(f"{file}: has shape {found}; ({wanted}) is needed; prepare the clip again")
    values = np.frombuffer(file.read_part(start, math.prod(found) * dtype.itemsize), dtype)
    array = values.reshape(found, order="F" if fortran else "C").astype(np.float32)
    if not np.isfinite(array).all():
        frame = int(np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1))[0])
        raise UserError(f"{file}: frame {frame} holds NaN or infinite values; prepare the clip again")
    return array


def _npy_header(file: ByteRange) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, whether in Fortran's order, dtype, and where the values begin."""
    data = file.read_part(0, min(MAX_HEADER, file.size))
    try:
        shape, fortran, dtype, start = _parsed(data[: 10 + int.from_bytes(data[8:10], "little")])
    except Exception as error:  # the parser raises whatever a made-up header leads it to
        why = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise UserError(f"{file}: is no .npy array ({why}); prepare the clip again") from None
    if dtype.kind not in "fiu":
        raise UserError(f"{file}: holds {dtype}; an array of numbers is needed; prepare the clip again")
    needed = start + math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or needed > file.size:
        found = f"{file.size} bytes, {needed} are needed for shape {shape}"
        raise UserError(f"{file}: is damaged or cut off ({found}); prepare the clip again")
    return shape, fortran, dtype, start


@lru_cache(4096)  # clips of one length have the same; parsing takes as long as decoding a picture
def _parsed(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    head = io.BytesIO(header)
    if np.lib.format.read_magic(head) != (1, 0):
        raise ValueError("version 1.0 is needed")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(head, max_header_size=MAX_HEADER)
    return shape, fortran, dtype, head.tell()


class TensorFile:
    """A .safetensors file of which single tensors, or rows of them, are read."""

    def __init__(self, file: ByteRange) -> None:
        """Reads the header. Raises UserError where it isn't one, or tells of more than the file holds."""
        self.file = file
        try:
            size = int.from_bytes(file.read_part(0, 8), "little")
            if size > MAX_INDEX:
                raise ValueError(f"a header of {size} bytes")
            index = json.loads(file.read_part(8, size))
            self.metadata: dict[str, str] = index.pop("__metadata__", {})
            self._start = 8 + size
            self._tensors = {name: self._entry(facts) for name, facts in index.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{file}: is damaged ({error}); prepare the clip again") from None

    def _entry(self, facts: dict) -> tuple[np.dtype, tuple[int, ...], int]:
        dtype, shape = np.dtype(_DTYPES[facts["dtype"]]), tuple(map(int, facts["shape"]))
        first, end = map(int, facts["data_offsets"])
        n_bytes = math.prod(shape) * dtype.itemsize
        if (
            min(shape, default=0) < 0
            or end - first != n_bytes
            or not 0 <= self._start + end <= self.file.size
        ):
            raise ValueError(f"{n_bytes} bytes of a tensor are not in it")
        return dtype, shape, self._start + first

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def tensor(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A whole tensor (T, *shape). Raises UserError where there is none of that name and shape."""
        dtype, found, start = self._facts(name, shape)
        data = self.file.read_part(start, math.prod(found) * dtype.itemsize)
        return np.frombuffer(data, dtype).reshape(found)

    def rows(self, name: str, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Some rows (N, *shape) of a tensor (T, *shape). Raises UserError as `tensor`."""
        dtype, found, start = self._facts(name, shape)
        step = math.prod(shape) * dtype.itemsize
        # A row behind the last would be another tensor's.
        if len(rows) and not 0 <= int(min(rows)) <= int(max(rows)) < found[0]:
            raise UserError(f"{self.file}: {name} has no row {int(max(rows))}; prepare the clip again")
        parts = self.file.read_parts([(start + int(r) * step, step) for r in rows])
        return np.frombuffer(b"".join(parts), dtype).reshape(len(rows), *shape)

    def _facts(self, name: str, shape: tuple[int, ...]) -> tuple[np.dtype, tuple[int, ...], int]:
        dtype, found, start = self._tensors.get(name, (None, (), 0))
        if dtype is None or found[1:] != shape or len(found) != len(shape) + 1:
            what = f"{name} has shape {found}" if dtype else f"{name} is missing"
            raise UserError(f"{self.file}: {what}; prepare the clip again")
        return dtype, found, start
