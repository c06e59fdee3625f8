"""Which frames make a training sample: targets, references, and the reference that is warped.

Rules: ../shared/parity/rhm/README.md, section 8, "Reference choice" and "Warp reference". One change, where the mesh
gives the flow: the warped reference is one of a few anchor frames per clip, so that what depends on it can be kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from util.errors import UserError

N_ANCHORS = 4  # frames of a clip that may be warped: what depends on them alone is kept, 2.8 MB each
OPEN_MOUTH_PROB = 0.4  # how often --find_largest_mouth takes the references with the mouth most open
N_OPEN = 8  # of so many frames per reference
OTHER_MOUTH_PROB = 0.5  # how often the mouth's inside is that of the reference with the mouth most open


@dataclass(frozen=True)
class SamplePlan:
    """How samples are drawn."""

    n_shot: int = 1
    n_frames: int = 1  # T successive target frames
    ref_ratio: float = 0.25
    warp_choice: str = "farthest"  # or nearest, random: which reference is warped, by its head's rotation
    worst_ref_prob: float = 0.75  # how often the farthest is, with warp_choice "farthest"; else any
    find_largest_mouth: bool = False
    crop_ref: bool = False
    geometry: str = "mesh"  # what tells of the 3D face: mesh (else its video), video, or none
    augment: bool = True  # mirror half of the samples, and change light and colour a little
    serial: bool = False
    epoch_samples: int = 0
    seed: int = 0

    @property
    def least_frames(self) -> int:
        """Frames that a clip must have."""
        return self.n_shot + self.n_frames


@dataclass(frozen=True)
class Choice:
    """The frames of one sample, counted within the prepared clip."""

    references: tuple[int, ...]  # K
    warped: int  # one of them
    targets: tuple[int, ...]  # T successive frames
    open_mouth: int  # whose mouth interior is shown


class Motion(Protocol):
    """What the choice looks at (a PreparedClip has it)."""

    number: np.ndarray  # (N,) place in the video
    rt: np.ndarray  # (N, 6) rotation vector, translation
    opening: np.ndarray  # (N,) of the mouth

    def __len__(self) -> int: ...


def choose_frames(clip: Motion, plan: SamplePlan, anchored: bool, rng: np.random.Generator) -> Choice:
    """Draw the frames of one sample. anchored: the warped reference is one of the clip's anchors.

    Raises UserError where the clip is shorter than K references and T successive frames.
    """
    end = reference_end(len(clip), plan)
    starts = slice_starts(clip.number, plan.n_frames)
    if len(clip) < plan.least_frames or not len(starts):
        raise UserError(
            f"{len(clip)} frames show a face; {plan.least_frames} are needed for {plan.n_shot} references "
            f"and {plan.n_frames} frames in a row"
        )
    behind = starts[starts >= end]
    first = int(rng.choice(behind if len(behind) else starts))
    targets = tuple(range(first, first + plan.n_frames))
    candidates = np.arange(end)
    if plan.find_largest_mouth and rng.random() < OPEN_MOUTH_PROB:
        candidates = np.argsort(-clip.opening[:end], kind="stable")[: plan.n_shot * N_OPEN]
    if anchored:
        anchors = np.unique(np.linspace(0, end - 1, N_ANCHORS).round().astype(int))
        warped = _warped(clip, rng.permutation(anchors)[: plan.n_shot], targets, plan, rng)
        others = rng.permutation(candidates[candidates != warped])[: plan.n_shot - 1]
        if len(others) < plan.n_shot - 1:
            left = np.setdiff1d(np.arange(end), [warped, *others])
            others = [*others, *rng.permutation(left)[: plan.n_shot - 1 - len(others)]]
        references = rng.permutation([warped, *others])
    else:
        references = rng.choice(candidates, plan.n_shot, replace=False)
        warped = _warped(clip, references, targets, plan, rng)
    shown = warped
    if anchored and rng.random() < OTHER_MOUTH_PROB:
        # A photo has no other frame that shows its teeth: half of the samples must do without one, too.
        shown = int(anchors[clip.opening[anchors].argmax()])
    return Choice(tuple(int(k) for k in references), warped, targets, shown)


def reference_end(n_frames: int, plan: SamplePlan) -> int:
    """References are the frames before this one: the clip's first part, but at least one slice follows it."""
    first_part = n_frames - int((1 - plan.ref_ratio) * n_frames)
    return max(min(max(first_part, plan.n_shot), n_frames - plan.n_frames), 1)


def slice_starts(number: np.ndarray, n_frames: int) -> np.ndarray:
    """Frames at which T frames begin that follow each other in the video too."""
    span = n_frames - 1
    return np.flatnonzero(number[span:] - number[: max(len(number) - span, 0)] == span)


def turn_between(rt: np.ndarray, frames: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(F,) mean absolute difference of the rotation vectors of frames (F,) of rt (N, 6) from another (3,)."""
    return np.abs(rt[frames, :3] - other).mean(1)


def _warped(
    clip: Motion, references: np.ndarray, targets: tuple[int, ...], plan: SamplePlan, rng: np.random.Generator
) -> int:
    away = turn_between(clip.rt, references, clip.rt[list(targets), :3].mean(0))
    if plan.warp_choice == "nearest":
        return int(references[away.argmin()])
    if plan.warp_choice == "farthest" and rng.random() < plan.worst_ref_prob:
        return int(references[away.argmax()])
    return int(rng.choice(references))
