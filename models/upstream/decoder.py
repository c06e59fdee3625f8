"""netG: references and target landmarks in, image out; the warped images, if any, come in at the finest levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from models.upstream.attention import AttentionGenerator
from models.upstream.config import COMPOSED_LEVELS, UpstreamConfig
from models.upstream.encoders import CombEncoder, JointEncoder, ReferenceEncoder
from models.upstream.label_embedding import LabelEmbedding
from models.upstream.layers import lrelu
from models.upstream.spade import ParallelSpadeBlock, SpadeBlock
from models.upstream.tensors import UpstreamInput
from models.upstream.weight_generator import LevelWeights, WeightGenerator


@dataclass(frozen=True)
class Embedded:
    """What the decoder needs of the references and the target's landmarks."""

    x: Tensor  # [B, C, h, w], the bottleneck
    maps: Sequence[Tensor]  # of the target's landmarks, level 0 first
    weights: Sequence[LevelWeights]  # generated, level 0 first
    attention: Tensor | None  # [B, K, H/4 * W/4]
    ref_idx: Tensor | None  # [B]


class SplitGenerator(nn.Module):
    """Encoders, attention, weight generator, label embedding and decoder under the public names."""

    def __init__(self, config: UpstreamConfig) -> None:
        super().__init__()
        self.config, channels = config, config.channels
        if config.use_new:
            self.encoder = JointEncoder(config)
        else:
            self.image_encoder = ReferenceEncoder(config, n_in=3)
            self.lmark_encoder = ReferenceEncoder(config, n_in=1)
        self.comb_encoder = CombEncoder(config)
        if config.attention:
            self.atten_gen = AttentionGenerator(channels)
        if config.adaptive_spade:
            self.weight_gen = WeightGenerator(config)
        self.label_embedding = LabelEmbedding(config)
        for i in reversed(range(config.n_downsample + 1)):
            composed = i < COMPOSED_LEVELS
            make = ParallelSpadeBlock if composed and config.use_new else SpadeBlock
            n_maps = 4 if composed and config.spade_combine else 1
            block = make(channels[i + 1], channels[i], channels[i], n_maps, i < config.adaptive_levels)
            setattr(self, f"up_{i}", block)
        self.conv_img = nn.Conv2d(channels[0], 3, 3, padding=1)

    def embed(self, given: UpstreamInput) -> Embedded:
        """Everything that does not depend on the warped images."""
        attention = ref_idx = None
        if self.config.attention:
            attention, ref_idx = self.atten_gen(given.tgt_lmark, given.ref_lmarks)
        if self.config.use_new:
            x, label = self.encoder(given.ref_imgs, given.ref_lmarks, attention)
        else:
            x = self.image_encoder(given.ref_imgs, attention)
            label = self.lmark_encoder(given.ref_lmarks, attention)
        weights = []
        if self.config.adaptive_spade:
            weights = self.weight_gen(self.comb_encoder(x, label, self.config.n_adaptive))
        maps = self.label_embedding(given.tgt_lmark, [level.embed for level in weights])
        return Embedded(x, maps, weights, attention, ref_idx)

    def decode_coarse(self, code: Embedded) -> Tensor:
        """The decoder down to the levels where images are composed: [B, c, H/2, W/2]."""
        x = code.x
        for i in reversed(range(COMPOSED_LEVELS, self.config.n_downsample + 1)):
            x = interpolate(self._block(i, x, code), scale_factor=2.0)
        return x

    def decode_fine(
        self, x: Tensor, code: Embedded, composed: Sequence[Sequence[Tensor | None]] = ()
    ) -> Tensor:
        """The remaining levels. x: [B, c, H/2, W/2].

        composed: for levels 0 and 1, the maps of reference, animation and previous image; none: landmarks only.
        Returns the image [B, 3, H, W] in [-1, 1].
        """
        for i in reversed(range(COMPOSED_LEVELS)):
            x = self._block(i, x, code, composed[i] if composed else ())
            x = interpolate(x, scale_factor=2.0) if i else x
        return torch.tanh(self.conv_img(lrelu(x)))

    def _block(self, i: int, x: Tensor, code: Embedded, more: Sequence[Tensor | None] = ()) -> Tensor:
        generated = code.weights[i] if i < len(code.weights) else LevelWeights()
        return getattr(self, f"up_{i}")(x, [code.maps[i], *more], generated.block)
