"""A training sample as tensors: pictures, sketches, and what the 3D face knows about the target frames."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from data.frame_choice import Choice
from data.prepared_clip import PreparedClip
from face.crop import CropBox
from face.part_boxes import face_boxes, mouth_boxes, template_masks
from face.pose import Pose, to_canonical
from face.reference import ReferenceFace
from face.sketch import sketch_maps
from util.batch import FaceBatch

GAIN, TINT, BIAS = 0.1, 0.03, 0.04  # photometric jitter: of all channels, of each, and added (of 1)
_LEVELS = np.arange(256, dtype=np.float32) / np.float32(127.5) - 1
ANI_LEVEL = 10  # of 255: below it, in all channels, a 3D projection image shows no face


class Geometry(Protocol):
    """What a stage gives for T target frames."""

    ani: Tensor  # (T, 3, S, S) RGB in [0, 1], black outside the face
    opacity: Tensor  # (T, 1, S, S) soft, in [0, 1]
    flow: Tensor  # (T, 2, S, S) backward flow to the reference, pixels


class GeometryStage(Protocol):
    """models/geometry_stage.py; handed in, because data doesn't import models."""

    def __call__(
        self,
        key: Hashable,
        faces: Callable[[], tuple[ReferenceFace, ReferenceFace]],
        canonical: np.ndarray,
        pose: Pose,
    ) -> Geometry: ...


