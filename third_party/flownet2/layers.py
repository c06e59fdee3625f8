"""Building blocks of the FlowNet2 family, and the decoder that all of its networks share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

SLOPE = 0.1  # of every LeakyReLU
SKIPS, UPS = (512, 512, 256, 128), (512, 256, 128, 64)  # levels 5 to 2, of C, S and SD


def conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution that keeps the size (divided by the stride), then LeakyReLU."""
    layer = nn.Conv2d(c_in, c_out, kernel, stride, padding=(kernel - 1) // 2)
    return nn.Sequential(layer, nn.LeakyReLU(SLOPE, inplace=True))


def deconv(c_in: int, c_out: int) -> nn.Sequential:
    """Convolution to twice the size, then LeakyReLU."""
    return nn.Sequential(nn.ConvTranspose2d(c_in, c_out, 4, 2, 1), nn.LeakyReLU(SLOPE, inplace=True))


class FlowPyramid(nn.Module):
    """A network whose decoder predicts the flow coarse to fine. Layers are named by level; level l is 1/2^l."""

    def _add_tail(self) -> None:
        """The encoder's levels 4 to 6, the same in C, S and SD."""
        c_in = 256
        for level, c_out in ((4, 512), (5, 512), (6, 1024)):
            self.add_module(f"conv{level}", conv(c_in, c_out, stride=2))
            self.add_module(f"conv{level}_1", conv(c_out, c_out))
            c_in = c_out

    def _run_tail(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features of levels 6, 5 and 4 from those of level 3."""
        found = []
        for level in (4, 5, 6):
            x = self._layer(f"conv{level}_1")(self._layer(f"conv{level}")(x))
            found.append(x)
        return found[2], found[1], found[0]

    def _add_decoder(
        self,
        coarsest: int,
        c_coarsest: int,
        skips: Sequence[int] = SKIPS,
        ups: Sequence[int] = UPS,
        inter_conv: bool = False,
        up_bias: bool = True,
    ) -> None:
        """Layers from the level `coarsest` down; skips and ups: channels per finer level.

        inter_conv: a flow is predicted from features that one more convolution, without activation, has seen.
        """
        self.coarsest, self.inter_conv = coarsest, inter_conv
        levels = range(coarsest - 1, coarsest - 1 - len(ups), -1)
        widths = [c_coarsest, *(skip + up + 2 for skip, up in zip(skips, ups, strict=True))]
        for level, c_in, up in zip(levels, widths, ups, strict=False):
            self.add_module(f"deconv{level}", deconv(c_in, up))
        if inter_conv:
            for level, c_in, up in zip(levels, widths[1:], ups, strict=True):
                self.add_module(f"inter_conv{level}", nn.Sequential(nn.Conv2d(c_in, up, 3, 1, 1)))
            widths[1:] = ups
        for level, c_in in zip((coarsest, *levels), widths, strict=True):
            self.add_module(f"predict_flow{level}", nn.Conv2d(c_in, 2, 3, 1, 1))
        for level in levels:
            up = nn.ConvTranspose2d(2, 2, 4, 2, 1, bias=up_bias)
            self.add_module(f"upsampled_flow{level + 1}_to_{level}", up)

    def _decode(self, features: Tensor, skips: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Flows [B, 2, ...] of all levels, finest first, from the coarsest features and the finer levels' skips."""
        flows = [self._layer(f"predict_flow{self.coarsest}")(features)]
        for level, skip in zip(range(self.coarsest - 1, -1, -1), skips, strict=False):
            flow = self._layer(f"upsampled_flow{level + 1}_to_{level}")(flows[-1])
            features = torch.cat((skip, self._layer(f"deconv{level}")(features), flow), 1)
            seen = self._layer(f"inter_conv{level}")(features) if self.inter_conv else features
            flows.append(self._layer(f"predict_flow{level}")(seen))
        return tuple(reversed(flows))

    def _layer(self, name: str) -> nn.Module:
        return getattr(self, name)
