"""The learnt generator (`--netG fewshot`) in the pipeline: references encoded once, then frame after frame."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from face.landmarks68 import to_landmarks68
from face.part_boxes import template_masks
from face.reference import Reference
from face.sketch import sketch_maps
from models.generator import FewShotGenerator
from models.generator_config import FORMAT, GeneratorConfig
from models.geometric import Projection
from models.mesh_flow import previous_flow
from util.batch import FrameInputs, References, Synthesis
from util.checkpoints import checkpoint_path, load_tensors
from util.errors import UserError

SHIPPED = "generator.safetensors"
IMPORTED = "upstream_G.safetensors"  # public weights, from scripts/import_upstream.py


class FrameSynthesiser(Protocol):
    """A network that makes frames: ours, or the public one (models/upstream/)."""

    config: GeneratorConfig

    def encode(self, references: References) -> Any:
        """What depends on the references alone."""

    def synthesise(self, identity: Any, inputs: FrameInputs) -> Synthesis:
        """Frames of B inputs."""


def load_generator(path: str | Path, flag: str = "--name", device: str = "cpu") -> FewShotGenerator:
    """A generator in evaluation mode from a checkpoint that training wrote.

    Raises UserError in one line where the file is missing, damaged, a pickle, or of another network.
    """
    tensors, note = load_tensors(path, flag)
    if note.get("format") != FORMAT:
        raise UserError(f"{flag} {path}: holds {note.get('format', 'something else')}; a generator is needed")
    config = GeneratorConfig.from_json_dict(note.get("config"), f"{flag} {path}")
    with torch.device("meta"):
        generator = FewShotGenerator(config)
    needed = {name: tuple(t.shape) for name, t in generator.state_dict().items()}
    if needed != {name: tuple(t.shape) for name, t in tensors.items()}:
        load_tensors(path, flag, needed)  # says what differs
    generator.load_state_dict(tensors, assign=True)
    return generator.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def generator_path(name: str, which_epoch: str) -> Path | None:
    """The generator of a run under checkpoints/NAME/: trained, else imported; None where there is no such run."""
    folder = checkpoint_path(name)
    trained, imported = folder / f"{which_epoch}_G.safetensors", folder / IMPORTED
    if imported.is_file() and not trained.is_file():
        return imported
    return trained if folder.is_dir() else None


@dataclass(frozen=True)
class MadeFrame:
    """What the frame after it looks back to."""

    image: Tensor  # (1, 3, S, S) in [-1, 1]
    sketch: Tensor  # (1, 1, S, S)
    flow: Tensor  # (1, 2, S, S) pixels, to the reference


class FewShotFrames:
    """Makes the frames of one identity, in order: a temporal generator sees the frame before."""

    def __init__(self, generator: FrameSynthesiser, reference: Reference, device: str = "cpu") -> None:
        """The references are encoded here, once."""
        self.generator, self._device = generator, device
        ani = reference.ani
        self._warp_image, self._warp_sketch = _picture(ani.image, ani.vertices, device)
        if generator.config.crop_ref:
            self._warp_image = self._warp_image.masked_fill(self._blank(ani.vertices)[0], -1)
        pictures = [_picture(face.image, face.vertices, device) for face in reference.faces]
        references = References(*(torch.stack(x)[None] for x in zip(*pictures, strict=True)))
        with torch.inference_mode():
            self._identity = generator.encode(references)
        self._before: MadeFrame | None = None

    @torch.inference_mode()
    def __call__(self, shown: Projection, vertices: np.ndarray) -> Tensor:
        """Frames (B, 3, S, S) in [0, 1]; vertices (B, 478, 3): the target meshes, pixels of the crop."""
        inputs = self.inputs(shown, vertices)
        if not self.generator.config.temporal:
            return self._image(inputs)
        return torch.cat([self._next(inputs.map(lambda t, k=k: t[k : k + 1])) for k in range(len(vertices))])

    def inputs(self, shown: Projection, vertices: np.ndarray) -> FrameInputs:
        """What the generator is given for B frames."""
        batch, size = len(vertices), self._warp_image.shape[-1]
        sketch = sketch_maps(to_landmarks68(vertices), size).to(self._device)
        outside = ~shown.ani.any(1, keepdim=True)
        if self.generator.config.crop_ref:
            outside = outside | self._blank(vertices)
        return FrameInputs(
            sketch=sketch,
            warp_image=self._warp_image.expand(batch, -1, -1, -1),
            warp_sketch=self._warp_sketch.expand(batch, -1, -1, -1),
            warp_flow=shown.flow,
            ani_image=(shown.ani * 2 - 1).masked_fill(outside, -1),
            ani_sketch=sketch,
            ani_mask=shown.opacity,
        )

    def _blank(self, vertices: np.ndarray) -> Tensor:
        """(B, 1, S, S) bool: about eyes and mouth of meshes (478, 3) or (B, 478, 3)."""
        landmarks = to_landmarks68(vertices.reshape(-1, *vertices.shape[-2:]))
        return template_masks(landmarks, self._warp_image.shape[-1]).to(self._device) > 0

    def _image(self, inputs: FrameInputs) -> Tensor:
        return (self.generator.synthesise(self._identity, inputs).image + 1) / 2

    def _next(self, inputs: FrameInputs) -> Tensor:
        """One frame after the one made last."""
        if (before := self._before) is not None:
            flow = previous_flow(inputs.warp_flow, before.flow)
            inputs = replace(inputs, prev_image=before.image, prev_sketch=before.sketch, prev_flow=flow)
        image = self._image(inputs)
        self._before = MadeFrame(image * 2 - 1, inputs.sketch, inputs.warp_flow)
        return image


def _picture(image: np.ndarray, vertices: np.ndarray, device: str) -> tuple[Tensor, Tensor]:
    """A face's image (3, S, S) in [-1, 1] and its sketch (1, S, S) in [0, 1]."""
    pixels = torch.tensor(image, device=device).permute(2, 0, 1).float() / 127.5 - 1
    return pixels, sketch_maps(to_landmarks68(vertices[None]), image.shape[0])[0].to(device)
