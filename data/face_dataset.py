"""Training samples: target frames of a clip, references from its beginning, and what the 3D face knows about them.

Selection rules: ../shared/parity/rhm/README.md, section 8, "Reference choice" and "Warp reference", with one change:
the reference that is warped is one of a few anchor frames per clip, so that what depends on it alone can be kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.clip_store import StoredClip
from face.crop import CropBox
from face.landmarks68 import to_landmarks68
from face.part_boxes import face_boxes, mouth_boxes, template_masks
from face.pose import Pose, to_canonical
from face.reference import ReferenceFace
from face.sketch import sketch_maps
from util.batch import FaceBatch
from util.errors import UserError, remark

N_ANCHORS = 4  # frames of a clip that may be warped: what depends on them alone is kept, 2.8 MB each
OPEN_MOUTH_PROB = 0.4  # how often --find_largest_mouth takes the references with the mouth most open
OTHER_MOUTH_PROB = 0.5  # how often the mouth's inside is that of the reference with the mouth most open
GAIN, TINT, BIAS = 0.1, 0.03, 0.04  # photometric jitter: of all channels, of each, and added (of 1)


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
class SamplePlan:
    """How samples are drawn."""

    n_shot: int = 1
    n_frames: int = 1  # T successive target frames
    ref_ratio: float = 0.25
    worst_ref_prob: float = 0.75
    find_largest_mouth: bool = False
    crop_ref: bool = False
    augment: bool = True  # mirror half of the samples, and change light and colour a little
    serial: bool = False
    epoch_samples: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Choice:
    """The frames of one sample, counted within the store's clip."""

    clip: int
    references: tuple[int, ...]  # K
    warped: int  # one of them
    targets: tuple[int, ...]  # T successive frames
    open_mouth: int  # whose mouth interior is shown


