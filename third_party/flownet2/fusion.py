"""FlowNetFusion: chooses between the flows for large and for small motion, at full resolution."""

from __future__ import annotations

from torch import Tensor

from third_party.flownet2.layers import FlowPyramid, conv


class FlowNetFusion(FlowPyramid):
    """One flow out of two candidates, their lengths and the errors that they leave."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = conv(11, 64)
        self.conv1 = conv(64, 64, stride=2)
        self.conv1_1 = conv(64, 128)
        self.conv2 = conv(128, 128, stride=2)
        self.conv2_1 = conv(128, 128)
        self._add_decoder(2, 128, skips=(128, 64), ups=(32, 16), inter_conv=True)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, 11, H, W]. Returns the flow [B, 2, H, W], pixels."""
        level0 = self.conv0(x)
        level1 = self.conv1_1(self.conv1(level0))
        return self._decode(self.conv2_1(self.conv2(level1)), (level1, level0))[0]
