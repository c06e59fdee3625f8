"""Maps that modulate the decoder: of the target's landmarks, and of the warped images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from models.upstream.config import UpstreamConfig
from models.upstream.spade import point_conv


class Doubling(NamedTuple):
    """Transposed 1x1 convolution of stride 2 with weights of its own for every sample."""

    weight: Tensor  # [B, n_out, n_in]
    bias: Tensor  # [B, n_out]

    def __call__(self, x: Tensor) -> Tensor:
        """[B, n_in, H, W] to [B, n_out, 2 H, 2 W], of which three of four pixels are the bias alone."""
        height, width = x.shape[2:]
        y = point_conv(x, self.weight) + self.bias[:, :, None, None]
        out = self.bias[:, :, None, None].expand(-1, -1, 2 * height, 2 * width).clone()
        out[:, :, ::2, ::2] = y
        return out


class ImageEmbedding(nn.Module):
    """Plain convolutions, each level half the size of the one before."""

    def __init__(self, config: UpstreamConfig, n_in: int) -> None:
        super().__init__()
        channels = config.channels
        self.conv_first = _activated(nn.Conv2d(n_in, channels[0], 3, padding=1))
        for i in range(config.n_downsample):
            conv = nn.Conv2d(channels[i], channels[i + 1], 3, stride=2, padding=1)
            setattr(self, f"down_{i}", _activated(conv))

    def levels(self, x: Tensor, n_levels: int) -> list[Tensor]:
        """x: [B, n_in, H, W]. Returns levels 0 to n_levels - 1, level i of [B, c_i, H / 2^i, W / 2^i]."""
        found = [self.conv_first(x)]
        for i in range(n_levels - 1):
            found.append(getattr(self, f"down_{i}")(found[-1]))
        return found


class LabelEmbedding(ImageEmbedding):
    """Landmarks down to the bottleneck and up again; the finest steps up have generated weights."""

    def __init__(self, config: UpstreamConfig) -> None:
        super().__init__(config, n_in=1)
        channels = config.channels
        self.n_levels = config.n_downsample
        for i in reversed(range(config.adaptive_levels, self.n_levels)):
            conv = nn.ConvTranspose2d(channels[i + 1], channels[i], 3, stride=2, padding=1, output_padding=1)
            setattr(self, f"up_{i}", _activated(conv))

    def forward(self, lmark: Tensor, given: Sequence[Doubling]) -> list[Tensor]:
        """lmark: [B, 1, H, W]. given: weights of levels 0, 1, ... Returns the maps of all levels, 0 first."""
        x = self.levels(lmark, self.n_levels + 1)[-1]
        maps = [x]
        for i in reversed(range(self.n_levels)):
            x = given[i](x) if i < len(given) else getattr(self, f"up_{i}")(x)
            maps.append(x)
        return maps[::-1]


def _activated(conv: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv, nn.LeakyReLU(0.2))
