"""The generator: references, target landmarks and images to warp in, a frame out (paper, section 3.3 and 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.composition import linear, mesh_logits, nonlinear
from models.embedding import Embedding, HybridEmbedding, Identity
from models.flow_network import FlowNetwork
from models.generator_config import GeneratorConfig
from models.layers import HEAD_GAIN, Conv, Pyramid, double, lrelu, spread
from models.spade import SpadeBlock
from models.target_embedding import TargetEmbedding
from models.warp import resample
from util.batch import FrameInputs, References, Synthesis
from util.errors import UserError

PREV_AT_FIRST, PREV_LEAST = 1.0, 0.6  # logit and least weight of the new image: what drags on dies out


class FewShotGenerator(nn.Module):
    """`encode` once per identity, `synthesise` for every frame; `forward` does both, for training."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        n = config.n_downsample
        channels = config.level_channels
        self.embedding = HybridEmbedding(config)
        self.target = TargetEmbedding(config)
        flows = ("all",) if config.same_flownet else config.sources
        self.flow = nn.ModuleDict({source: FlowNetwork(config) for source in flows if config.sources})
        composes = config.sources if config.composition == "nonlinear" else ()
        n_compose = min(config.n_compose, n)
        self.composed = nn.ModuleDict(
            {source: Pyramid(4, channels[:n_compose], config.stem) for source in composes}
        )
        n_adaptive = config.n_made_levels
        self.blocks = nn.ModuleList(
            SpadeBlock(
                channels[min(i + 1, n)],
                channels[i],
                channels[i],
                dict.fromkeys(composes, channels[i]) if i < n_compose else {},
                adaptive=i < n_adaptive,
                parallel=config.embedding != "fewshot",
            )
            for i in range(n + 1)
        )
        # With the mesh's start the decoder says what changes in the frame, else what it is.
        self.changes = config.composition == "nonlinear" and config.mesh_flow and bool(config.sources)
        gain = HEAD_GAIN / 10 if self.changes else HEAD_GAIN
        self.to_image = Conv(channels[0], 3 * config.stem**2, gain=gain)
        needs_own = self.changes and config.add_raw
        self.to_raw = Conv(channels[0], 3 * config.stem**2, gain=HEAD_GAIN) if needs_own else None

    def forward(self, references: References, inputs: FrameInputs) -> Synthesis:
        """The frame of B samples."""
        return self.synthesise(self.encode(references), inputs)

    def encode(self, references: References) -> Identity:
        """Everything that depends on the references alone; to be kept for all frames of an identity."""
        self._check_size(references.image)
        return self.embedding.encode(references)

    def synthesise(self, identity: Identity, inputs: FrameInputs) -> Synthesis:
        """One frame for each of B inputs; `identity` of one identity serves all, one of B serves each its own."""
        self._check_size(inputs.sketch)
        embedding = self.embedding(identity, inputs.sketch)
        maps = self.target(inputs.sketch, embedding.spade)
        warped, flow, weight = self._warp(inputs)
        x = embedding.bottleneck
        n_shared = len(self.blocks) - self._n_compose
        for i in range(len(self.blocks) - 1, -1, -1)[:n_shared]:
            x = self._block(i, x, maps, embedding, {})
        features = self._finish(x, maps, embedding, self._compose_maps(warped, weight))
        made = self._picture(self.to_image, features)
        raw = ani_composed = None
        if self.config.composition == "linear":
            raw = made
            image, ani_composed = linear(made, warped, weight)
        else:
            image = nonlinear(2 * made if self.changes else made, self.changes, warped, weight)
            if self.config.add_raw and self.training:
                raw = self._picture(self.to_raw or self.to_image, self._finish(x, maps, embedding, {}))
        return Synthesis(image, raw, ani_composed, warped, flow, weight, embedding.attention)

    @property
    def _n_compose(self) -> int:
        return min(self.config.n_compose, self.config.n_downsample) if self.composed else 0

    def _block(
        self, i: int, x: Tensor, maps: list[Tensor], embedding: Embedding, others: dict[str, list[Tensor]]
    ) -> Tensor:
        """Decoder level i: twice the size (but for the bottleneck), then its block."""
        x = x if i == self.config.n_downsample else double(x)
        weights = embedding.spade[i] if i < len(embedding.spade) else None
        return self.blocks[i](x, maps[i], weights, {name: levels[i] for name, levels in others.items()})

    def _finish(
        self, x: Tensor, maps: list[Tensor], embedding: Embedding, others: dict[str, list[Tensor]]
    ) -> Tensor:
        """The finest levels, which see the warped images: features (B, C, h, w)."""
        for i in range(self._n_compose - 1, -1, -1):
            x = self._block(i, x, maps, embedding, others)
        return lrelu(x)

    def _picture(self, layer: nn.Module, features: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], in full precision, in which it is composed."""
        return torch.tanh(spread(layer(features), self.config.stem).float())

    def _compose_maps(self, warped: dict[str, Tensor], weight: dict[str, Tensor]) -> dict[str, list[Tensor]]:
        return {
            source: self.composed[source](torch.cat([warped[source], weight[source]], 1))
            for source in warped
            if source in self.composed
        }

    def _warp(self, inputs: FrameInputs) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Warped images, flows and weights by source."""
        warped, flow, weight = {}, {}, {}
        mesh = self.config.mesh_flow
        for source in self.config.sources:
            image, sketch, start = _source(inputs, source)
            if image is None:
                if source == "prev":
                    continue  # the first frame has none before it
                raise UserError(f"--warp_{source}: the data has no such image; leave the flag out")
            network = self.flow["all" if self.config.same_flownet else source]
            flow[source], logits = network(inputs.sketch, sketch, image, start if mesh else None)
            if source == "prev":
                weight[source] = PREV_LEAST + (1 - PREV_LEAST) * torch.sigmoid(logits + PREV_AT_FIRST)
            else:
                weight[source] = torch.sigmoid(
                    logits + mesh_logits(inputs.ani_mask if mesh else None, source)
                )
            warped[source] = resample(image, flow[source]) if self.config.warped else image
        return warped, flow, weight

    def _check_size(self, image: Tensor) -> None:
        height, width = image.shape[-2:]
        multiple = self.config.multiple
        if height % multiple or width % multiple:
            raise UserError(
                f"--resolution {width}: this network needs a multiple of {multiple}; "
                f"choose {max(width // multiple, 1) * multiple}"
            )


def _source(inputs: FrameInputs, source: str) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Image, sketch and the mesh's flow of a source."""
    if source == "ref":
        return inputs.warp_image, inputs.warp_sketch, inputs.warp_flow
    if source == "ani":
        return inputs.ani_image, inputs.ani_sketch, None
    return inputs.prev_image, inputs.prev_sketch, inputs.prev_flow
