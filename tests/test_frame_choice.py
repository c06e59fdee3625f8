"""The public code's rules of selection: references come first, and which one of them is warped."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from data.frame_choice import N_ANCHORS, Choice, SamplePlan, choose_frames
from util.errors import UserError


@dataclass
class MadeUpClip:
    """Turns one way and opens its mouth more and more."""

    number: np.ndarray
    rt: np.ndarray
    opening: np.ndarray

    def __len__(self) -> int:
        return len(self.number)


def made_up_clip(n_frames: int = 40, gap_at: int | None = None) -> MadeUpClip:
    rt = np.zeros((n_frames, 6), np.float32)
    rt[:, 1] = np.linspace(-0.4, 0.4, n_frames)
    number = np.arange(n_frames) + (0 if gap_at is None else 3 * (np.arange(n_frames) >= gap_at))
    return MadeUpClip(number, rt, np.linspace(0, 9, n_frames))


def choices(plan: SamplePlan, clip: MadeUpClip, n: int = 60, anchored: bool = True) -> list[Choice]:
    return [choose_frames(clip, plan, anchored, np.random.default_rng(k)) for k in range(n)]


@pytest.mark.parametrize("anchored", [True, False])
def test_references_come_first_and_targets_after(anchored: bool) -> None:
    clip = made_up_clip()
    warped = set()
    for c in choices(SamplePlan(n_shot=4, n_frames=3), clip, 200, anchored):
        assert len(set(c.references)) == 4
        assert max(c.references) < 10 <= min(c.targets)
        assert c.warped in c.references
        assert np.diff(c.targets).tolist() == [1, 1]
        warped.add(c.warped)
    assert (2 <= len(warped) <= N_ANCHORS) if anchored else len(warped) > N_ANCHORS
    many = choices(SamplePlan(n_shot=16), clip, 5, anchored)  # max(T - int(0.75 T), n_shot)
    assert all(len(set(c.references)) == 16 and max(c.references) == 15 for c in many)
    least = choices(SamplePlan(n_shot=5), made_up_clip(6), 5, anchored)
    assert all(sorted(c.references) == [0, 1, 2, 3, 4] and c.targets == (5,) for c in least)
    with pytest.raises(UserError, match="6 frames show a face; 9 are needed"):
        choices(SamplePlan(n_shot=8), made_up_clip(6), 1, anchored)


@pytest.mark.parametrize("anchored", [True, False])
def test_worst_reference_is_warped(anchored: bool) -> None:
    """The clip turns one way: of the references, the first is farthest from any target and the last is nearest."""
    plan = SamplePlan(n_shot=6, worst_ref_prob=1.0)

    def ranks(**changes: object) -> list[int]:
        """Which of the sorted references is warped."""
        made = choices(replace(plan, **changes), made_up_clip(), 300, anchored)
        return [sorted(c.references).index(c.warped) for c in made]

    assert set(ranks()) == {0}
    nearest = {c.warped for c in choices(replace(plan, warp_choice="nearest"), made_up_clip(), 60, anchored)}
    assert nearest == {9} if anchored else min(nearest) >= 5
    for changes in ({"worst_ref_prob": 0.0}, {"warp_choice": "random"}):
        assert len(set(ranks(**changes))) > 3
    mixed = ranks(worst_ref_prob=0.75)
    assert 0.7 < np.mean(np.array(mixed) == 0) < 0.9  # 0.75 + 0.25 / 6


@pytest.mark.parametrize("anchored", [True, False])
def test_open_mouths_are_preferred(anchored: bool) -> None:
    clip = made_up_clip(200)  # of the 50 reference frames, the last 16 have the mouth most open

    def others(preferred: bool) -> np.ndarray:
        plan = SamplePlan(n_shot=2, find_largest_mouth=preferred)
        made = choices(plan, clip, 400, anchored)
        return np.array([k for c in made for k in c.references if k != c.warped or not anchored])

    # Chance gives 16 of 50; preferred in 0.4 of the samples, 0.4 + 0.6 x 0.32 of them.
    assert 0.25 < (others(False) >= 34).mean() < 0.4
    assert 0.52 < (others(True) >= 34).mean() < 0.67


def test_targets_never_span_a_gap() -> None:
    clip = made_up_clip(40, gap_at=20)
    for c in choices(SamplePlan(n_frames=4), clip, 100):
        assert np.ptp(clip.number[list(c.targets)]) == 3
    holes = made_up_clip(40)
    holes.number = holes.number * 2
    with pytest.raises(UserError, match="2 frames in a row"):
        choices(SamplePlan(n_frames=2), holes, 1)
