"""What training and synthesis pass around: typed batches of tensors, and the frame that a generator makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch", bound="TensorBatch")


@dataclass(frozen=True)
class TensorBatch:
    """Base of batches: every field is a Tensor or None."""

    def map(self: Batch, fn: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with `fn` of every tensor."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: fn(value) for name, value in held.items() if value is not None})

    def to(self: Batch, device: torch.device | str) -> Batch:
        """The batch on a device."""
        return self.map(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self: Batch) -> Batch:
        """The batch in page-locked memory; DataLoader calls this."""
        return self.map(Tensor.pin_memory)

    @classmethod
    def stack(cls: type[Batch], samples: Sequence[Batch]) -> Batch:
        """Samples without batch axis as one batch. A field is None where it is None in the first sample."""
        first = samples[0]
        held = [f.name for f in fields(first) if getattr(first, f.name) is not None]
        return replace(first, **{name: torch.stack([getattr(s, name) for s in samples]) for name in held})

    @classmethod
    def concatenate(cls: type[Batch], batches: Sequence[Batch]) -> Batch:
        """Batches one after the other along the batch axis."""
        first = batches[0]
        held = [f.name for f in fields(first) if getattr(first, f.name) is not None]
        return replace(first, **{name: torch.cat([getattr(b, name) for b in batches]) for name in held})


@dataclass(frozen=True)
class References(TensorBatch):
    """K reference frames of B identities. Images RGB in [-1, 1], sketches in [0, 1]."""

    image: Tensor  # (B, K, 3, H, W)
    sketch: Tensor  # (B, K, 1, H, W)


@dataclass(frozen=True)
class FrameInputs(TensorBatch):
    """What steers the generator in one target frame of B clips. Images RGB in [-1, 1], sketches and masks in [0, 1].

    Flows are backward, in pixels, x before y: target pixel p is seen in the source at p + flow.
    """

    sketch: Tensor  # (B, 1, H, W) the target landmarks, drawn
    warp_image: Tensor  # (B, 3, H, W) the reference that is warped
    warp_sketch: Tensor  # (B, 1, H, W) its landmarks
    warp_flow: Tensor | None = None  # (B, 2, H, W) the mesh's flow to it; None: flows start from zero
    ani_image: Tensor | None = None  # (B, 3, H, W) the 3D projection image, -1 outside the face
    ani_sketch: Tensor | None = None  # (B, 1, H, W) the landmarks of the 3D projection image
    ani_mask: Tensor | None = None  # (B, 1, H, W) its soft opacity over the warped reference
    prev_image: Tensor | None = None  # (B, 3, H, W) the frame before; None: none there
    prev_sketch: Tensor | None = None  # (B, 1, H, W)
    prev_flow: Tensor | None = None  # (B, 2, H, W) the mesh's flow to it


@dataclass(frozen=True)
class FaceBatch(TensorBatch):
    """B training samples of T successive target frames and K references; time and reference axes are second.

    Ranges as in `FrameInputs`.
    """

    tgt_image: Tensor  # (B, T, 3, H, W) the truth
    tgt_sketch: Tensor  # (B, T, 1, H, W)
    ref_image: Tensor  # (B, K, 3, H, W)
    ref_sketch: Tensor  # (B, K, 1, H, W)
    warp_image: Tensor  # (B, T, 3, H, W)
    warp_sketch: Tensor  # (B, T, 1, H, W)
    face_box: Tensor  # (B, T, 4) x0, y0, x1, y1 of the face, pixels
    mouth_box: Tensor  # (B, T, 4) of the mouth
    template: Tensor  # (B, T, 1, H, W) 1 in the boxes about eyes and mouth (the data contract's mask), else 0
    warp_flow: Tensor | None = None  # (B, T, 2, H, W)
    ani_image: Tensor | None = None  # (B, T, 3, H, W)
    ani_sketch: Tensor | None = None  # (B, T, 1, H, W)
    ani_mask: Tensor | None = None  # (B, T, 1, H, W)

    @property
    def n_frames(self) -> int:
        """T."""
        return self.tgt_image.shape[1]

    @property
    def references(self) -> References:
        """The K reference frames."""
        return References(self.ref_image, self.ref_sketch)

    def frame(self, t: int) -> FrameInputs:
        """The inputs of target frame t, without a previous frame."""
        one = lambda x: None if x is None else x[:, t]  # noqa: E731
        return FrameInputs(
            sketch=self.tgt_sketch[:, t],
            warp_image=self.warp_image[:, t],
            warp_sketch=self.warp_sketch[:, t],
            warp_flow=one(self.warp_flow),
            ani_image=one(self.ani_image),
            ani_sketch=one(self.ani_sketch),
            ani_mask=one(self.ani_mask),
        )


@dataclass(frozen=True)
class Synthesis:
    """One frame that a generator made for B samples, and what it was made of. Images RGB in [-1, 1].

    The dictionaries are keyed by source: "ref", "ani", "prev"; a source that is not used is not in them.
    """

    image: Tensor  # (B, 3, H, W) the frame
    raw: Tensor | None = None  # (B, 3, H, W) the image before composition
    ani_composed: Tensor | None = None  # (B, 3, H, W) linear composition after its first step
    warped: dict[str, Tensor] = field(default_factory=dict)  # (B, 3, H, W) each
    flow: dict[str, Tensor] = field(default_factory=dict)  # (B, 2, H, W) backward, pixels
    weight: dict[str, Tensor] = field(
        default_factory=dict
    )  # (B, 1, H, W); near 1: not taken from this source
    attention: Tensor | None = None  # (B, K, h, w) over the references, sums to 1 over K