@dataclass(frozen=True)
class Look:
    """One change of light and colour for all images of a sample, and whether a mirror shows it."""

    gain: tuple[float, ...] = (1.0, 1.0, 1.0)
    bias: float = 0.0
    mirrored: bool = False

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Look:
        gain = (1 + rng.uniform(-GAIN, GAIN)) * (1 + rng.uniform(-TINT, TINT, 3))
        return cls(tuple(gain.tolist()), 2 * rng.uniform(-BIAS, BIAS), bool(rng.random() < 0.5))

    def of_bytes(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """N pictures (S, S, 3) uint8: (N, 3, S, S) in [-1, 1]. By table: torch takes four times as long."""
        gain = np.array(self.gain, np.float32)[:, None]
        tables = np.clip(_LEVELS * gain + (gain - 1 + np.float32(self.bias)), -1, 1)
        height, width = pictures[0].shape[:2]
        out = np.empty((len(pictures), 3, height, width), np.float32)
        channels = [np.empty((height, width), np.uint8) for _ in range(3)]
        for planes, picture in zip(out, pictures, strict=True):
            cv2.split(cv2.flip(picture, 1) if self.mirrored else picture, channels)
            for plane, channel, table in zip(planes, channels, tables, strict=True):
                cv2.LUT(channel, table, dst=plane)
        return torch.from_numpy(out)

    def light(self, images: Tensor) -> Tensor:
        """Images (..., 3, H, W) in [-1, 1] in this light."""
        gain = images.new_tensor(self.gain)[:, None, None]
        return (images * gain).add_(gain - 1 + self.bias).clamp_(-1, 1)

    def turned(self, maps: Tensor) -> Tensor:
        """Maps (..., H, W), mirrored if so."""
        return maps.flip(-1) if self.mirrored else maps

    def boxes(self, boxes: Tensor, size: int) -> Tensor:
        """Boxes (..., 4) x0, y0, x1, y1 in a picture of this size, mirrored if so."""
        return mirrored_boxes(boxes, size) if self.mirrored else boxes


class SampleFrames(NamedTuple):
    """Frames of a sample, counted within their prepared clips."""

    references: Sequence[int]  # K
    targets: Sequence[int]  # T
    warped: Sequence[int]  # T: which of the references is warped for each target, 0 to K - 1


def plain_sample(
    target: PreparedClip, shown: PreparedClip, frames: SampleFrames, look: Look, crop_ref: bool
) -> FaceBatch:
    """The sample without its 3D face. target, shown: the clips of targets and references, which may be one.

    crop_ref: eyes and mouth of the images that are warped are blank.
    """
    targets, references, warped = list(frames.targets), list(frames.references), list(frames.warped)
    k, size = len(references), target.size
    if target is shown:
        pictures = shown.pictures([*references, *targets])
    else:
        pictures = [*shown.pictures(references), *target.pictures(targets)]
    landmarks, goal = shown.landmarks[references], target.landmarks[targets]
    images = look.of_bytes(pictures)
    sketches = sketch_maps(np.concatenate([landmarks, goal]), size, look.mirrored)
    at = warped if len(warped) > 1 else slice(warped[0], warped[0] + 1)  # one is not copied
    warp_image = images[at]
    if crop_ref:
        warp_image = blanked(warp_image, look.turned(template_masks(landmarks[warped], size)) > 0)
    return FaceBatch(
        tgt_image=images[k:],
        tgt_sketch=sketches[k:],
        ref_image=images[:k],
        ref_sketch=sketches[:k],
        warp_image=warp_image,
        warp_sketch=sketches[at],
        face_box=look.boxes(face_boxes(goal, size), size),
        mouth_box=look.boxes(mouth_boxes(goal, size), size),
        template=look.turned(template_masks(goal, size)),
    )


def with_mesh(
    batch: FaceBatch, clip: PreparedClip, choice: Choice, stage: GeometryStage, look: Look, crop_ref: bool
) -> FaceBatch:
    """The sample with flow and 3D projection image by the clip's meshes."""
    targets = list(choice.targets)
    pose = clip.pose[targets]
    made = staged(
        stage, clip, choice.warped, choice.open_mouth, to_canonical(clip.vertices(targets), pose), pose
    )
    ani = look.turned(made.ani)
    outside = ~ani.any(1, keepdim=True)
    if crop_ref:
        outside = outside | (batch.template > 0)
    flow = look.turned(made.flow)
    if look.mirrored:
        flow.select(-3, 0).neg_()
    # At depth 1 the projected mesh is the target's: so are its landmarks.
    return replace(
        batch,
        warp_flow=flow,
        ani_image=blanked(look.light(ani * 2 - 1), outside),
        ani_sketch=batch.tgt_sketch,
        ani_mask=look.turned(made.opacity).clone(),
    )


def blanked(images: Tensor, where: Tensor) -> Tensor:
    """Images (N, 3, S, S) in [-1, 1] with -1 where (N, 1, S, S) bool says so; masked_fill takes ten times as long."""
    return torch.minimum(images, 1 - 2 * where.to(images.dtype))


def staged(
    stage: GeometryStage, shown: PreparedClip, frame: int, open_mouth: int, canonical: np.ndarray, pose: Pose
) -> Geometry:
    """The face of a clip's frame in T target frames: meshes (T, 478, 3) in face units, and their poses."""
    key = (shown.files.video, shown.size, frame, open_mouth)
    return stage(
        key, lambda: (reference_face(shown, frame), reference_face(shown, open_mouth)), canonical, pose
    )


def with_video(
    batch: FaceBatch, clip: PreparedClip, targets: Sequence[int], look: Look, crop_ref: bool
) -> FaceBatch:
    """The sample with the 3D projection image out of its video; no flow is known."""
    sketch = batch.tgt_sketch if clip.has_mesh else None  # ours show the frame's own expression
    return with_ani(batch, clip.ani_pictures(targets), clip.ani_landmarks(targets), look, crop_ref, sketch)


def with_ani(
    batch: FaceBatch,
    pictures: Sequence[np.ndarray],
    landmarks: np.ndarray,
    look: Look,
    crop_ref: bool,
    sketch: Tensor | None = None,
) -> FaceBatch:
    """The sample with these T 3D projection images (S, S, 3) uint8 of faces with landmarks (T, 68, 3).

    sketch: (T, 1, S, S) the landmarks, drawn in this look, where that was done already.
    """
    size = pictures[0].shape[0]
    brightest = [cv2.max(cv2.max(red, green), blue) for red, green, blue in map(cv2.split, pictures)]
    shown = look.turned(torch.from_numpy(np.stack(brightest)[:, None] >= ANI_LEVEL))
    outside = ~shown
    if crop_ref:
        outside = outside | (look.turned(template_masks(landmarks, size)) > 0)
    return replace(
        batch,
        ani_image=blanked(look.of_bytes(pictures), outside),
        ani_sketch=sketch_maps(landmarks, size, look.mirrored) if sketch is None else sketch,
        ani_mask=shown.float(),
    )


def reference_face(clip: PreparedClip, frame: int) -> ReferenceFace:
    """A frame of a clip with a track of ours as the reference of the geometric generator."""
    image, vertices, pose = clip.pictures([frame])[0], clip.vertices([frame]), clip.pose[[frame]]
    return ReferenceFace(
        image=image,
        vertices=vertices[0],
        canonical=to_canonical(vertices, pose)[0],
        pose=pose,
        blendshapes=clip.blendshapes([frame])[0],
        box=CropBox(0.0, 0.0, float(image.shape[0])),
        seen_angles=clip.angles[frame],
    )


def mirror(batch: FaceBatch) -> FaceBatch:
    """The sample, or batch, as a mirror shows it; what is None stays so."""
    size = batch.tgt_image.shape[-1]
    boxes = {name: mirrored_boxes(getattr(batch, name), size) for name in ("face_box", "mouth_box")}
    mirrored = batch.map(lambda t: t.flip(-1))
    if mirrored.warp_flow is not None:
        mirrored.warp_flow.select(-3, 0).neg_()
    return replace(mirrored, **boxes)


def mirrored_boxes(boxes: Tensor, size: int) -> Tensor:
    """Boxes (..., 4) x0, y0, x1, y1 in a picture of this size, as a mirror shows them."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack([size - x1, y0, size - x0, y1], -1)
