"""Which reference to trust at which pixel: the likeness of its landmarks to the target's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.upstream.config import MERGE_LEVEL
from models.upstream.layers import RefConv


class AttentionGenerator(nn.Module):
    """Attention of K references from landmark images alone."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.atn_query_first = RefConv(1, channels[0])
        self.atn_key_first = RefConv(1, channels[0])
        for i in range(MERGE_LEVEL):
            setattr(self, f"atn_key_{i}", RefConv(channels[i], channels[i + 1], stride=2))
            setattr(self, f"atn_query_{i}", RefConv(channels[i], channels[i + 1], stride=2))

    def _embed(self, kind: str, lmark: Tensor) -> Tensor:
        for part in ("first", *range(MERGE_LEVEL)):
            lmark = getattr(self, f"atn_{kind}_{part}")(lmark)
        return lmark.flatten(2)

    def forward(self, tgt_lmark: Tensor, ref_lmarks: Tensor) -> tuple[Tensor, Tensor]:
        """tgt_lmark: [B, 1, H, W]. ref_lmarks: [B, K, 1, H, W].

        Returns attention [B, K, H/4 * W/4] that sums to 1 over K, and the most trusted reference [B].
        """
        query = self._embed("query", tgt_lmark)  # [B, C, P]
        key = self._embed("key", ref_lmarks.flatten(0, 1)).unflatten(0, ref_lmarks.shape[:2])  # [B, K, C, P]
        attention = torch.einsum("bkcp,bcp->bkp", key, query).softmax(1)
        return attention, attention.sum(2).argmax(1)


def merge(x: Tensor, attention: Tensor | None) -> Tensor:
    """Features [B, K, C, H, W] of K references as one [B, C, H, W]: weighed [B, K, H * W], or averaged."""
    if attention is None:
        return x.mean(1)
    return (x * attention.unflatten(2, x.shape[3:])[:, :, None]).sum(1)
