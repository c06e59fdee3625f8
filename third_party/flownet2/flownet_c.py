"""FlowNetC: both images go through the same first layers and meet in the correlation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from third_party.flownet2.layers import SLOPE, FlowPyramid, conv
from third_party.flownet2.ops import correlation


class FlowNetC(FlowPyramid):
    """Flow for large motion."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv(3, 64, 7, 2)
        self.conv2 = conv(64, 128, 5, 2)
        self.conv3 = conv(128, 256, 5, 2)
        self.conv_redir = conv(256, 32, 1)
        self.conv3_1 = conv(32 + 21 * 21, 256)
        self._add_tail()
        self._add_decoder(6, 1024)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x: [B, 6, H, W], both images, normalised. Returns flows [B, 2, H/4, W/4] to 1/64, in 20 pixels."""
        first, second = x[:, :3], x[:, 3:]
        skip = self.conv2(self.conv1(first))
        a, b = self.conv3(skip), self.conv3(self.conv2(self.conv1(second)))
        costs = F.leaky_relu(correlation(a, b), SLOPE)
        level3 = self.conv3_1(torch.cat((self.conv_redir(a), costs), 1))
        level6, level5, level4 = self._run_tail(level3)
        return self._decode(level6, (level5, level4, level3, skip))
