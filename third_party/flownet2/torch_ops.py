"""FlowNet2's three operations in plain PyTorch; differentiable any number of times. Inputs as checked in `ops`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def correlation(a: Tensor, b: Tensor, pad: int, max_displacement: int, stride: int) -> Tensor:
    """See `ops.correlation`. Here it is one matrix product.

    Pixels whose distance is a multiple of the stride have the same phase (y % stride, x % stride). Within a phase
    all pixels of `a` meet all of `b`, which for images up to 512 x 512 is less work than the zero-padded windows,
    and runs at the speed of a matrix product; the wanted displacements are then a band of its result.
    """
    margin, r = pad - max_displacement, max_displacement // stride
    (n_b, c, h, w), n = a.shape, 2 * r + 1
    height, width, crop, grow = h + 2 * margin, w + 2 * margin, max(-margin, 0), max(margin, 0)
    edge = (grow, grow + -(w + 2 * grow) % stride, grow, grow + -(h + 2 * grow) % stride)
    phases_a, phases_b = (_phases(F.pad(x, edge), stride) for x in (a, b))  # [P, C, Y, X]
    n_p, _, y, x = phases_a.shape
    pairs = phases_a.flatten(2).mT @ phases_b.flatten(2)  # [P, Y * X, Y * X]
    pairs = F.pad(pairs.view(n_p, y, x, y, x), (r, r, r, r))
    p_step, y_step, x_step, row, _ = pairs.stride()
    band = pairs.as_strided((n_p, n, n, y, x), (p_step, row, 1, y_step + row, x_step + 1))
    band = band.reshape(n_b, stride, stride, n * n, y, x).permute(0, 3, 4, 1, 5, 2)
    out = band.reshape(n_b, n * n, y * stride, x * stride)
    return out[..., crop : crop + height, crop : crop + width] / c


def _phases(x: Tensor, stride: int) -> Tensor:
    """[B, C, Y * stride, X * stride] to [B * stride * stride, C, Y, X]."""
    n_b, c, h, w = x.shape
    split = x.reshape(n_b, c, h // stride, stride, w // stride, stride)
    return split.permute(0, 3, 5, 1, 2, 4).reshape(n_b * stride * stride, c, h // stride, w // stride)


def resample2d(image: Tensor, flow: Tensor) -> Tensor:
    """See `ops.resample2d`. Four gathers: grid_sample's gradient to the flow differs on the border pixels."""
    c, h, w = image.shape[1:]
    (left, right, a), (top, bottom, b) = _taps(flow[:, 0], w, 1), _taps(flow[:, 1], h, 0)
    flat = image.flatten(2)

    def tap(rows: Tensor, columns: Tensor) -> Tensor:
        index = (rows * w + columns).flatten(1)[:, None].expand(-1, c, -1)
        return flat.gather(2, index).view_as(image)

    upper = (1 - a) * (1 - b) * tap(top, left) + a * (1 - b) * tap(top, right)
    return upper + (1 - a) * b * tap(bottom, left) + a * b * tap(bottom, right)


def _taps(shift: Tensor, size: int, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Both neighbours [B, H, W] along an axis (0 is down), kept inside, and the share [B, 1, H, W] of the second."""
    steps = torch.arange(size, device=shift.device, dtype=shift.dtype)
    at = shift + (steps if axis else steps[:, None])
    floor = at.detach().floor()
    first, second = (f.clamp(0, size - 1).nan_to_num(0).long() for f in (floor, floor + 1))
    return first, second, (at - floor)[:, None]


def channel_norm(x: Tensor) -> Tensor:
    """See `ops.channel_norm`."""
    return torch.linalg.vector_norm(x, dim=1, keepdim=True)
