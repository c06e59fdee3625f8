"""Fine-tuning samples (--finetune): frames of the reference's clip, each to be made from another of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.signal import savgol_filter

from data.face_sample import GeometryStage, mirror
from face.crop import extract, to_crop
from face.expression_basis import ExpressionBasis
from face.landmarks68 import to_landmarks68
from face.part_boxes import face_boxes, mouth_boxes, template_masks
from face.pose import fit_pose, to_canonical
from face.reference import HALF_PIXEL, Reference, ReferenceFace
from face.sketch import sketch_maps
from face.tracker import track_frames
from util.batch import FaceBatch
from util.image import is_image
from util.video import read_frames

FIRST_FRAMES = 64  # of a clip, over which up to so many frames are spread; more are taken one after the other
PHOTO_VARIANTS = 16  # of a single face, which can only be its own target
GAIN, BIAS = 0.1, 0.04  # change of light in them: factor, and added (of 1)
STEADY = 5  # frames: target clips of a demo are smoothed likewise (models/driving.py)


def clip_faces(path: Path, n_faces: int, reference: Reference, basis: ExpressionBasis) -> list[ReferenceFace]:
    """Frames 0, s, 2s, ... (s = 64 // n_faces, at least 1) of the reference's clip, as far as it has them.

    All are cut out where `reference.ani` is, as synthesised frames are. Frames without a face, or with the face partly
    outside of that square, are left out. A picture gives its one face, as does a clip of which nothing is left.
    With up to 64 faces all lie in the first 64 frames: a clip that is re-made from itself is new after those only.
    Raises UserError where fewer than half of the frames show a face.
    """
    ani, flag = reference.ani, "--ref_video_path"
    if is_image(path):
        return [ani]
    size, stride = ani.image.shape[0], max(FIRST_FRAMES // n_faces, 1)
    crops: list[np.ndarray] = []

    def frames() -> Iterator[np.ndarray]:
        height, width = reference.source.shape[:2]
        for k, frame in zip(range((n_faces - 1) * stride + 1), read_frames(path, flag), strict=False):
            if frame.shape != reference.source.shape:  # a large picture was reduced
                frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
            if k % stride == 0:
                crops.append(extract(frame, ani.box, size))
            yield frame

    track = track_frames(frames(), f"{flag} {path}")
    vertices = (to_crop(track.vertices, ani.box, size) - HALF_PIXEL).astype(np.float32)
    if len(vertices) >= STEADY:
        vertices = savgol_filter(vertices, STEADY, 2, axis=0).astype(np.float32)
    inside = ((vertices[..., :2] >= 0) & (vertices[..., :2] <= size - 1)).all((1, 2)) & track.seen
    pose = fit_pose(vertices, basis.template)
    canonical, angles, scores = to_canonical(vertices, pose), pose.angles_deg, track.blendshapes
    made = [
        ReferenceFace(image, vertices[k], canonical[k], pose[k : k + 1], scores[k], ani.box, angles[k])
        for k, image in zip(range(0, len(track), stride), crops, strict=True)
        if inside[k]
    ]
    return made or [ani]


class ReferenceSamples(Sequence[FaceBatch]):
    """Every ordered pair of N faces as (warped reference, target): N (N - 1) samples without batch axis, T = 1.

    A single face is its own target, in PHOTO_VARIANTS changes of light, half of them mirrored. What the generator is
    given is what `models.fewshot.FewShotFrames` gives it for a clip re-made from its own frame. Samples are made when
    asked for, always the same for an index, on the CPU.
    """

    def __init__(
        self,
        faces: Sequence[ReferenceFace],
        n_shot: int,
        stage: GeometryStage,
        open_mouth: ReferenceFace,
        crop_ref: bool = False,
    ) -> None:
        """faces: N, of one size and crop. n_shot: K references, the warped one among them, never the target unless
        it is alone. stage: projects the faces. open_mouth: the face whose mouth interior is shown. crop_ref: images to
        be warped come with eyes and mouth blanked."""
        self._faces, self._n_shot, self._stage, self._open_mouth = faces, n_shot, stage, open_mouth
        self._crop_ref = crop_ref

    def __len__(self) -> int:
        n = len(self._faces)
        return n * (n - 1) or PHOTO_VARIANTS

    def __getitem__(self, index: int) -> FaceBatch:
        """Sample `index`. Raises IndexError behind the last."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        rng = np.random.default_rng(index)
        if len(self._faces) == 1:
            batch = _relit(self._sample(0, 0, [0] * self._n_shot), rng)
            return mirror(batch) if index % 2 else batch
        warped, target = divmod(index, len(self._faces) - 1)
        target += target >= warped
        others = [k for k in range(len(self._faces)) if k not in (warped, target)] or [warped]
        drawn = rng.choice(others, self._n_shot - 1, replace=len(others) < self._n_shot - 1)
        return self._sample(warped, target, rng.permutation([warped, *drawn]).tolist())

    def _sample(self, warped: int, target: int, references: Sequence[int]) -> FaceBatch:
        source, goal = self._faces[warped], self._faces[target]
        used = [*(self._faces[k] for k in references), source, goal]
        landmarks = to_landmarks68(np.stack([f.vertices for f in used]))
        pictures = np.stack([f.image for f in used])
        images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
        size = images.shape[-1]
        sketches = sketch_maps(landmarks, size)
        templates = template_masks(landmarks[-2:], size)  # of the warped face and the target
        blank = (templates > 0) & self._crop_ref
        made = self._stage(warped, lambda: (source, self._open_mouth), goal.canonical[None], goal.pose)
        return FaceBatch(
            tgt_image=images[-1:],
            tgt_sketch=sketches[-1:],
            ref_image=images[:-2],
            ref_sketch=sketches[:-2],
            warp_image=images[-2:-1].masked_fill(blank[:1], -1),
            warp_sketch=sketches[-2:-1],
            face_box=face_boxes(landmarks[-1:], size),
            mouth_box=mouth_boxes(landmarks[-1:], size),
            template=templates[1:],
            warp_flow=made.flow,
            ani_image=(made.ani * 2 - 1).masked_fill(~made.ani.any(1, keepdim=True) | blank[1:], -1),
            ani_sketch=sketches[-1:],
            ani_mask=made.opacity.clone(),
        )


def _relit(batch: FaceBatch, rng: np.random.Generator) -> FaceBatch:
    """All images in another light."""
    gain, bias = 1 + rng.uniform(-GAIN, GAIN), 2 * rng.uniform(-BIAS, BIAS)
    images = {
        name: ((getattr(batch, name) + 1) * gain - 1 + bias).clamp(-1, 1)
        for name in ("tgt_image", "ref_image", "warp_image", "ani_image")
    }
    for name in ("warp_image", "ani_image"):  # what is blank stays so
        images[name].masked_fill_((getattr(batch, name) == -1).all(-3, keepdim=True), -1)
    return replace(batch, **images)
