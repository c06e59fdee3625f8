"""Backward warping: the public operation, bit for bit in its conventions, and a pixel-exact one for new networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def warp(image: Tensor, flow: Tensor, align_corners: bool = False) -> Tensor:
    """Sample `image` at p + flow as the public code does, border-padded and bilinear.

    image: [B, C, H, W]. flow: [B, 2, H, W], pixels, (x, y). Returns [B, C, H, W].
    align_corners: False as under torch 1.3 and later, where the public grid does not fit the sampling: column i
    comes from (i + flow_x) * W / (W - 1) - 0.5, so zero flow is not quite the identity. True as before torch 1.3.
    """
    height, width = image.shape[-2:]
    across = torch.linspace(-1, 1, width, device=flow.device, dtype=flow.dtype)
    down = torch.linspace(-1, 1, height, device=flow.device, dtype=flow.dtype)
    x = across + flow[:, 0] / (max(width - 1, 1) / 2)
    y = down[:, None] + flow[:, 1] / (max(height - 1, 1) / 2)
    return _sample(image, x, y, align_corners)


def resample(image: Tensor, flow: Tensor) -> Tensor:
    """Sample `image` at p + flow, border-padded and bilinear; zero flow is the identity.

    image: [B, C, H, W]. flow: [B, 2, H, W], pixels, (x, y). Returns [B, C, H, W].
    """
    height, width = image.shape[-2:]
    column = torch.arange(width, device=flow.device, dtype=flow.dtype)
    row = torch.arange(height, device=flow.device, dtype=flow.dtype)
    # This grid means the same places as one with align_corners=True, but where a side is a power of two
    # it is free of rounding, so that the identity is exact.
    x = ((column + flow[:, 0]) * 2 + 1) / width - 1
    y = ((row[:, None] + flow[:, 1]) * 2 + 1) / height - 1
    return _sample(image, x, y, align_corners=False)


def _sample(image: Tensor, x: Tensor, y: Tensor, align_corners: bool) -> Tensor:
    grid = torch.stack([x, y], dim=-1)  # [B, H, W, 2]
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=align_corners)
