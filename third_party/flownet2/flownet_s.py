"""FlowNetS: both images, and whatever else is known, enter one encoder together."""

from __future__ import annotations

from torch import Tensor

from third_party.flownet2.layers import FlowPyramid, conv


class FlowNetS(FlowPyramid):
    """Flow from stacked input: 6 channels alone, 12 as a refinement of an earlier flow."""

    def __init__(self, c_in: int = 6) -> None:
        super().__init__()
        self.conv1 = conv(c_in, 64, 7, 2)
        self.conv2 = conv(64, 128, 5, 2)
        self.conv3 = conv(128, 256, 5, 2)
        self.conv3_1 = conv(256, 256)
        self._add_tail()
        self._add_decoder(6, 1024, up_bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x: [B, C, H, W]. Returns flows [B, 2, H/4, W/4] to 1/64, in units of 20 pixels."""
        level2 = self.conv2(self.conv1(x))
        level3 = self.conv3_1(self.conv3(level2))
        level6, level5, level4 = self._run_tail(level3)
        return self._decode(level6, (level5, level4, level3, level2))
