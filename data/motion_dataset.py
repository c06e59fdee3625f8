"""Clips as training arrays for the learners of motion: a voice and what the face did while it was heard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.pack import PackRow
from data.talking_clips import talking_clips
from data.tracks import clip_tracks
from face.expression_basis import ExpressionBasis, lip_gap, load_basis
from face.pose import fit_pose, to_canonical
from face.tracker import FaceTrack
from util.audio import read_voice
from util.errors import UserError, remark
from util.types import Voice

MAX_YAW_DEG = 45.0  # median; beyond it half of the mouth is a guess


@dataclass(frozen=True)
class MotionClip:
    """One person talking: T frames at 25 per second."""

    id: str
    identity: str
    split: str
    is_segment: bool  # 1.2 s cut out of running speech
    voice: Voice
    coefficients: np.ndarray  # (T, K) float32: offset from the person's neutral face
    lip_gap: np.ndarray  # (T,) float32: opening of the inner lips, face units
    rest_gap: float  # opening of the neutral face, face units

    @property
    def n_frames(self) -> int:
        return len(self.lip_gap)


def motion_clip(row: PackRow, track: FaceTrack, voice: Voice, basis: ExpressionBasis) -> MotionClip:
    """Arrays of one tracked clip. Raises UserError where the head is turned too far away."""
    pose = fit_pose(track.vertices, basis.template)
    if np.median(np.abs(pose.angles_deg[:, 0])) > MAX_YAW_DEG:
        raise UserError(
            f"clip {row.path.name}: the face is turned away; a frontal face is needed; leave it out"
        )
    canonical = to_canonical(track.vertices, pose)
    neutral = basis.neutral(canonical, track.blendshapes)
    return MotionClip(
        id=row.id,
        identity=row.identity,
        split=row.split,
        is_segment=row.is_segment,
        voice=voice,
        coefficients=basis.coefficients(canonical - neutral),
        lip_gap=lip_gap(canonical).astype(np.float32),
        rest_gap=float(lip_gap(neutral)),
    )


def motion_clips(rows: Iterable[PackRow], cache: str | Path) -> Iterator[MotionClip]:
    """The rows that talk in sync, as arrays. Damaged clips are left out, counted and reported."""
    basis, skipped = load_basis(), []
    for row, track in clip_tracks((r for r in rows if r.talks_in_sync), cache):
        try:
            yield motion_clip(row, track, read_voice(row.path, "clip"), basis)
        except UserError as error:
            skipped.append(str(error))
    if skipped:
        remark(f"{len(skipped)} clips without usable motion left out; the first: {skipped[0]}")


def load_motion_clips(
    root: str | Path, split: str, cache: str | Path, flag: str = "--dataroot"
) -> list[MotionClip]:
    """All talking clips of one split of the pack, or of the prepared data set, in `root`; all of them in memory.

    cache: for the face tracks of the pack. Raises UserError where there is no list of clips or not one usable clip
    to train on.
    """
    clips = list(motion_clips(talking_clips(root, split, flag), cache))
    if not clips and split == "train":
        raise UserError(f"{flag} {root}: no talking clip could be read; clips with sound are needed")
    return clips
