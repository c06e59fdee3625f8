"""Hybrid embedding: K reference frames become generator weights (paper, section 3.3).

Everything that does not depend on the target frame is computed once per identity and kept in an `Identity`: each
reference's features, its attention keys, and the SPADE weights that it alone would give. For a frame, attention
between the target's landmarks and those of the references says how much each counts. No layer knows K, and none sees
the references in an order, so any number of them does, in any order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.generator_config import GeneratorConfig
from models.layers import Conv, ConvBlock, Pyramid, ResBlock, lrelu, pixel_norm
from models.spade import SpadeWeights
from util.batch import References

FUSED_LEVEL = 1  # where image and landmark features exchange what they know


@dataclass(frozen=True)
class Identity:
    """K references of B identities, encoded. B = 1 serves a batch of any number of frames."""

    bottleneck: Tensor  # (B, K, C, h, w) image features
    keys: Tensor | None  # (B, K, c, H', W') attention keys; None: all references count alike
    spade: tuple[SpadeWeights, ...]  # of the adaptive levels, finest first

    @property
    def n_references(self) -> int:
        """K."""
        return self.bottleneck.shape[1]


@dataclass(frozen=True)
class Embedding:
    """What an identity gives to B frames."""

    bottleneck: Tensor  # (B, C, h, w)
    spade: tuple[SpadeWeights, ...]  # blended: without the axis of the references
    attention: Tensor  # (B, K, H', W'), sums to 1 over K


class AttentionStack(nn.Module):
    """Landmark sketch to attention features (queries or keys)."""

    def __init__(self, n: int, stem: int) -> None:
        super().__init__()
        self.layers = Pyramid(1, [n, 2 * n, 4 * n], stem)

    def forward(self, sketch: Tensor) -> Tensor:
        """(B, 1, H, W) to (B, c, H / (4 stem), W / (4 stem)), unit root mean square."""
        return pixel_norm(self.layers(sketch)[-1])


class WeightGenerator(nn.Module):
    """Embedding (C x C matrix) of one level to its SPADE weights: per row linear layers without activation."""

    def __init__(self, n_rows: int, n_features: tuple[int, int], n_map: int) -> None:
        """n_rows: C; n_features: channels before the level's two convolutions; n_map: h, of the level's map."""
        super().__init__()
        self.n_features = n_features
        self.shapes = [*((2 * n, n_map) for n in n_features), (n_map, n_rows)]
        per_row = [
            -(-n * (n_in + 1) // n_rows) for n, n_in in self.shapes
        ]  # rounded up: what is over is not used
        self.stacks = nn.ModuleList(
            nn.Sequential(nn.Linear(n_rows, n_rows), nn.Linear(n_rows, n_rows), nn.Linear(n_rows, n))
            for n in per_row
        )
        for stack, gain in zip(self.stacks, (0.1, 0.1, 1.0), strict=True):
            for layer in stack:
                nn.init.orthogonal_(layer.weight)
                nn.init.zeros_(layer.bias)
            with torch.no_grad():
                stack[-1].weight.mul_(gain)

    def forward(self, rows: Tensor) -> SpadeWeights:
        """rows (B, K, C, C), each of about unit root mean square."""
        made = []
        for stack, (n, n_in) in zip(self.stacks, self.shapes, strict=True):
            flat = stack(rows).flatten(2)
            weight = flat[..., : n * n_in].unflatten(2, (n, n_in)) / n_in**0.5
            made += [weight, flat[..., n * n_in : n * (n_in + 1)]]
        for i, n in ((1, self.n_features[0]), (3, self.n_features[1])):
            made[i] = made[i] + (torch.arange(2 * n, device=rows.device) < n)  # a scale of 1 is no change
        return SpadeWeights(*made)


class HybridEmbedding(nn.Module):
    """References to `Identity`, and `Identity` and target sketch to `Embedding`."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        channels = config.level_channels
        self.hybrid = config.embedding != "fewshot"
        n_adaptive = config.n_made_levels
        n_label = max(n_adaptive, FUSED_LEVEL if self.hybrid else 0)  # deeper levels would serve nothing
        self.image = Pyramid(3, channels, config.stem)
        self.label = Pyramid(1, channels[: n_label + 1], config.stem) if n_label else None
        c = channels[FUSED_LEVEL]
        if self.hybrid:
            self.fusion = ResBlock(2 * c, c)
            streams = ("image", "label") if n_adaptive else ("image",)
            self.fuse = nn.ModuleDict({stream: ConvBlock(2 * c, c) for stream in streams})
            self.shared = nn.ModuleDict({stream: Conv(c, c) for stream in streams})
        attends = config.embedding != "mean"
        self.query = AttentionStack(config.nff, config.flow_stem) if attends else None
        self.key = AttentionStack(config.nff, config.flow_stem) if attends else None
        self.generators = nn.ModuleList(
            WeightGenerator(
                channels[i + 1], (channels[i + 1], min(channels[i + 1], channels[i])), channels[i]
            )
            for i in range(n_adaptive)
        )

    def encode(self, references: References) -> Identity:
        """All that depends on the references alone."""
        batch, k = references.image.shape[:2]
        split = lambda x: x.unflatten(0, (batch, k))  # noqa: E731
        sketch = references.sketch.flatten(0, 1)
        images, labels = self._features(references.image.flatten(0, 1), sketch, (batch, k))
        keys = None if self.key is None else split(self.key(sketch))
        spade = []
        for i, generator in enumerate(self.generators):
            spade.append(generator(split(_level_embedding(images[i + 1], labels[i + 1]))))
        return Identity(split(pixel_norm(images[-1])), keys, tuple(spade))

    def _features(
        self, image: Tensor, sketch: Tensor, shape: tuple[int, int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Features (B K, C, h, w) of every level; both streams exchange what they know at FUSED_LEVEL."""
        x = self.image.first_levels(image, FUSED_LEVEL)
        if self.label is None:
            return self.image.further_levels(x), []
        y = self.label.first_levels(sketch, FUSED_LEVEL)
        if self.hybrid:
            fused = self.fusion(torch.cat([x[-1], y[-1]], 1))
            for stream, levels in (("image", x), ("label", y)):
                if stream in self.fuse:
                    own = levels[-1]
                    common = _common(own, self.shared[stream], shape)
                    levels[-1] = self.fuse[stream](torch.cat([own, fused], 1)) + common
        return self.image.further_levels(x), self.label.further_levels(y)

    def forward(self, identity: Identity, sketch: Tensor) -> Embedding:
        """What B target frames, whose landmarks are drawn in sketch (B, 1, H, W), take from the references."""
        attention = self._attention(identity, sketch)
        share = attention.mean((2, 3))
        bottleneck = identity.bottleneck
        if identity.n_references > 1:
            local = F.adaptive_avg_pool2d(attention, bottleneck.shape[-2:])
            merged = (bottleneck * local[:, :, None]).sum(1)
        else:
            merged = bottleneck[:, 0].expand(len(sketch), -1, -1, -1)
        return Embedding(merged, tuple(level.blend(share) for level in identity.spade), attention)

    def _attention(self, identity: Identity, sketch: Tensor) -> Tensor:
        """(B, K, H', W'): softmax over the references of key times query at each pixel (paper, Eq. of attention)."""
        k = identity.n_references
        if identity.keys is None or (k == 1 and not self.training):
            return sketch.new_full((len(sketch), k, 1, 1), 1 / k)
        query = self.query(sketch)
        energy = (identity.keys * query[:, None]).sum(2) / query.shape[1] ** 0.5
        return energy.softmax(1)


def _common(own: Tensor, convolution: nn.Module, shape: tuple[int, int]) -> Tensor:
    """What all references of an identity have in common, given to each: (B K, C, h, w)."""
    mean = own.unflatten(0, shape).mean(1)
    return lrelu(convolution(mean))[:, None].expand(-1, shape[1], -1, -1, -1).flatten(0, 1)


def _level_embedding(image: Tensor, label: Tensor) -> Tensor:
    """(N, C, C): image features summed up where each landmark feature is, of about unit root mean square.

    image, label (N, C, h, w). A softmax over the landmark features' channels says what a pixel shows.
    """
    shows = label.flatten(2).softmax(1)
    embedding = image.flatten(2) @ (shows / (shows.sum(2, keepdim=True) + 1e-6)).transpose(1, 2)
    return embedding * torch.rsqrt(embedding.square().mean((1, 2), keepdim=True) + 1e-6)
