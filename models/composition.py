"""Composition: raw image and warped images become the frame (paper, section 3.4).

Weights near 1 do not take from a source. Where the 3D mesh starts the composition, the frame begins as the geometric
one (the 3D projection image over the warped reference) and the networks change it where they know better.
"""

from __future__ import annotations

import torch
from torch import Tensor

MESH_LOGIT = 4.0  # the mesh's opacity as logits: +- this


def mesh_logits(mask: Tensor | None, source: str) -> Tensor | float:
    """What the 3D face's opacity (B, 1, H, W) says of a source's weight, as logits: ani inside, ref outside."""
    if mask is None or source == "prev":
        return 0.0
    inside = MESH_LOGIT * (2 * mask - 1)
    return inside if source == "ref" else -inside


def linear(raw: Tensor, warped: dict[str, Tensor], weight: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Raw image under the warped ones, one after the other: ani, then reference, then previous frame.

    All images (B, 3, H, W), weights (B, 1, H, W). Returns the frame and the image after the ani step, if there is one.
    """
    image, after_ani = raw, None
    for source in ("ani", "ref", "prev"):
        if source in warped:
            image = torch.lerp(warped[source], image, weight[source])
            after_ani = image if source == "ani" else after_ani
    return image, after_ani


def nonlinear(made: Tensor, is_change: bool, warped: dict[str, Tensor], weight: dict[str, Tensor]) -> Tensor:
    """The image made by the decoder, which has seen the warped ones.

    is_change, with the mesh's start: `made` (B, 3, H, W) in [-2, 2] is what is added to the 3D image over the
    reference, as warped. A share of the frame that the decoder paints anew was tried in its place: it fell to nothing
    within a few hundred steps, for an untrained painter spoils the frame, and the decoder learnt no more. Otherwise
    `made` is the frame, in [-1, 1] (the paper's composition).
    """
    if not is_change:
        return made
    if "ref" in warped and "ani" in warped:
        base = torch.lerp(warped["ref"], warped["ani"], weight["ref"])
    else:
        base = next(iter(warped.values()))
    image = (base + made).clamp(-1, 1)
    return torch.lerp(warped["prev"], image, weight["prev"]) if "prev" in warped else image
