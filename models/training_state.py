"""Everything that training goes on from, in files: weights, averages, optimisers, and how far it has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models.ema import AveragedWeights
from models.generator_config import FORMAT, GeneratorConfig, check_same
from models.step_guard import StepGuard
from options.scripts import TrainOptions
from util.checkpoints import load_tensors, save_tensors
from util.errors import UserError, remark
from util.files import atomic_path, results_folder

STATE_FILE = "training.safetensors"
_CRITIC_FLAGS = ("ndf", "n_layers_D", "num_D", "add_face_D", "add_mouth_D")


@dataclass(frozen=True)
class Position:
    """How far training has come."""

    epoch: int = 1  # the one under way
    samples: int = 0  # of it that are done, by all processes
    step: int = 0  # done in all

    def next_epoch(self) -> Position:
        """At the start of the epoch after this one."""
        return replace(self, epoch=self.epoch + 1, samples=0)


@dataclass
class TrainingState:
    """All that changes in training."""

    generator: nn.Module
    critics: nn.ModuleDict
    average: AveragedWeights
    optimisers: dict[str, Optimizer]  # "generator", "critics"
    guard: StepGuard
    position: Position = Position()

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of it, by name."""
        held = {f"{name}.{k}": v for name, m in self._modules().items() for k, v in m.state_dict().items()}
        for name, optimiser in self.optimisers.items():
            for i, slots in optimiser.state_dict()["state"].items():
                held |= {f"optimiser.{name}.{i}.{k}": v for k, v in slots.items()}
        return held

    def numbers(self) -> dict[str, Any]:
        """The rest of it, for a note."""
        counts = {"n_averaged": self.average.n_updates, "guard": self.guard.state()}
        return asdict(self.position) | counts

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Take up what `tensors` and `numbers` gave. Raises KeyError or RuntimeError where they don't fit."""
        for name, module in self._modules().items():
            start = f"{name}."
            module.load_state_dict({k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)})
        for name, optimiser in self.optimisers.items():
            _restore_optimiser(optimiser, f"optimiser.{name}.", tensors)
        self._place(numbers)
        self.guard.restore(numbers["guard"])

    def grow(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Take up a single-frame training's networks and position for a temporal one.

        What only the temporal networks have keeps its initial weights, and the optimisers start anew. Raises
        RuntimeError where the rest does not fit.
        """
        for name, module in self._modules().items():
            start, own = f"{name}.", module.state_dict()
            held = {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}
            for key in own.keys() - held.keys():
                if {"prev", "temporal"} & set(key.split(".")):
                    held[key] = own[key]
            module.load_state_dict(held)
        self._place(numbers)

    def _place(self, numbers: Mapping[str, Any]) -> None:
        self.position = Position(*(int(numbers[k]) for k in ("epoch", "samples", "step")))
        self.average.n_updates = int(numbers["n_averaged"])

    def _modules(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "critics": self.critics, "average": self.average.module}


def _restore_optimiser(optimiser: Optimizer, start: str, tensors: Mapping[str, Tensor]) -> None:
    state = optimiser.state_dict()
    for key, value in tensors.items():
        if key.startswith(start):
            index, slot = key[len(start) :].split(".")
            state["state"].setdefault(int(index), {})[slot] = value
    optimiser.load_state_dict(state)
    for parameter, slots in optimiser.state.items():
        for name, value in slots.items():
            if (
                value.shape == parameter.shape and value.dim()
            ):  # in the parameter's memory format: files have none
                slots[name] = torch.empty_like(parameter).copy_(value)


class RunFolder:
    """The files of a run: N_G and latest_G (averaged weights), the state to go on from, options.json.

    A file that cannot be written is told of and training goes on; `last_error` holds the reason until a later try
    succeeds. What stood there before stays.
    """

    def __init__(self, path: Path, options: TrainOptions, config: GeneratorConfig) -> None:
        """Raises UserError where the folder cannot be made or written to."""
        self.path = results_folder(path, "--name")
        self.options, self.config = options, config
        self.last_error: UserError | None = None
        for part in self.path.glob(".part-*"):  # of a run that was killed while it wrote
            part.unlink(missing_ok=True)
        with atomic_path(self.path / "options.json", "--name") as part:
            part.write_text(options.to_json(), encoding="utf-8")

    def save(self, state: TrainingState, epoch_done: int | None = None) -> None:
        """Write latest_G and the state, and before them, for an epoch that is done, N_G."""
        names = ["latest"] if epoch_done is None else [str(epoch_done), "latest"]
        note = {"format": FORMAT, "config": self.config.to_json_dict(), "loss": asdict(self.options.loss)}
        note |= asdict(state.position)
        try:
            for name in names:
                save_tensors(self.path / f"{name}_G.safetensors", state.average.module.state_dict(), note)
            flags = {k: getattr(self.options.discriminator, k) for k in _CRITIC_FLAGS}
            note |= {"critics": flags, "state": state.numbers()}
            save_tensors(self.path / STATE_FILE, state.tensors(), note)
            self.last_error = None
        except UserError as error:
            self.last_error = error
            remark(f"step {state.position.step} was not saved, training goes on: {error}")


def resume(path: Path, state: TrainingState, options: TrainOptions, config: GeneratorConfig) -> bool:
    """Bring `state` to what the folder of a run holds; False where it holds nothing to go on from.

    Raises UserError, naming the flag, where that is of other networks, or damaged.
    """
    file = path / STATE_FILE
    if not file.is_file():
        remark(f"--continue_train: nothing to go on from in {path}; training starts from the beginning")
        return False
    tensors, note = load_tensors(file, "--continue_train")
    try:
        source = str(path)
        found = GeneratorConfig.from_json_dict(note["config"], source)
        if config.temporal and found == replace(config, temporal=False):
            state.grow(tensors, note["state"])
            remark(
                f"--n_frames_G: {path} was trained on single frames; what looks at the frame before starts anew"
            )
            return True
        check_same(config, found, source)
        for name, had in note["critics"].items():
            asked = getattr(options.discriminator, name)
            if asked != had:
                raise UserError(
                    f"--{name}: asks for {asked}, {source} was trained with {had}; "
                    "give the flags that it was trained with, or another --name"
                )
        state.restore(tensors, note["state"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"--continue_train: {file} does not fit these networks ({str(error).splitlines()[0][:100]}); "
            "give another --name, or remove that file"
        ) from None
    return True
