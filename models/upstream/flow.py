"""Flow from a source image to the target's landmarks, and how far the synthesised image is to be preferred."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from models.upstream.config import UpstreamConfig
from models.upstream.layers import ResBlock, spectral_conv
from models.upstream.tensors import Sources, UpstreamInput
from models.warp import warp

FLOW_SCALE = 20.0  # pixels per unit of the last convolution
N_IN = 5  # target landmarks, source landmarks, source RGB


class FlowNetwork(nn.Module):
    """[B, 5, H, W] to flow [B, 2, H, W] in pixels and weight [B, 1, H, W] in (0, 1)."""

    def __init__(self, config: UpstreamConfig) -> None:
        super().__init__()
        sizes = [config.nff * 2**i for i in range(config.n_downsample_flow + 1)]
        down = [_normed(N_IN, sizes[0]), nn.LeakyReLU(0.2)]
        up = []
        for n, n_next in pairwise(sizes):
            down += [_normed(n, n_next, stride=2), nn.LeakyReLU(0.2)]
            up = [nn.Upsample(scale_factor=2), _normed(n_next, n), nn.LeakyReLU(0.2), *up]
        self.down_flow = nn.Sequential(*down)
        self.res_flow = nn.Sequential(*(ResBlock(sizes[-1], sizes[-1]) for _ in range(config.n_blocks_flow)))
        self.up_flow = nn.Sequential(*up)
        self.conv_flow = nn.Sequential(nn.Conv2d(sizes[0], 2, 3, padding=1))
        self.conv_w = nn.Sequential(nn.Conv2d(sizes[0], 1, 3, padding=1))

    def forward(self, tgt_lmark: Tensor, lmark: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.up_flow(self.res_flow(self.down_flow(torch.cat([tgt_lmark, lmark, image], 1))))
        return self.conv_flow(x) * FLOW_SCALE, torch.sigmoid(self.conv_w(x))


def _normed(n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(spectral_conv(n_in, n_out, stride=stride, bias=False), nn.BatchNorm2d(n_out))


class WarpModule(nn.Module):
    """The images that are composed with, warped to the target."""

    def __init__(self, config: UpstreamConfig) -> None:
        super().__init__()
        self.config = config
        if config.warp_ref:
            self.flow_network_ref = FlowNetwork(config)
        if config.warp_ani:
            self.flow_network_ani = FlowNetwork(config)

    def forward(self, given: UpstreamInput) -> tuple[Sources, Sources, Sources]:
        """Flows [B, 2, H, W] in pixels, weights [B, 1, H, W] in (0, 1) and warped images [B, 3, H, W]."""
        flows, weights, warped = {}, {}, {}
        if self.config.warp_ref:
            image = given.warp_ref_img
            flows["ref"], weights["ref"] = self.flow_network_ref(given.tgt_lmark, given.warp_ref_lmark, image)
            warped["ref"] = warp(image, flows["ref"], self.config.align_corners)
        if self.config.warp_ani:
            image = given.ani_img
            flows["ani"], weights["ani"] = self.flow_network_ani(given.tgt_lmark, given.ani_lmark, image)
            warped["ani"] = warp(image, flows["ani"], self.config.align_corners)
        return Sources(**flows), Sources(**weights), Sources(**warped)
