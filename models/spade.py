"""SPADE: features modulated, pixel by pixel, by maps; and the decoder's blocks (paper, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from models.layers import Conv, Conv1, lrelu, pixel_norm, pointwise


@dataclass(frozen=True)
class SpadeWeights:
    """Weights of one decoder level's modulation by the target map, made from the references.

    K references (or, once they are blended, no such axis); C_in, C_mid channels of features, h of the map.
    """

    weight_0: Tensor  # (B, K, 2 C_in, h): scale and shift before the first convolution
    bias_0: Tensor  # (B, K, 2 C_in)
    weight_1: Tensor  # (B, K, 2 C_mid, h): before the second
    bias_1: Tensor  # (B, K, 2 C_mid)
    embed_weight: Tensor  # (B, K, h, h_up): of the target map itself, from the level below
    embed_bias: Tensor  # (B, K, h)

    def blend(self, share: Tensor) -> SpadeWeights:
        """Mean over the references by `share` (B, K), which sums to one. One identity serves any batch.

        The weights are an affine function of the embedding, so to blend them is to blend the embeddings.
        """
        if self.bias_0.shape[1] == 1:
            return self._each(lambda w: w[:, 0])
        return self._each(lambda w: _blended(w, share))

    def _each(self, fn) -> SpadeWeights:
        return replace(self, **{f.name: fn(getattr(self, f.name)) for f in fields(self)})


def _blended(weights: Tensor, share: Tensor) -> Tensor:
    flat = weights.flatten(2)  # (B or 1, K, N)
    return (share[:, None] @ flat)[:, 0].unflatten(1, weights.shape[2:])


class Modulation(nn.Module):
    """Scale and shift (B, 2 C, H, W) from a map (B, h, H, W), by a 1x1 convolution of its own."""

    def __init__(self, n_map: int, n_features: int) -> None:
        super().__init__()
        self.conv = Conv1(n_map, 2 * n_features, gain=0.1)
        with torch.no_grad():
            self.conv.bias[:n_features] = 1  # no change

    def forward(self, features: Tensor) -> Tensor:
        return self.conv(features)


def modulate(x: Tensor, scale_shift: Tensor) -> Tensor:
    """x (B, C, H, W) times scale plus shift, rectified; scale_shift (B, 2 C, H, W)."""
    scale, shift = scale_shift.chunk(2, 1)
    return lrelu(torch.addcmul(shift, x, scale))


class SpadeBlock(nn.Module):
    """Residual block of the decoder, modulated by several maps.

    The target map's modulation is the references' (adaptive) or learnt; those of the other maps ("ref", "ani",
    "prev") are learnt. parallel: each map modulates the features by itself and the results are averaged (the paper's
    hybrid block); else one map after the other (few-shot-vid2vid).
    """

    def __init__(
        self, n_in: int, n_out: int, n_target: int, others: dict[str, int], adaptive: bool, parallel: bool
    ) -> None:
        super().__init__()
        middle = min(n_in, n_out)
        self.parallel = parallel
        own = {} if adaptive else {"target": n_target}
        maps = {**own, **others}
        self.modulate_0 = nn.ModuleDict({name: Modulation(n, n_in) for name, n in maps.items()})
        self.modulate_1 = nn.ModuleDict({name: Modulation(n, middle) for name, n in maps.items()})
        self.conv_0 = Conv(n_in, middle)
        self.conv_1 = Conv(middle, n_out, gain=0.3)
        self.conv_s = Conv1(n_in, n_out) if n_in != n_out else nn.Identity()

    def forward(
        self, x: Tensor, target: Tensor, weights: SpadeWeights | None, others: dict[str, Tensor]
    ) -> Tensor:
        """x (B, n_in, H, W); target (B, n_target, H, W); others: maps present in this frame, same H, W."""
        first = None if weights is None else (weights.weight_0, weights.bias_0)
        second = None if weights is None else (weights.weight_1, weights.bias_1)
        y = self.conv_0(self._stage(x, target, first, self.modulate_0, others))
        y = self.conv_1(self._stage(y, target, second, self.modulate_1, others))
        return self.conv_s(x) + y

    def _stage(
        self,
        x: Tensor,
        target: Tensor,
        weights: tuple[Tensor, Tensor] | None,
        own: nn.ModuleDict,
        others: dict[str, Tensor],
    ) -> Tensor:
        x = pixel_norm(x)
        by_target = own["target"](target) if weights is None else pointwise(target, *weights)
        changes = [by_target, *(own[name](features) for name, features in others.items())]
        if self.parallel:
            return sum(modulate(x, change) for change in changes) / len(changes)
        for change in changes[:-1]:
            scale, shift = change.chunk(2, 1)
            x = torch.addcmul(shift, x, scale)
        return modulate(x, changes[-1])
