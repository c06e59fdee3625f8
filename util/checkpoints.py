"""Weights on disk: safetensors with a JSON note, never pickle; whole or not there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor, nn

from util.errors import UserError
from util.files import atomic_path, check_file

_NEEDED = "a .safetensors checkpoint of this project"
_NOTE = "note"  # the one metadata entry, a JSON object


def checkpoint_path(name: str) -> Path:
    """Where a shipped or trained checkpoint is: `checkpoints/<name>` beside the code, from any folder."""
    return Path(__file__).resolve().parent.parent / "checkpoints" / name


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor | np.ndarray], note: Mapping[str, Any] | None = None
) -> None:
    """Write named tensors and a JSON-able note to a .safetensors file, atomically.

    Raises UserError where the folder is full or may not be written to.
    """
    held = {name: _own_copy(value) for name, value in tensors.items()}
    metadata = {_NOTE: json.dumps(dict(note or {}), sort_keys=True)}
    with atomic_path(path, flag="--name") as part:
        part.write_bytes(
            serialise(held, metadata)
        )  # safetensors' own file writer makes it unreadable to others


def _own_copy(value: Tensor | np.ndarray) -> Tensor:
    tensor = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    return tensor.cpu().contiguous().clone()  # safetensors refuses tensors that share memory


def load_tensors(
    path: str | Path, flag: str = "checkpoint", shapes: Mapping[str, Sequence[int]] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Named tensors on the CPU and the note of a .safetensors file. For arrays call `.numpy()` on them.

    shapes: the names and shapes that are needed; None takes what is there.
    Raises UserError, in one line with the flag's name, where the file is missing, empty, cut off, something
    else (a pickle is never opened), or its names or shapes are not those needed.
    """
    path = check_file(path, flag, _NEEDED)
    source = f"{flag} {path}"
    with path.open("rb") as file:
        head = file.read(9)
    if head[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") and head[8:9] != b"{":
        raise UserError(
            f"{source}: is a pickle (a .pth or .pt file), which is never opened here; {_NEEDED} is needed"
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            note = json.loads((file.metadata() or {}).get(_NOTE, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{source}: is damaged or no checkpoint ({error}); {_NEEDED} is needed") from None
    if shapes is not None:
        _check_shapes({name: tuple(t.shape) for name, t in tensors.items()}, shapes, source)
    return tensors, note


def load_module(module: nn.Module, path: str | Path, flag: str = "checkpoint") -> dict[str, Any]:
    """Fill a module from a .safetensors file and return the note. Errors as `load_tensors`."""
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    tensors, note = load_tensors(path, flag, shapes)
    module.load_state_dict(tensors)
    return note


def _check_shapes(
    found: Mapping[str, Sequence[int]], needed: Mapping[str, Sequence[int]], source: str
) -> None:
    missing, extra = sorted(needed.keys() - found.keys()), sorted(found.keys() - needed.keys())
    other = [n for n in sorted(needed.keys() & found.keys()) if tuple(needed[n]) != tuple(found[n])]
    faults = []
    if missing:
        faults.append(f"lacks {_few(missing)}")
    if extra:
        faults.append(f"has {_few(extra)} that are not used")
    if other:
        first = other[0]
        faults.append(
            f"{_few(other)} differ in shape ({first}: {tuple(found[first])}, needed {tuple(needed[first])})"
        )
    if faults:
        raise UserError(f"{source}: {'; '.join(faults)}; it was made with other options or another version")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
