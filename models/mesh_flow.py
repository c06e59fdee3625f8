"""Mesh flows between two frames that are seen through the same reference."""

from __future__ import annotations

import torch
from torch import Tensor

from models.warp import resample

_ITERATIONS = 3


@torch.no_grad()
def previous_flow(flow: Tensor, before: Tensor) -> Tensor:
    """The flow from a frame to the one before it, both known by their flows to one reference.

    flow, before: (B, 2, H, W), backward, pixels: pixel p of the frame is seen in the reference at p + flow(p),
    and likewise for the frame before. Returns (B, 2, H, W): p is seen in the frame before at p + it.
    """
    step = flow - before  # the first guess takes both flows at the same pixel
    for _ in range(_ITERATIONS):  # fixed point of: step + before(p + step) = flow
        step = flow - resample(before, step)
    return step