class FaceDataset(Dataset):
    """FaceBatch samples without batch axis. Sample i of an epoch depends on (seed, epoch, i) alone.

    Each reader process has its own copy: an epoch set here counts for those that start later.
    """

    def __init__(
        self, clips: Sequence[StoredClip], plan: SamplePlan, stage: GeometryStage | None = None
    ) -> None:
        """stage: without it the samples have no geometry (warp_flow, ani_*). Raises UserError if no clip is usable."""
        self._all, self._stage = list(clips), stage
        self.plan = plan
        self.set_epoch(0, plan.n_frames)

    def set_epoch(self, epoch: int, n_frames: int | None = None) -> None:
        """Go to another epoch (from 0), and to time slices of another length if one is given.

        Clips without so many successive frames beside a reference are left out, with a remark.
        """
        self._epoch = epoch
        if n_frames is None:
            return
        self.plan = replace(self.plan, n_frames=n_frames)
        self.clips = [c for c in self._all if len(self._starts(c))]
        if not self.clips:
            raise UserError(
                f"--n_frames_G {n_frames}: none of {len(self._all)} clips has so many frames; choose less"
            )
        if lost := len(self._all) - len(self.clips):
            remark(f"{lost} clips are shorter than {n_frames} frames and a reference; they are left out")
        share = sampling_weights([c.identity for c in self.clips], [len(c) for c in self.clips])
        self._cumulative = np.cumsum(share)

    def __len__(self) -> int:
        return self.plan.epoch_samples or len(self.clips)

    def __getitem__(self, index: int) -> FaceBatch:
        """Sample `index`, on the CPU. Raises IndexError behind the last, UserError for a damaged frame."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        rng = np.random.default_rng([self.plan.seed, self._epoch, index])
        choice = self.choose(index, rng)
        light = _Light.draw(rng) if self.plan.augment else _Light()
        mirrored = self.plan.augment and rng.random() < 0.5
        return self._sample(self.clips[choice.clip], choice, light, mirrored)

    def choose(self, index: int, rng: np.random.Generator) -> Choice:
        """Draw the frames of sample `index`."""
        plan = self.plan
        number = self._clip_number(index, rng)
        clip = self.clips[number]
        first = int(rng.choice(self._starts(clip)))
        targets = tuple(range(first, first + plan.n_frames))
        end = self._reference_end(clip)
        anchors = np.unique(np.linspace(0, end - 1, N_ANCHORS).round().astype(int))
        drawn = rng.permutation(anchors)[: plan.n_shot]
        away = np.abs(clip.angles[drawn] - clip.angles[list(targets)].mean(0)).mean(1)
        worst = rng.random() < plan.worst_ref_prob
        warped = int(drawn[away.argmax()] if worst else rng.choice(drawn))
        candidates = np.arange(end)
        if plan.find_largest_mouth and rng.random() < OPEN_MOUTH_PROB:
            candidates = np.argsort(-clip.lip_gap[:end], kind="stable")[: plan.n_shot * 8]
        others = candidates[candidates != warped]
        if len(others) < plan.n_shot - 1:
            others = rng.choice(end, plan.n_shot)  # too few: some come twice
        references = rng.permutation([warped, *rng.permutation(others)[: plan.n_shot - 1]])
        # A photo has no other frame that shows its teeth: half of the samples must do without one, too.
        shown = int(anchors[clip.lip_gap[anchors].argmax()]) if rng.random() < OTHER_MOUTH_PROB else warped
        return Choice(number, tuple(references.tolist()), warped, targets, shown)

    def _clip_number(self, index: int, rng: np.random.Generator) -> int:
        n = len(self.clips)
        if self.plan.serial:
            return index % n
        if not self.plan.epoch_samples:
            return int(np.random.default_rng([self.plan.seed, self._epoch]).permutation(n)[index])
        return min(int(np.searchsorted(self._cumulative, rng.random(), "right")), n - 1)

    def _reference_end(self, clip: StoredClip) -> int:
        """References are the frames before this one: the clip's first part, but at least one target follows it."""
        first_part = len(clip) - int((1 - self.plan.ref_ratio) * len(clip))
        return max(min(max(first_part, self.plan.n_shot), len(clip) - self.plan.n_frames), 1)

    def _starts(self, clip: StoredClip) -> np.ndarray:
        """Frames behind the references at which T frames without a gap begin; if there are none, any such frames."""
        span = self.plan.n_frames - 1
        starts = np.flatnonzero(clip.number[span:] - clip.number[: max(len(clip) - span, 0)] == span)
        behind = starts[starts >= self._reference_end(clip)]
        return behind if len(behind) else starts

    def _sample(self, clip: StoredClip, choice: Choice, light: _Light, mirrored: bool) -> FaceBatch:
        frames, k = [*choice.references, *choice.targets], len(choice.references)
        pictures, vertices = clip.images(frames), clip.vertices(frames)
        size = pictures.shape[1]
        landmarks = to_landmarks68(vertices)
        images = light.of_bytes(pictures)
        sketches = sketch_maps(landmarks, size)
        templates = template_masks(landmarks, size)
        n, w = len(choice.targets), choice.references.index(choice.warped)
        warped = images[w].masked_fill(templates[w] > 0, -1) if self.plan.crop_ref else images[w]
        batch = FaceBatch(
            tgt_image=images[k:],
            tgt_sketch=sketches[k:],
            ref_image=images[:k],
            ref_sketch=sketches[:k],
            warp_image=warped.expand(n, -1, -1, -1),
            warp_sketch=sketches[w].expand(n, -1, -1, -1),
            face_box=face_boxes(landmarks[k:], size),
            mouth_box=mouth_boxes(landmarks[k:], size),
            template=templates[k:],
        )
        if self._stage is not None:
            batch = self._with_geometry(batch, clip, choice, vertices[k:], light)
        return mirror(batch) if mirrored else batch

    def _with_geometry(
        self, batch: FaceBatch, clip: StoredClip, choice: Choice, vertices: np.ndarray, light: _Light
    ) -> FaceBatch:
        pose = clip.pose[list(choice.targets)]
        made = self._stage(
            (clip.path, choice.warped, choice.open_mouth),
            lambda: (reference_face(clip, choice.warped), reference_face(clip, choice.open_mouth)),
            to_canonical(vertices, pose),
            pose,
        )
        outside = ~made.ani.any(1, keepdim=True)
        if self.plan.crop_ref:
            outside = outside | (batch.template > 0)
        ani = light(made.ani * 2 - 1).masked_fill(outside, -1)
        # At depth 1 the projected mesh is the target's: so are its landmarks.
        geometry = {"warp_flow": made.flow, "ani_image": ani, "ani_mask": made.opacity.clone()}
        return replace(batch, **geometry, ani_sketch=batch.tgt_sketch)


