"""The three operations of FlowNet2 that PyTorch lacks: correlation, warping and the channel norm.

`torch_ops` runs anywhere; on a CUDA GPU with Triton the fused kernels of `triton_ops` stand in.
"""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from third_party.flownet2 import torch_ops
from util.errors import ShapeError


def correlation(a: Tensor, b: Tensor, pad: int = 20, max_displacement: int = 20, stride: int = 2) -> Tensor:
    """Mean product of every feature of `a` with those of `b` around it (FlowNet's cost volume).

    a, b: [B, C, H, W]. Displacements run over multiples of `stride` up to `max_displacement` pixels, rows outer,
    columns inner, n = 2 (max_displacement // stride) + 1 each way; outside the image `b` is zero.
    Returns [B, n * n, H + 2 (pad - max_displacement), W + 2 (pad - max_displacement)].
    Raises ShapeError unless both inputs have one 4-D shape.
    """
    if a.ndim != 4 or a.shape != b.shape:
        raise ShapeError("second features of the correlation", f"{tuple(a.shape)}, of the first", b.shape)
    return (_kernels(a, b) or torch_ops).correlation(a, b, pad, max_displacement, stride)


def resample2d(image: Tensor, flow: Tensor) -> Tensor:
    """Warp an image backwards: output pixel p is the image at p + flow(p), bilinear, borders repeated.

    image: [B, C, H, W]; flow: [B, 2, H, W], pixels, x first. Returns [B, C, H, W]; NaN where the flow is.
    Raises ShapeError unless the flow fits the image.
    """
    if image.ndim != 4 or flow.shape != (len(image), 2, *image.shape[2:]):
        raise ShapeError("flow", f"[B, 2, H, W] for an image {tuple(image.shape)}", flow.shape)
    return (_kernels(image, flow) or torch_ops).resample2d(image, flow)


def channel_norm(x: Tensor) -> Tensor:
    """Euclidean length over channels: [B, C, H, W] to [B, 1, H, W]. Its gradient at zero is zero."""
    return (_kernels(x) or torch_ops).channel_norm(x)


def _kernels(*tensors: Tensor) -> ModuleType | None:
    """The Triton kernels, where they can run on these tensors."""
    if find_spec("triton") is None or not all(t.is_cuda and t.dtype == torch.float32 for t in tensors):
        return None
    from third_party.flownet2 import triton_ops

    return triton_ops
