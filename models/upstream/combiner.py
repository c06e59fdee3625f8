"""The whole public generator: netG's image composed with the warped ones, nonlinearly or linearly."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.upstream.config import COMPOSED_LEVELS, UpstreamConfig
from models.upstream.decoder import Embedded, SplitGenerator
from models.upstream.flow import WarpModule
from models.upstream.label_embedding import ImageEmbedding
from models.upstream.tensors import Sources, UpstreamInput, UpstreamOutput


class Composed(NamedTuple):
    """Images [B, 3, H, W] in [-1, 1]: the result, before composition, and before the reference is composed."""

    image: Tensor
    raw: Tensor | None
    img_ani: Tensor | None


class UpstreamGenerator(nn.Module, ABC):
    """The public generator. Make one with `build_generator`."""

    def __init__(self, config: UpstreamConfig) -> None:
        super().__init__()
        self.config = config
        self.netG = SplitGenerator(config)
        self.warp = WarpModule(config)

    @abstractmethod
    def compose(self, code: Embedded, warped: Sources, weight: Sources, original: Sources) -> Composed:
        """warped, original: [B, 3, H, W]. weight: [B, 1, H, W] in (0, 1)."""

    def forward(self, given: UpstreamInput) -> UpstreamOutput:
        """Make B frames. Raises ShapeError or UserError where `given` does not fit the configuration."""
        given.check(self.config)
        code = self.netG.embed(given)
        flow, weight, warped = self.warp(given)
        original = Sources(
            ref=given.warp_ref_img if self.config.warp_ref else None,
            ani=given.ani_img if self.config.warp_ani else None,
        )
        made = self.compose(code, warped, weight, original)
        batch = torch.arange(len(given.tgt_lmark), device=given.tgt_lmark.device)
        chosen = torch.zeros_like(batch) if code.ref_idx is None else code.ref_idx
        return UpstreamOutput(
            fake_image=made.image,
            fake_raw_image=made.raw,
            warped_image=warped if self.config.warped else original,
            flow=flow,
            weight=weight,
            attention=code.attention,
            ref_idx=code.ref_idx,
            ref_label=given.ref_lmarks[batch, chosen],
            ref_image=given.ref_imgs[batch, chosen],
            img_ani=made.img_ani,
        )


class SpadeCombiner(UpstreamGenerator):
    """Nonlinear composition: the warped images modulate the finest levels of the decoder."""

    def __init__(self, config: UpstreamConfig) -> None:
        super().__init__(config)
        self.img_ref_embedding = ImageEmbedding(config, n_in=4)
        self.img_ani_embedding = ImageEmbedding(
            config, n_in=4
        )  # there, as in the public code, even if unused

    def compose(self, code: Embedded, warped: Sources, weight: Sources, original: Sources) -> Composed:
        shown = warped if self.config.warped else original
        ref = _maps(self.img_ref_embedding, shown.ref, weight.ref)
        ani = _maps(self.img_ani_embedding, shown.ani, weight.ani)
        x = self.netG.decode_coarse(code)
        image = self.netG.decode_fine(x, code, [(r, a, None) for r, a in zip(ref, ani, strict=True)])
        return Composed(image, self.netG.decode_fine(x, code) if self.config.add_raw_loss else None, None)


def _maps(embedding: ImageEmbedding, image: Tensor | None, weight: Tensor | None) -> list[Tensor | None]:
    if image is None:
        return [None] * COMPOSED_LEVELS
    return embedding.levels(torch.cat([image, weight], 1), COMPOSED_LEVELS)


class LinearCombiner(UpstreamGenerator):
    """Linear composition: a weighted mean, first with the animation, then with the reference."""

    def compose(self, code: Embedded, warped: Sources, weight: Sources, original: Sources) -> Composed:
        raw = image = self.netG.decode_fine(self.netG.decode_coarse(code), code)
        img_ani = None
        if warped.ani is not None:
            image = img_ani = image * weight.ani + warped.ani * (1 - weight.ani)
        if warped.ref is not None:  # warped even without `warped`, which here only changes what is returned
            image = image * weight.ref + warped.ref * (1 - weight.ref)
        return Composed(image, raw, img_ani)


def build_generator(config: UpstreamConfig) -> UpstreamGenerator:
    """The generator of a configuration, with torch's own initial weights."""
    return SpadeCombiner(config) if config.spade_combine else LinearCombiner(config)
