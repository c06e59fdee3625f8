"""The public checkpoints (`FlowNet2_checkpoint.pth.tar` and its siblings) to our .safetensors, and back into a network.

A public file is a pickled dict {epoch, state_dict, best_EPE}. It is opened with weights_only=True, which builds
tensors, numbers, strings and containers and runs nothing.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from third_party.flownet2.flownet2 import MODELS
from util.checkpoints import load_tensors, save_tensors
from util.errors import UserError
from util.files import check_file

NEEDED = "a public FlowNet2 checkpoint (.pth.tar)"
AGAIN = "delete it and fetch it again"
MAX_NAMED = 8  # parameters of each fault that a message lists


def empty_network(model: str) -> nn.Module:
    """A network of MODELS without memory for its weights, in eval mode; fill it with `assign=True`."""
    with torch.device("meta"):
        return MODELS[model]().eval()


def convert(source: str | Path, out: str | Path, model: str = "FlowNet2", flag: str = "--file") -> None:
    """Check a public checkpoint against a network of MODELS and write its weights as .safetensors.

    Raises UserError where the file is missing, no checkpoint, holds code, or has not exactly the network's
    parameters.
    """
    weights = read_public(source, flag)
    needed = {name: tuple(value.shape) for name, value in empty_network(model).state_dict().items()}
    faults = differences(weights, needed)
    if faults:
        raise UserError(
            f"{flag} {source}: does not fit {model}: {'; '.join(faults)}; give {model}'s own file"
        )
    ordered = {name: weights[name].float() for name in needed}
    save_tensors(out, ordered, {"model": model, "source": Path(source).name})


def load_network(path: str | Path, model: str = "FlowNet2", flag: str = "checkpoint") -> nn.Module:
    """A network of MODELS in eval mode, without gradients, from a .safetensors file that `convert` wrote.

    Raises UserError as `util.checkpoints.load_tensors`.
    """
    net = empty_network(model)
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    net.load_state_dict(load_tensors(path, flag, shapes)[0], assign=True)
    return net.requires_grad_(False)


def read_public(path: str | Path, flag: str = "--file") -> dict[str, Tensor]:
    """The `state_dict` of a public checkpoint, on the CPU, in the old container or the zip one.

    Raises UserError where there is none, or the file holds anything but tensors and plain values.
    """
    path = check_file(path, flag, NEEDED)
    with path.open("rb") as file:
        head = file.read(256)
    if head.lstrip().startswith(b"<"):
        raise UserError(f"{flag} {path}: is a web page, not a checkpoint; {NEEDED} is needed; {AGAIN}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old containers, and of pickle itself
            held: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile pickle raises
        raise UserError(f"{flag} {path}: {_reason(error)}; {NEEDED} is needed; {AGAIN}") from None
    weights = held.get("state_dict") if isinstance(held, Mapping) else None
    if not isinstance(weights, Mapping) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise UserError(f"{flag} {path}: holds no `state_dict` of tensors; {NEEDED} is needed")
    return {str(name): value for name, value in weights.items()}


def _reason(error: Exception) -> str:
    refused = re.search(r"GLOBAL (\S+)", str(error))
    if refused:
        return f"is refused: its pickle asks for {refused[1]}, and nothing but tensors and plain values is let in"
    if isinstance(error, MemoryError):
        return "does not fit into memory"
    return f"is damaged or cut off ({type(error).__name__})"


def differences(found: Mapping[str, Tensor], needed: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What keeps the tensors from having exactly the needed names and shapes, in words; empty if nothing does."""
    missing = [name for name in needed if name not in found]
    extra = [name for name in found if name not in needed]
    other = [
        f"{name} {tuple(found[name].shape)} not {shape}"
        for name, shape in needed.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    kinds = [n for n in needed if n in found and not found[n].is_floating_point()]
    named = {"missing": missing, "left over": extra, "other shape": other, "not floating point": kinds}
    return [f"{len(names)} {what} ({_few(names)})" for what, names in named.items() if names]


def _few(names: list[str]) -> str:
    rest = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")
