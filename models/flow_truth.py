"""What a flow teacher says of a training sample's sources."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.flow_teacher import FlowTeacher, MeshTeacher
from models.mesh_flow import previous_flow
from util.batch import FaceBatch


@dataclass(frozen=True)
class FlowTruth:
    """Asks the teacher about each source that is warped (parity notes, section 6: flow)."""

    teacher: FlowTeacher
    crop_ref: bool = False  # eyes and mouth are blank in the warped images: then in the target, too

    @torch.no_grad()
    def __call__(self, batch: FaceBatch, t: int, sources: Iterable[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """By source ("ref", "ani", "prev"), for target frame t: its flow (B, 2, H, W), pixels, and confidence.

        A source is left out where the mesh should teach and its flow is not known.
        """
        truths = {}
        for source in sources:
            target, image = self._pair(batch, t, source)
            flow, mask = _mesh(batch, t, source)
            if flow is not None or not isinstance(self.teacher, MeshTeacher):
                truths[source] = self.teacher(target, image, flow, mask)
        return truths

    def _pair(self, batch: FaceBatch, t: int, source: str) -> tuple[Tensor, Tensor]:
        """The target as the source shows it, and the source."""
        target = batch.tgt_image[:, t]
        if source == "prev":
            return target, batch.tgt_image[:, t - 1]
        if source == "ref":
            blank = batch.template[:, t] > 0
            return (target.masked_fill(blank, -1) if self.crop_ref else target), batch.warp_image[:, t]
        ani = batch.ani_image[:, t]
        return target.masked_fill((ani <= -1).all(1, keepdim=True), -1), ani  # black outside the face


def _mesh(batch: FaceBatch, t: int, source: str) -> tuple[Tensor | None, Tensor | None]:
    """The posed mesh's flow to a source, and where it is known; None: not, or everywhere."""
    if source == "ani":  # the projection is made in the target's pose
        mask = batch.ani_mask
        return torch.zeros_like(batch.ani_image[:, t, :2]), None if mask is None else mask[:, t]
    flow = batch.warp_flow
    if flow is None:
        return None, None
    return (previous_flow(flow[:, t], flow[:, t - 1]) if source == "prev" else flow[:, t]), None
