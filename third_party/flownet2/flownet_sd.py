"""FlowNetSD: smaller kernels, and a first layer at full resolution, for small displacements."""

from __future__ import annotations

from torch import Tensor

from third_party.flownet2.layers import FlowPyramid, conv


class FlowNetSD(FlowPyramid):
    """Flow for small motion."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = conv(6, 64)
        self.conv1 = conv(64, 64, stride=2)
        self.conv1_1 = conv(64, 128)
        self.conv2 = conv(128, 128, stride=2)
        self.conv2_1 = conv(128, 128)
        self.conv3 = conv(128, 256, stride=2)
        self.conv3_1 = conv(256, 256)
        self._add_tail()
        self._add_decoder(6, 1024, inter_conv=True)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x: [B, 6, H, W], both images, normalised. Returns flows [B, 2, H/4, W/4] to 1/64."""
        level1 = self.conv1_1(self.conv1(self.conv0(x)))
        level2 = self.conv2_1(self.conv2(level1))
        level3 = self.conv3_1(self.conv3(level2))
        level6, level5, level4 = self._run_tail(level3)
        return self._decode(level6, (level5, level4, level3, level2))
