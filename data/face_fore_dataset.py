"""`--dataset_mode facefore`: training samples out of prepared clips, at random and each by its own number.

A sample is made of the frames that it needs; no clip is decoded as a whole, and none is opened before it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from data.clip_samples import ClipSamples, check_mesh, clips_geometry
from data.face_sample import (
    GeometryStage,
    Look,
    SampleFrames,
    plain_sample,
    with_mesh,
    with_video,
)
from data.frame_choice import SamplePlan, choose_frames
from data.open_clips import PreparedClips
from data.prepared_clip import PreparedClip
from util.batch import FaceBatch
from util.errors import UserError, remark


class FaceForeDataset(ClipSamples):
    """FaceBatch samples without batch axis. Sample i of an epoch depends on (seed, epoch, i) alone.

    A sample whose clip cannot be read is the one after it instead; `stand_ins` counts them. Each reader process has
    its own copy: an epoch set here counts for those that start later.
    """

    def __init__(
        self,
        source: PreparedClips,
        plan: SamplePlan,
        stage: GeometryStage | None = None,
        size: int | None = None,
        cache: Path | None = None,
    ) -> None:
        """stage: needed for `plan.geometry` "mesh". size: of the pictures; None: as they were prepared.

        cache: folder for copies of videos in which frames cannot be found quickly. The first clip decides what all
        samples have: flow and 3D image (mesh), 3D image only (video), or neither; a clip that lacks it is damaged.
        Raises UserError if no clip is usable.
        """
        geometry = clips_geometry(source, plan.geometry, stage is not None)
        super().__init__(source, geometry, stage, size, cache)
        self.plan, self._plan_told = plan, (-1, -1)
        self.set_epoch(0, plan.n_frames)

    def set_epoch(self, epoch: int, n_frames: int | None = None) -> None:
        """Go to another epoch (from 0), and to time slices of another length if one is given.

        Clips without so many successive frames beside the references are left out, with a remark.
        """
        self._epoch = epoch
        self.__dict__.pop("_clip_of", None)
        if n_frames is None:
            return
        self.plan = replace(self.plan, n_frames=n_frames)
        records = self.source.records
        long_enough = (records.runs >= n_frames) & (records.frames >= self.plan.least_frames)
        self.usable = np.flatnonzero(long_enough)
        if not len(self.usable):
            raise UserError(
                f"--n_frames_G {n_frames}: none of {len(records)} clips has so many frames in a row and "
                f"{self.plan.n_shot} for references; choose less"
            )
        if lost := len(records) - len(self.usable):
            remark(f"{lost} clips are shorter than {self.plan.least_frames} frames; they are left out")

    def __len__(self) -> int:
        return self.plan.epoch_samples or len(self.usable)

    def order(self) -> np.ndarray | None:
        """The order in which this epoch's samples are read cheaply; None: any will do."""
        told = (self._epoch, self.plan.n_frames)
        if told != self._plan_told:
            self._plan_told = told
            self._order = self.source.plan_epoch(
                self._clip_of, self.plan.seed, self._epoch, shuffle=not self.plan.serial
            )
        return self._order

    def clip(self, index: int) -> PreparedClip:
        """The clip of sample `index`. Raises UserError where it cannot be opened."""
        return self._clips[int(self._clip_of[index])]

    def _sample(self, index: int) -> FaceBatch:
        plan, clip = self.plan, self.clip(index)
        rng = np.random.default_rng([plan.seed, self._epoch, index])
        try:
            choice = choose_frames(clip, plan, self.has_flow, rng)
        except UserError as error:
            raise UserError(f"{clip.files.video}: {error}") from None
        look = Look.draw(rng) if plan.augment else Look()
        warped = [choice.references.index(choice.warped)] * len(choice.targets)
        frames = SampleFrames(choice.references, choice.targets, warped)
        batch = plain_sample(clip, clip, frames, look, plan.crop_ref)
        if self.geometry == "mesh":
            check_mesh(clip)
            batch = with_mesh(batch, clip, choice, self._stage, look, plan.crop_ref)
        elif self.geometry == "video":
            batch = with_video(batch, clip, choice.targets, look, plan.crop_ref)
        return batch

    @cached_property
    def _clip_of(self) -> np.ndarray:
        """(N,) the clip of each sample of this epoch."""
        n, plan = len(self.usable), self.plan
        if plan.serial:
            return self.usable[np.arange(len(self)) % n]
        rng = np.random.default_rng([plan.seed, self._epoch])
        if not plan.epoch_samples:
            return self.usable[rng.permutation(n)]
        records = self.source.records
        share = sampling_weights(records.speakers[self.usable], records.frames[self.usable])
        drawn = np.searchsorted(np.cumsum(share), rng.random(plan.epoch_samples), "right")
        return self.usable[np.minimum(drawn, n - 1)]


def sampling_weights(speakers: Sequence[object], n_frames: Sequence[int]) -> np.ndarray:
    """How often each clip is drawn, sum 1: speakers by the square root of their frames, their clips by frames."""
    _, of = np.unique(np.asarray(speakers), return_inverse=True)
    n = np.asarray(n_frames, float)
    weight = n / np.sqrt(np.bincount(of, n))[of]
    return weight / weight.sum()
