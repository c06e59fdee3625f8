"""Building blocks of the generator.

No batch statistics anywhere: features are normalised per pixel over their channels, so that a batch of two equals two
of one, several processes equal one, and a frame does not depend on its neighbours.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.2  # of the leaky rectifiers
HEAD_GAIN = 0.05  # initial weights of output layers, relative: networks start near "no change"


def lrelu(x: Tensor) -> Tensor:
    """Leaky rectifier."""
    return F.leaky_relu(x, SLOPE)


def pixel_norm(x: Tensor) -> Tensor:
    """(B, C, H, W) with the root mean square over channels brought to 1 at every pixel."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6)


class PointwiseConv2d(nn.Conv2d):
    """1x1 convolution as a matrix product over the pixels; on one CPU thread PyTorch's own takes a slow path."""

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            return super().forward(x)
        rows = F.linear(x.permute(0, 2, 3, 1), self.weight[:, :, 0, 0], self.bias)
        return rows.permute(0, 3, 1, 2)


def _he_(layer: nn.Conv2d, gain: float) -> None:
    """He initialisation, times `gain`; no bias."""
    nn.init.kaiming_normal_(layer.weight, SLOPE)
    with torch.no_grad():
        layer.weight.mul_(gain)
    nn.init.zeros_(layer.bias)


class Conv(nn.Conv2d):
    """3x3 convolution that keeps the size (stride 1) or halves it (stride 2)."""

    def __init__(self, n_in: int, n_out: int, stride: int = 1, gain: float = 1.0) -> None:
        super().__init__(n_in, n_out, 3, stride, 1)
        _he_(self, gain)


class Conv1(PointwiseConv2d):
    """1x1 convolution."""

    def __init__(self, n_in: int, n_out: int, gain: float = 1.0) -> None:
        super().__init__(n_in, n_out, 1)
        _he_(self, gain)


class ConvBlock(nn.Sequential):
    """Convolution and rectifier."""

    def __init__(self, n_in: int, n_out: int, stride: int = 1) -> None:
        super().__init__(Conv(n_in, n_out, stride), nn.LeakyReLU(SLOPE))


class ResBlock(nn.Module):
    """x + conv(lrelu(conv(lrelu(norm(x))))); a 1x1 convolution carries x where the channels change."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        middle = min(n_in, n_out)
        self.conv_0 = Conv(n_in, middle)
        self.conv_1 = Conv(middle, n_out, gain=0.3)
        self.conv_s = Conv1(n_in, n_out) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        change = self.conv_1(lrelu(self.conv_0(lrelu(pixel_norm(x)))))
        return self.conv_s(x) + change


class Pyramid(nn.Module):
    """Encoder: features at level 0 (after the stem) and at every halving down to `n_down`."""

    def __init__(self, n_in: int, channels: list[int], stem: int = 1) -> None:
        super().__init__()
        self.stem = stem
        self.first = ConvBlock(n_in * stem**2, channels[0])
        self.down = nn.ModuleList(ConvBlock(a, b, stride=2) for a, b in pairwise(channels))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, n_in, H, W) to features (B, channels[i], H / stem / 2^i, W / stem / 2^i)."""
        return self.further_levels(self.first_levels(x, 0))

    def first_levels(self, x: Tensor, last: int) -> list[Tensor]:
        """Features of levels 0 to `last`."""
        return self.further_levels([self.first(gather(x, self.stem))], last)

    def further_levels(self, levels: list[Tensor], last: int | None = None) -> list[Tensor]:
        """The levels given and those after them, to `last` or the end."""
        levels = list(levels)
        for down in self.down[len(levels) - 1 : last]:
            levels.append(down(levels[-1]))
        return levels


def gather(x: Tensor, factor: int) -> Tensor:
    """Put squares of factor x factor pixels into channels: (B, C, H, W) to (B, C f^2, H / f, W / f)."""
    return x if factor == 1 else F.pixel_unshuffle(x, factor)


def spread(x: Tensor, factor: int) -> Tensor:
    """Inverse of `gather`."""
    return x if factor == 1 else F.pixel_shuffle(x, factor)


def double(x: Tensor) -> Tensor:
    """Twice the size, by repeating pixels."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """1x1 convolution with weights of each sample's own.

    x (B, C, H, W); weight (B or 1, N, C); bias (B or 1, N). Returns (B, N, H, W).
    """
    batch, _, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(batch, height * width, -1)
    out = rows @ weight.transpose(1, 2) + bias[:, None]
    return out.reshape(batch, height, width, -1).permute(0, 3, 1, 2)
