"""`--dataset_mode facefore_demo`: whole clips, slice after slice in order, with references of one's own choice.

Rules: ../shared/parity/rhm/README.md, section 8, "Demo": the warped reference is, frame by frame, the one turned least
differently; nothing is changed in look or mirrored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from data.clip_samples import ClipSamples, check_mesh, clips_geometry
from data.face_sample import GeometryStage, Look, SampleFrames, plain_sample, staged, with_ani
from data.frame_choice import SamplePlan, reference_end, turn_between
from data.open_clips import PreparedClips
from data.prepared_clip import PreparedClip
from face.contract_pose import frontal_key_frame
from face.part_boxes import template_masks
from face.pose import to_canonical
from face.sketch import sketch_maps
from util.batch import FaceBatch
from util.errors import UserError, remark


class FaceForeDemoDataset(ClipSamples):
    """FaceBatch samples without batch axis: item k is the k-th slice of T frames of all clips, one after the other.

    Slices don't overlap, but for a clip's last one, which ends with the clip: all have T frames.
    """

    def __init__(
        self,
        source: PreparedClips,
        plan: SamplePlan,
        stage: GeometryStage | None = None,
        size: int | None = None,
        cache: Path | None = None,
        ref_img_id: Sequence[int] | None = None,
        ref_ani_id: int | None = None,
        reference: int | None = None,
    ) -> None:
        """Of `plan` count n_shot, n_frames, ref_ratio, crop_ref and geometry. stage, size, cache: as FaceForeDataset.

        ref_img_id: frames of the reference's video (one that shows no face: the nearest that does); by default
        n_shot of them, evenly spread over the first part of the clip. ref_ani_id: the one that gives the 3D face, by
        default the one turned least. reference: the clip whose face is shown; by default each clip shows its own.
        Raises UserError if no clip is usable.
        """
        geometry = clips_geometry(source, plan.geometry, stage is not None)
        if geometry == "video" and reference is not None:
            geometry = "none"  # a clip's 3D video shows its own face
        super().__init__(source, geometry, stage, size, cache)
        self.plan = plan
        self._frames, self._ani_frame, self._reference = ref_img_id, ref_ani_id, reference
        self.set_epoch(0, plan.n_frames)

    def set_epoch(self, epoch: int, n_frames: int | None = None) -> None:
        """All epochs are the same; n_frames: another length of the slices. Raises UserError if no clip is as long."""
        if n_frames is None:
            return
        self.plan = replace(self.plan, n_frames=n_frames)
        frames = self.source.records.frames
        n_slices = np.where(frames >= n_frames, -(-frames // n_frames), 0)
        self._ends = np.cumsum(n_slices)
        if not len(frames) or not self._ends[-1]:
            raise UserError(f"--n_frames_G {n_frames}: none of {len(frames)} clips is as long; choose less")
        if lost := int((n_slices == 0).sum()):
            remark(f"{lost} clips are shorter than {n_frames} frames; they are left out")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def place(self, index: int) -> tuple[int, int]:
        """Clip and first frame (counted among those that show a face) of item `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        k = int(np.searchsorted(self._ends, index, "right"))
        start = (index - int(self._ends[k - 1] if k else 0)) * self.plan.n_frames
        last = len(self._clips[k]) - self.plan.n_frames
        if last < 0:
            raise UserError(
                f"{self._clips[k].files.video}: fewer than {self.plan.n_frames} frames show a face"
            )
        return k, min(start, last)

    def _sample(self, index: int) -> FaceBatch:
        k, start = self.place(index)
        target = self._clips[k]
        shown = target if self._reference is None else self._clips[self._reference]
        references = self._references(shown)
        targets = np.arange(start, start + self.plan.n_frames)
        warped = [int(turn_between(shown.rt, references, target.rt[t, :3]).argmin()) for t in targets]
        frames, look = SampleFrames(references, targets, warped), Look()
        batch = plain_sample(target, shown, frames, look, self.plan.crop_ref)
        if self.geometry == "mesh":
            return self._with_mesh(batch, target, shown, frames)
        if self.geometry == "video":
            landmarks = target.ani_landmarks(targets)
            if self._ani_frame is not None and not target.has_mesh:
                landmarks = target.posed(target.front([self._ani(target)])[0], targets)
            return with_ani(batch, target.ani_pictures(targets), landmarks, look, self.plan.crop_ref)
        return batch

    def _with_mesh(
        self, batch: FaceBatch, target: PreparedClip, shown: PreparedClip, frames: SampleFrames
    ) -> FaceBatch:
        """Another person's face is rigid: what a face does is not carried over to it here (TalkingHead does that)."""
        check_mesh(target, shown)
        ani, targets = self._ani(shown), np.asarray(frames.targets)
        references, pose = np.asarray(frames.references), target.pose[targets]
        opened = int(references[shown.opening[references].argmax()])
        if shown is target:
            meshes, landmarks = to_canonical(target.vertices(targets), pose), target.landmarks[targets]
        else:
            own = to_canonical(shown.vertices([ani]), shown.pose[[ani]])
            meshes, landmarks = np.repeat(own, len(targets), 0), target.posed(shown.front([ani])[0], targets)
        made = staged(self._stage, shown, ani, opened, meshes, pose)
        flow = torch.empty_like(made.flow)
        for w in sorted(set(frames.warped)):
            at = np.flatnonzero(np.asarray(frames.warped) == w)
            flow[at] = staged(self._stage, shown, int(references[w]), opened, meshes[at], pose[at]).flow
        outside = ~made.ani.any(1, keepdim=True)
        if self.plan.crop_ref:
            outside = outside | (template_masks(landmarks, target.size) > 0)
        return replace(
            batch,
            warp_flow=flow,
            ani_image=(made.ani * 2 - 1).masked_fill(outside, -1),
            ani_sketch=sketch_maps(landmarks, target.size),
            ani_mask=made.opacity.clone(),
        )

    def _references(self, shown: PreparedClip) -> np.ndarray:
        """(K,) frames of the reference's clip, counted among those that show a face."""
        if self._frames is None:
            end = reference_end(len(shown), replace(self.plan, n_frames=1))
            return np.linspace(0, end - 1, self.plan.n_shot).round().astype(int)
        return np.array([_kept(shown, frame, "ref_img_id") for frame in self._frames])

    def _ani(self, shown: PreparedClip) -> int:
        """The frame that gives the 3D face, counted likewise."""
        if self._ani_frame is None:
            return frontal_key_frame(shown.rt)
        return _kept(shown, self._ani_frame, "ref_ani_id")


def _kept(clip: PreparedClip, frame: int, flag: str) -> int:
    """The frame that shows a face nearest to a frame of the video."""
    if not 0 <= frame <= clip.number[-1]:
        raise UserError(
            f"--{flag} {frame}: {clip.files.video} has {clip.number[-1] + 1} frames; choose another"
        )
    return int(np.abs(clip.number - frame).argmin())
