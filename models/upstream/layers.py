"""Blocks that several parts of the public networks share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm  # the old hook: its keys are the public ones


def lrelu(x: Tensor) -> Tensor:
    """The public networks' one activation."""
    return F.leaky_relu(x, 0.2)


def spectral_conv(n_in: int, n_out: int, kernel: int = 3, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """A convolution divided by its spectral norm, padded to keep the size at stride 1."""
    return spectral_norm(nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, bias=bias))


class RefConv(nn.Module):
    """Convolution, batch norm, activation: [B, n_in, H, W] to [B, n_out, H / stride, W / stride]."""

    def __init__(self, n_in: int, n_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = spectral_conv(n_in, n_out, stride=stride)
        self.bn = nn.BatchNorm2d(n_out)

    def forward(self, x: Tensor) -> Tensor:
        return lrelu(self.bn(self.conv(x)))


class ResBlock(nn.Module):
    """Residual block with plain batch norm: [B, n_in, H, W] to [B, n_out, H, W]."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        n_mid = min(n_in, n_out)
        self.conv_0 = spectral_conv(n_in, n_mid)
        self.conv_1 = spectral_conv(n_mid, n_out)
        if n_in != n_out:
            self.conv_s = spectral_conv(n_in, n_out, kernel=1, bias=False)
        self.bn_0 = nn.BatchNorm2d(n_in)
        self.bn_1 = nn.BatchNorm2d(n_mid)
        if n_in != n_out:
            self.bn_s = nn.BatchNorm2d(n_in)
        self.is_identity = n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        residue = self.conv_1(lrelu(self.bn_1(self.conv_0(lrelu(self.bn_0(x))))))
        return residue + (x if self.is_identity else self.conv_s(self.bn_s(x)))
