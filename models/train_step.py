"""One training step's two halves as modules: DDP sees one forward of each per step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from models.flow_truth import FlowTruth
from models.losses import discriminator_losses, generator_losses, temporal_losses
from models.mesh_flow import previous_flow
from options.groups import LossFlags
from util.batch import FaceBatch, FrameInputs, Synthesis


@dataclass(frozen=True)
class Judges:
    """What the generator is judged by and doesn't train. No module, so that DDP leaves these networks alone."""

    critics: nn.ModuleDict
    perceptual: nn.Module | None
    flow_truth: FlowTruth | None


def detached(syn: Synthesis) -> Synthesis:
    """The frame without its history."""

    def cut(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.detach()

    tables = {n: {k: cut(v) for k, v in getattr(syn, n).items()} for n in ("warped", "flow", "weight")}
    images = {n: cut(getattr(syn, n)) for n in ("image", "raw", "ani_composed", "attention")}
    return replace(syn, **images, **tables)


def with_previous(batch: FaceBatch, t: int, image: Tensor) -> FrameInputs:
    """The inputs of target frame t > 0 after frame t - 1, which is `image` (B, 3, H, W).

    Its flow is known where the mesh's flows are; they must lead to the same reference in both frames.
    """
    inputs, flow = batch.frame(t), None
    if batch.warp_flow is not None:
        flow = previous_flow(batch.warp_flow[:, t], batch.warp_flow[:, t - 1])
    return replace(inputs, prev_image=image, prev_sketch=batch.tgt_sketch[:, t - 1], prev_flow=flow)


class GeneratorStep(nn.Module):
    """Frames of a whole slice, one after the other, and what the generator is told about them."""

    def __init__(
        self, generator: nn.Module, judges: Judges, flags: LossFlags, compiled: bool = False
    ) -> None:
        super().__init__()
        self.generator, self.judges, self.flags = generator, judges, flags
        wrap = torch.compile if compiled else lambda fn: fn
        self._encode, self._synthesise = wrap(generator.encode), wrap(generator.synthesise)

    def forward(
        self, batch: FaceBatch, true_previous: Tensor, adversarial: bool
    ) -> tuple[dict[str, Tensor], list[Synthesis]]:
        """Weighted loss terms, to be added up, and the T frames without their history.

        true_previous: (B,) bool; samples whose second frame follows the true first one, not the generated one.
        adversarial: whether the critics take part.
        """
        critics = self.judges.critics if adversarial else None
        identity = self._encode(batch.references)
        made: list[Synthesis] = []
        terms: dict[str, Tensor] = {}
        for t in range(batch.n_frames):
            syn = self._synthesise(identity, self._inputs(batch, t, made, true_previous))
            truth = self.judges.flow_truth(batch, t, syn.flow) if self.judges.flow_truth else None
            losses = generator_losses(syn, batch, t, critics, self.judges.perceptual, truth, self.flags)
            for name, value in losses.items():
                terms[name] = terms.get(name, 0.0) + value / batch.n_frames
            made.append(syn)
        terms |= temporal_losses(made, batch, critics, self.flags)
        return terms, [detached(syn) for syn in made]

    def _inputs(
        self, batch: FaceBatch, t: int, made: Sequence[Synthesis], true_previous: Tensor
    ) -> FrameInputs:
        if t == 0:
            return batch.frame(0)  # as in synthesis, where the first frame has none before it
        image = made[-1].image.detach().float()  # no gradient through time
        if t == 1:
            image = torch.where(true_previous[:, None, None, None], batch.tgt_image[:, 0], image)
        return with_previous(batch, t, image)


class DiscriminatorStep(nn.Module):
    """What the critics are told about a slice of generated frames."""

    def __init__(self, critics: nn.ModuleDict, flags: LossFlags) -> None:
        super().__init__()
        self.critics, self.flags = critics, flags

    def forward(self, fakes: Sequence[Synthesis], batch: FaceBatch) -> dict[str, Tensor]:
        """Weighted loss terms, to be added up; no gradient reaches the fakes."""
        return discriminator_losses(fakes, batch, self.critics, self.flags)