@dataclass(frozen=True)
class _Light:
    """One change of light and colour for all images of a sample."""

    gain: tuple[float, ...] = (1.0, 1.0, 1.0)
    bias: float = 0.0

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Light:
        gain = (1 + rng.uniform(-GAIN, GAIN)) * (1 + rng.uniform(-TINT, TINT, 3))
        return cls(tuple(gain.tolist()), 2 * rng.uniform(-BIAS, BIAS))

    def of_bytes(self, pictures: np.ndarray) -> Tensor:
        """Pictures (N, S, S, 3) uint8 in this light: (N, 3, S, S) in [-1, 1]. By table, four times as fast as torch."""
        tables = self(torch.arange(256)[:, None].expand(-1, 3).T[..., None] / 127.5 - 1)[..., 0].numpy()
        out = np.empty((len(pictures), 3, *pictures.shape[1:3]), np.float32)
        for planes, picture in zip(out, pictures, strict=True):
            for c in range(3):
                cv2.LUT(cv2.extractChannel(picture, c), tables[c], dst=planes[c])
        return torch.from_numpy(out)

    def __call__(self, images: Tensor) -> Tensor:
        """Images (..., 3, H, W) in [-1, 1] in this light."""
        gain = images.new_tensor(self.gain)[:, None, None]
        return (images * gain).add_(gain - 1 + self.bias).clamp_(-1, 1)


def reference_face(clip: StoredClip, frame: int) -> ReferenceFace:
    """A stored frame as the reference of the geometric generator."""
    image, vertices, pose = clip.images([frame])[0], clip.vertices([frame]), clip.pose[[frame]]
    return ReferenceFace(
        image=image,
        vertices=vertices[0],
        canonical=to_canonical(vertices, pose)[0],
        pose=pose,
        blendshapes=clip.blendshapes([frame])[0],
        box=CropBox(0.0, 0.0, float(image.shape[0])),
        seen_angles=clip.angles[frame],
    )


def sampling_weights(identities: Sequence[str], n_frames: Sequence[int]) -> np.ndarray:
    """How often each clip is drawn, sum 1: identities by the square root of their frames, their clips by frames."""
    of_identity = Counter()
    for identity, n in zip(identities, n_frames, strict=True):
        of_identity[identity] += n
    weight = np.array([n / of_identity[i] ** 0.5 for i, n in zip(identities, n_frames, strict=True)])
    return weight / weight.sum()


def mirror(batch: FaceBatch) -> FaceBatch:
    """The sample, or batch, as a mirror shows it."""
    size = batch.tgt_image.shape[-1]
    boxes = {}
    for name in ("face_box", "mouth_box"):
        x0, y0, x1, y1 = getattr(batch, name).unbind(-1)
        boxes[name] = torch.stack([size - x1, y0, size - x0, y1], -1)
    mirrored = batch.map(lambda t: t.flip(-1))
    if mirrored.warp_flow is not None:
        mirrored.warp_flow.select(-3, 0).neg_()
    return replace(mirrored, **boxes)
