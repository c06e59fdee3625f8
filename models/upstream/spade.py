"""Spatially adaptive normalisation, whose first map's weights may be made from the references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from models.upstream.layers import lrelu, spectral_conv

Maps = Sequence[
    Tensor | None
]  # [B, C, H, W] each: target landmarks, then the reference, animation, previous frame


def point_conv(x: Tensor, weight: Tensor) -> Tensor:
    """1x1 convolution with weights of its own for every sample: [B, n_in, H, W] by [B, n_out, n_in]."""
    return (weight @ x.flatten(2)).unflatten(2, x.shape[2:])


class Modulation(NamedTuple):
    """Generated weights [B, n_out, n_map] of one normalisation's first map. Biases are made, but never used."""

    gamma: Tensor
    beta: Tensor


class BlockWeights(NamedTuple):
    """Generated weights of a decoder block's three normalisations."""

    bn_0: Modulation | None = None
    bn_1: Modulation | None = None
    bn_s: Modulation | None = None


class Spade(nn.Module):
    """Batch norm, then for each map that is there: y * (1 + gamma(map)) + beta(map).

    n_maps: how many maps it knows, of `n_map` channels each. adaptive: the first one's weights are given.
    """

    def __init__(self, n_channels: int, n_map: int, n_maps: int = 1, adaptive: bool = False) -> None:
        super().__init__()
        for suffix in self._suffixes(n_maps)[adaptive:]:
            setattr(self, f"mlp_gamma{suffix}", nn.Conv2d(n_map, n_channels, 1))
            setattr(self, f"mlp_beta{suffix}", nn.Conv2d(n_map, n_channels, 1))
        self.batch_norm = nn.BatchNorm2d(n_channels, affine=False)

    @staticmethod
    def _suffixes(n_maps: int) -> list[str]:
        return ["", *(str(j + 1) for j in range(1, n_maps))]

    def forward(self, x: Tensor, maps: Maps, given: Modulation | None = None) -> Tensor:
        y = self.batch_norm(x)
        for j, (suffix, source) in enumerate(zip(self._suffixes(len(maps)), maps, strict=True)):
            if source is None:
                continue
            if source.shape[2:] != x.shape[2:]:
                source = F.interpolate(source, size=x.shape[2:], mode="bilinear", align_corners=False)
            if j == 0 and given is not None:
                gamma, beta = point_conv(source, given.gamma), point_conv(source, given.beta)
            else:
                gamma = getattr(self, f"mlp_gamma{suffix}")(source)
                beta = getattr(self, f"mlp_beta{suffix}")(source)
            y = y * (1 + gamma) + beta
        return y


class SpadeBlock(nn.Module):
    """Residual block of the decoder whose normalisations apply all maps one after another."""

    def __init__(self, n_in: int, n_out: int, n_map: int, n_maps: int = 1, adaptive: bool = False) -> None:
        super().__init__()
        n_mid = min(n_in, n_out)
        self.conv_0 = spectral_conv(n_in, n_mid)
        self.conv_1 = spectral_conv(n_mid, n_out)
        if n_in != n_out:
            self.conv_s = spectral_conv(n_in, n_out, kernel=1, bias=False)
        self.bn_0 = Spade(n_in, n_map, n_maps, adaptive)
        self.bn_1 = Spade(n_mid, n_map, n_maps, adaptive)
        if n_in != n_out:
            self.bn_s = Spade(n_in, n_map, n_maps, adaptive)
        self.is_identity = n_in == n_out

    def forward(self, x: Tensor, maps: Maps, given: BlockWeights) -> Tensor:
        y = self.conv_0(lrelu(self.bn_0(x, maps, given.bn_0)))
        y = self.conv_1(lrelu(self.bn_1(y, maps, given.bn_1)))
        return y + (x if self.is_identity else self.conv_s(self.bn_s(x, maps, given.bn_s)))


class ParallelSpadeBlock(nn.Module):
    """Residual block of the decoder with one normalisation per map, whose results are averaged."""

    def __init__(self, n_in: int, n_out: int, n_map: int, n_maps: int = 1, adaptive: bool = False) -> None:
        super().__init__()
        n_mid = min(3 * n_in, n_out)
        self.conv_0 = spectral_conv(n_in, n_mid)
        self.conv_1 = spectral_conv(n_mid, n_out)
        if n_in != n_out:
            self.conv_s = spectral_conv(n_in, n_out, kernel=1, bias=False)
        for j in range(n_maps):
            setattr(self, f"bn_0_{j}", Spade(n_in, n_map, adaptive=adaptive and j == 0))
            setattr(self, f"bn_1_{j}", Spade(n_mid, n_map, adaptive=adaptive and j == 0))
        if n_in != n_out:
            self.bn_s = Spade(n_in, n_map, n_maps, adaptive)
        self.is_identity = n_in == n_out

    def forward(self, x: Tensor, maps: Maps, given: BlockWeights) -> Tensor:
        y = self.conv_0(self._mean_of_branches("bn_0", x, maps, given.bn_0))
        y = self.conv_1(self._mean_of_branches("bn_1", y, maps, given.bn_1))
        return y + (x if self.is_identity else self.conv_s(self.bn_s(x, maps, given.bn_s)))

    def _mean_of_branches(self, stage: str, x: Tensor, maps: Maps, given: Modulation | None) -> Tensor:
        branches = [
            lrelu(getattr(self, f"{stage}_{j}")(x, [source], given if j == 0 else None))
            for j, source in enumerate(maps)
            if source is not None
        ]
        return sum(branches) / len(branches)
