"""Average of a network's weights over its training; synthesis uses it."""

from __future__ import annotations

import copy

import torch
from torch import nn


class AveragedWeights:
    """Exponential moving average of a module. `module` is the averaged one, in evaluation mode, without gradients.

    Early on the decay is min(decay, (1 + n) / (10 + n)) after n updates, so that the initial weights are soon
    forgotten.
    """

    def __init__(self, source: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(source).eval().requires_grad_(False)
        self.decay, self.n_updates = decay, 0

    @torch.no_grad()
    def update(self, source: nn.Module) -> None:
        """Take in the weights of `source`; buffers are copied."""
        keep = min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        mean, new = list(self.module.parameters()), list(source.parameters())
        torch._foreach_lerp_(mean, new, 1 - keep)
        for mine, its in zip(self.module.buffers(), source.buffers(), strict=True):
            mine.copy_(its)
        self.n_updates += 1
