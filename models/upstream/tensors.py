"""What the public generator is given and gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from models.upstream.config import UpstreamConfig
from util.errors import ShapeError, UserError


class Sources(NamedTuple):
    """One value per image that is composed with, in the public order; None where it is not used."""

    ref: Tensor | None = None
    prev: Tensor | None = None  # of the temporal network, which the public code does not support either
    ani: Tensor | None = None


@dataclass(frozen=True)
class UpstreamInput:
    """B samples with K references. Images are RGB in [-1, 1], landmark images are in [0, 1].

    Height and width are multiples of 32 (of 2 to the power of `n_downsample`).
    """

    tgt_lmark: Tensor  # [B, 1, H, W]
    ref_lmarks: Tensor  # [B, K, 1, H, W]
    ref_imgs: Tensor  # [B, K, 3, H, W]
    warp_ref_img: Tensor | None = None  # [B, 3, H, W], with warp_ref
    warp_ref_lmark: Tensor | None = None  # [B, 1, H, W], with warp_ref
    ani_img: Tensor | None = None  # [B, 3, H, W], with warp_ani
    ani_lmark: Tensor | None = None  # [B, 1, H, W], with warp_ani

    def check(self, config: UpstreamConfig) -> None:
        """Raise ShapeError or UserError unless the network of `config` can take this."""
        step = 2**config.n_downsample
        if self.tgt_lmark.dim() != 4 or any(side % step or not side for side in self.tgt_lmark.shape[2:]):
            needed = f"(B, 1, H, W) with sides that are multiples of {step}"
            raise ShapeError("tgt_lmark", needed, tuple(self.tgt_lmark.shape))
        batch, _, height, width = self.tgt_lmark.shape
        n_refs = self.ref_imgs.shape[1] if self.ref_imgs.dim() == 5 else 0
        if n_refs < 1 or (config.fuses and n_refs not in (1, config.n_shot)):
            n_needed = f"1 or {config.n_shot}" if config.fuses else "K"
            raise ShapeError("ref_imgs", f"(B, {n_needed}, 3, H, W)", tuple(self.ref_imgs.shape))
        if config.use_new and not config.fuses and n_refs > 1:
            raise ShapeError("ref_imgs", "(B, 1, 3, H, W)", tuple(self.ref_imgs.shape))
        needed = {"tgt_lmark": (1,), "ref_lmarks": (n_refs, 1), "ref_imgs": (n_refs, 3)}
        if config.warp_ref:
            needed |= {"warp_ref_img": (3,), "warp_ref_lmark": (1,)}
        if config.warp_ani:
            needed |= {"ani_img": (3,), "ani_lmark": (1,)}
        for name, middle in needed.items():
            value, shape = getattr(self, name), (batch, *middle, height, width)
            if value is None:
                raise UserError(f"{name}: this network needs it")
            if tuple(value.shape) != shape:
                raise ShapeError(name, str(shape), tuple(value.shape))


@dataclass(frozen=True)
class UpstreamOutput:
    """The ten values of the public inference. Images are RGB in [-1, 1]."""

    fake_image: Tensor  # [B, 3, H, W], the result
    fake_raw_image: Tensor | None  # [B, 3, H, W], before composition
    warped_image: Sources  # [B, 3, H, W]
    flow: Sources  # [B, 2, H, W], pixels, (x, y)
    weight: Sources  # [B, 1, H, W] in (0, 1); near 1 the linear combiner keeps the synthesised image
    attention: Tensor | None  # [B, K, H/4 * W/4], sums to 1 over K
    ref_idx: Tensor | None  # [B] int64, the reference that attention prefers
    ref_label: Tensor  # [B, 1, H, W], that reference, or the first one without attention
    ref_image: Tensor  # [B, 3, H, W]
    img_ani: Tensor | None  # [B, 3, H, W], the linear combiner's image before the reference is composed
