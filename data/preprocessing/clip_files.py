"""Files of a prepared clip: all of them under temporary names until the last is written; the same bytes each time."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from util.files import atomic_path

FLAG = "--out"  # names the folder in errors


@contextlib.contextmanager
def staged(*paths: Path) -> Iterator[list[Path]]:
    """Temporary names for files that belong together; they get their own when the block has ended well.

    On any failure nothing of them is left. Raises UserError where the folder is full or may not be written to.
    """
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(atomic_path(path, FLAG)) for path in paths]


def write_array(path: Path, array: np.ndarray) -> None:
    """An array of numbers as .npy."""
    file = io.BytesIO()  # a full disk is told of by its number only where plain bytes are written
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    path.write_bytes(file.getvalue())


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], facts: Mapping[str, str]) -> None:
    """Named arrays and words as .safetensors; unlike the library's own writer, always in the same order."""
    data = save({name: np.ascontiguousarray(value) for name, value in tensors.items()}, dict(facts))
    size = int.from_bytes(data[:8], "little")
    head = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(len(head).to_bytes(8, "little") + head + data[8 + size :])
