"""From reference images and landmarks to a bottleneck each, and from both to the code that makes weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.upstream.attention import merge
from models.upstream.config import MERGE_LEVEL, UpstreamConfig
from models.upstream.layers import RefConv, ResBlock


class ReferenceEncoder(nn.Module):
    """Few-shot encoder of images (3 channels) or landmarks (1)."""

    def __init__(self, config: UpstreamConfig, n_in: int) -> None:
        super().__init__()
        channels = config.channels
        self.n_levels = config.n_downsample
        self.conv1 = RefConv(n_in, channels[0])
        for i in range(self.n_levels):
            setattr(self, f"ref_down_{i}", RefConv(channels[i], channels[i + 1], stride=2))

    def forward(self, refs: Tensor, attention: Tensor | None) -> Tensor:
        """refs: [B, K, n_in, H, W]. attention: [B, K, H/4 * W/4], or None for the mean. Returns [B, C, h, w]."""
        x = self.conv1(refs.flatten(0, 1))
        for i in range(self.n_levels):
            if i == MERGE_LEVEL:
                x = merge(x.unflatten(0, refs.shape[:2]), attention)
            x = getattr(self, f"ref_down_{i}")(x)
        return x


class JointEncoder(nn.Module):
    """Hybrid encoder: images and landmarks inform each other before the references are merged."""

    def __init__(self, config: UpstreamConfig) -> None:
        super().__init__()
        channels = config.channels
        self.n_levels = config.n_downsample
        self.conv1 = RefConv(3, channels[0])
        self.conv2 = RefConv(1, channels[0])
        for i in range(self.n_levels):
            setattr(self, f"ref_down_img_{i}", RefConv(channels[i], channels[i + 1], stride=2))
            setattr(self, f"ref_down_lmark_{i}", RefConv(channels[i], channels[i + 1], stride=2))
            if i + 1 == MERGE_LEVEL and config.fuses:
                self._add_fusion(channels[MERGE_LEVEL], config.n_shot)

    def _add_fusion(self, n: int, n_shot: int) -> None:
        self.fusion1 = RefConv(2 * n, n)
        self.fusion2 = RefConv(2 * n, n)
        self.fusion = ResBlock(2 * n, n)
        self.atten1 = RefConv(n_shot * n, n)
        self.atten2 = RefConv(n_shot * n, n)

    def forward(self, imgs: Tensor, lmarks: Tensor, attention: Tensor | None) -> tuple[Tensor, Tensor]:
        """imgs: [B, K, 3, H, W]. lmarks: [B, K, 1, H, W]. attention: [B, K, H/4 * W/4].

        Returns image and landmark features, [B, C, h, w] each. One reference alone is not fused, as in the
        public test scripts, which give one to a network trained with eight.
        """
        x, label = self.conv1(imgs.flatten(0, 1)), self.conv2(lmarks.flatten(0, 1))
        for i in range(self.n_levels):
            x = getattr(self, f"ref_down_img_{i}")(x)
            label = getattr(self, f"ref_down_lmark_{i}")(label)
            if i + 1 == MERGE_LEVEL and imgs.shape[1] > 1:
                x, label = self._fuse(x, label, attention)
        return x, label

    def _fuse(self, x: Tensor, label: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        """[B * K, C, h, w] each to [B, C, h, w] each."""
        grouped = attention.shape[:2]
        both = self.fusion(torch.cat([x, label], 1))
        shared_x = self.atten1(x.unflatten(0, grouped).flatten(1, 2))
        shared_label = self.atten2(label.unflatten(0, grouped).flatten(1, 2))
        x = self.fusion1(torch.cat([x, both], 1)).unflatten(0, grouped)
        label = self.fusion2(torch.cat([label, both], 1)).unflatten(0, grouped)
        return merge(x, attention) + shared_x, merge(label, attention) + shared_label


class CombEncoder(nn.Module):
    """Per-level energies between image and landmark channels, from which weights are made."""

    def __init__(self, config: UpstreamConfig) -> None:
        super().__init__()
        channels = config.channels
        self.n_levels = config.n_downsample
        for i in range(self.n_levels):
            setattr(self, f"ref_img_up_{i}", RefConv(channels[i + 1], channels[i]))
            setattr(self, f"ref_label_up_{i}", RefConv(channels[i + 1], channels[i]))

    def forward(self, x: Tensor, label: Tensor, n_adaptive: int) -> list[Tensor]:
        """x, label: [B, C, h, w]. Returns the energies [B, c, c] of levels 1 to `n_adaptive`, in this order.

        The other levels' energies, which the public code computes too, are used by nothing.
        """
        energies = []
        for i in reversed(range(1, self.n_levels)):
            x = getattr(self, f"ref_img_up_{i}")(x)
            label = getattr(self, f"ref_label_up_{i}")(label)
            if i <= n_adaptive:
                energies.append(x.flatten(2) @ label.softmax(1).flatten(2).mT)
        return energies[::-1]
