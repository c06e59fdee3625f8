"""Flow networks: how a source image moves into the target frame, and where it is not to be trusted (paper, 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.generator_config import GeneratorConfig
from models.layers import HEAD_GAIN, Conv, ConvBlock, Pyramid, ResBlock, double
from models.warp import resample

FREE_RANGE, MESH_RANGE = 20.0, 5.0  # pixels that one unit of the network's answer moves
STILL_AT_FIRST = -4.0  # logit: how much of a pixel stands still whatever the mesh says


class FlowNetwork(nn.Module):
    """Target sketch, source sketch and source image to flow and occlusion weight.

    With a start (the exact flow of the 3D mesh) the source is warped by it first; the network says where it does not
    hold, because a background stands still behind the head, and adds what is missing.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        n, stem = config.nff, config.flow_stem
        channels = [min(n * 2**i, config.max_channels) for i in range(config.n_downsample_flow + 1)]
        self.stem = stem
        self.range = MESH_RANGE if config.mesh_flow else FREE_RANGE
        self.down = Pyramid(5, channels, stem)
        self.middle = nn.Sequential(
            *(ResBlock(channels[-1], channels[-1]) for _ in range(config.n_blocks_flow))
        )
        self.up = nn.ModuleList(
            ConvBlock(a, b) for a, b in zip(channels[:0:-1], channels[-2::-1], strict=True)
        )
        self.head = Conv(channels[0], 4 if config.mesh_flow else 3, gain=HEAD_GAIN)

    def forward(
        self, target_sketch: Tensor, sketch: Tensor, image: Tensor, start: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Sketches (B, 1, H, W), image (B, 3, H, W), start (B, 2, H, W) or None.

        Returns the backward flow (B, 2, H, W) in pixels and the logits (B, 1, H, W) of the weight.
        """
        source = torch.cat([sketch, image], 1)
        if start is not None:
            source = resample(source, start)
        x = self.middle(self.down(torch.cat([target_sketch, source], 1))[-1])
        for up in self.up:
            x = up(double(x))
        answer = self.head(x).float()  # half precision would round flows to parts of a pixel
        if self.stem > 1:
            answer = F.interpolate(answer, scale_factor=self.stem, mode="bilinear", align_corners=False)
        flow = answer[:, :2] * self.range
        if start is not None:
            flow = flow + start * torch.sigmoid(-answer[:, 3:] - STILL_AT_FIRST)
        return flow, answer[:, 2:3]
