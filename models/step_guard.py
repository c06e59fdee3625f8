"""Steps that would spoil the weights: found before they are taken, counted, and after too many in a row, the end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median

from util.errors import UserError

DIVERGED = 100.0  # times the running median of the loss
_MEMORY, _FIRST = 101, 20  # losses that the median is of, and how many there must be
_FLOOR = 1e-2  # a median nearer to 0 than this (adversarial losses have no lower bound) says nothing


class StepGuard:
    """Judges losses and gradients of "generator" and "critics"; remembers losses and faults."""

    def __init__(self, max_in_row: int) -> None:
        self.max_in_row = max_in_row
        self.in_row = self.n_skipped = 0
        self.recent: dict[str, list[float]] = {}

    def fault(self, who: str, losses: Mapping[str, float], gradient_norm: float) -> str:
        """What is wrong with a step, in words; "" if it may be taken."""
        bad = [name for name, value in losses.items() if not math.isfinite(value)]
        if bad:
            return f"loss {', '.join(bad)} of the {who} is not a finite number"
        if not math.isfinite(gradient_norm):
            return f"the gradient of the {who} is not finite"
        total, recent = abs(sum(losses.values())), self.recent.setdefault(who, [])
        usual = max(median(recent), _FLOOR) if len(recent) >= _FIRST else math.inf
        if total > DIVERGED * usual:
            return f"the loss of the {who} is {total:.3g}, {DIVERGED:.0f} times the usual {usual:.3g} or more"
        self.recent[who] = [*recent, total][-_MEMORY:]
        return ""

    def count(self, fault: str) -> None:
        """Note how a step went. Raises UserError, with the reason, after too many bad ones in a row."""
        self.in_row = self.in_row + 1 if fault else 0
        self.n_skipped += bool(fault)
        if self.in_row >= self.max_in_row:
            raise UserError(
                f"--max_bad_steps {self.max_in_row}: that many steps in a row were skipped, the last because {fault}; "
                "the last checkpoint stays as it was; go on from it with --continue_train and a smaller --lr"
            )

    def state(self) -> dict:
        """For a checkpoint's note; `restore` is the inverse."""
        return {"in_row": self.in_row, "n_skipped": self.n_skipped, "recent": self.recent}

    def restore(self, state: Mapping) -> None:
        self.in_row, self.n_skipped = state["in_row"], state["n_skipped"]
        self.recent = {who: list(losses) for who, losses in state["recent"].items()}
