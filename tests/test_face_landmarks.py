"""The 68 points, the rigid frontalisation of the data contract, and the smoothing of landmark tracks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from face import landmarks68 as lm
from face.contract_pose import (
    STABLE_POINTS,
    frontal_key_frame,
    frontalise,
    reverse_rt,
    rigid_fit,
    smooth_hann,
    smooth_landmarks,
)
from util.errors import ShapeError, UserError

CONTRACT_TOLERANCE = 1e-4  # ../shared/parity/README.md, "Tolerances"


@pytest.fixture
def faces() -> tuple[np.ndarray, np.ndarray]:
    """A made-up standard face (68, 3) and 40 posed, moving copies of it, pixels."""
    rng = np.random.default_rng(1)
    standard = rng.uniform(-80, 80, (68, 3)) + 128
    turn = Rotation.from_euler("xyz", rng.uniform(-60, 60, (40, 3)), degrees=True).as_matrix()
    moving = standard + rng.normal(0, 3, (40, 68, 3))
    return standard, moving @ turn + rng.uniform(-50, 50, (40, 1, 3))


def test_map_is_the_measured_one() -> None:
    index = lm.VERTEX_OF_LANDMARK
    assert index.shape == (68,)
    assert len(set(index.tolist())) == 68
    assert index[[0, 8, 16, 17, 26, 30, 33, 36, 45, 48, 54, 60, 64, 67]].tolist() == (
        [162, 152, 389, 71, 301, 4, 2, 33, 263, 61, 291, 78, 308, 87]
    )


def test_slices_cover_the_68_points_once() -> None:
    parts = [lm.JAW, lm.RIGHT_BROW, lm.LEFT_BROW, lm.NOSE_BRIDGE, lm.NOSE_BASE]
    parts += [lm.RIGHT_EYE, lm.LEFT_EYE, lm.OUTER_MOUTH, lm.INNER_MOUTH]
    points = [i for part in parts for i in range(68)[part]]
    assert points == list(range(68))


@pytest.mark.parametrize("lead", [(), (5,), (2, 5)])
@pytest.mark.parametrize("dims", [2, 3])
def test_landmarks_of_a_batch(lead: tuple[int, ...], dims: int) -> None:
    vertices = np.arange(np.prod(lead, dtype=int) * 478 * dims, dtype=np.float32).reshape(*lead, 478, dims)
    points = lm.to_landmarks68(vertices)
    assert points.shape == (*lead, 68, dims)
    assert points.dtype == np.float32
    assert (points[..., 33, :] == vertices[..., 2, :]).all()


@pytest.mark.parametrize("shape", [(478,), (5, 68, 3), (5, 478, 4)])
def test_landmarks_of_a_wrong_mesh(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"vertices: shape .*needed \(\.\.\., 478, 2 or 3\)"):
        lm.to_landmarks68(np.zeros(shape))


def test_frontalise_golden(golden: dict[str, np.ndarray]) -> None:
    front, rt = frontalise(golden["lmark"], golden["standard"])
    np.testing.assert_allclose(front, golden["front"], atol=CONTRACT_TOLERANCE, rtol=0)
    np.testing.assert_allclose(rt, golden["rt"], atol=CONTRACT_TOLERANCE, rtol=0)


def test_reverse_golden(golden: dict[str, np.ndarray]) -> None:
    posed = reverse_rt(golden["front"][3], golden["rt"])
    np.testing.assert_allclose(posed, golden["reverse_rt_front3_all"], atol=CONTRACT_TOLERANCE, rtol=0)


def test_smoothing_golden(golden: dict[str, np.ndarray]) -> None:
    smooth = smooth_landmarks(golden["lmark"])
    np.testing.assert_allclose(smooth, golden["lmark_smoothed"], atol=CONTRACT_TOLERANCE, rtol=0)


def test_reverse_undoes_frontalise(faces: tuple[np.ndarray, np.ndarray]) -> None:
    standard, posed = faces
    np.testing.assert_allclose(reverse_rt(*frontalise(posed, standard)), posed, atol=2e-4)


def test_rigid_motion_changes_rt_and_not_front(faces: tuple[np.ndarray, np.ndarray]) -> None:
    standard, posed = faces
    turn = Rotation.from_euler("xyz", [20, -35, 10], degrees=True).as_matrix()
    front, rt = frontalise(posed, standard)
    moved_front, moved_rt = frontalise(posed @ turn.T + [30, -20, 5], standard)
    np.testing.assert_allclose(moved_front, front, atol=2e-4)
    assert (np.abs(moved_rt - rt).max(1) > 0.1).all()


def test_a_standing_face_has_no_motion(faces: tuple[np.ndarray, np.ndarray]) -> None:
    standard, _ = faces
    front, rt = frontalise(standard[None], standard)
    np.testing.assert_allclose(front[0], standard, atol=1e-4)
    np.testing.assert_allclose(rt, 0, atol=1e-4)


def test_a_mirrored_face_is_not_mirrored_back(faces: tuple[np.ndarray, np.ndarray]) -> None:
    standard, posed = faces
    rotation, _ = rigid_fit((posed * [-1, 1, 1])[:, STABLE_POINTS], standard[STABLE_POINTS])
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-9)


def test_batch_equals_single_frames(faces: tuple[np.ndarray, np.ndarray]) -> None:
    standard, posed = faces
    front, rt = frontalise(posed, standard)
    alone = [frontalise(posed[i : i + 1], standard) for i in range(3)]
    np.testing.assert_allclose(front[:3], np.concatenate([f for f, _ in alone]), atol=1e-5)
    np.testing.assert_allclose(rt[:3], np.concatenate([r for _, r in alone]), atol=1e-5)


def test_long_clip_is_taken_in_parts(
    faces: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    standard, posed = faces
    whole = frontalise(posed, standard)
    monkeypatch.setattr("face.contract_pose._STACK", 7)
    for ours, theirs in zip(frontalise(posed, standard), whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_key_frame_is_the_least_turned() -> None:
    rt = np.array([[0.3, 0, 0, 0, 0, 0], [0.05, -0.05, 0, 90, 90, 90], [0, 0, -0.2, 0, 0, 0]])
    assert frontal_key_frame(rt) == 1


def test_smoothing_leaves_z_and_steady_motion() -> None:
    ramp = np.linspace(0, 50, 30)[:, None, None] * np.ones((30, 68, 3))
    noisy = ramp + np.random.default_rng(0).normal(0, 1, ramp.shape)
    np.testing.assert_allclose(smooth_landmarks(ramp)[2:-2], ramp[2:-2], atol=1e-4)
    np.testing.assert_array_equal(smooth_landmarks(noisy)[..., 2], noisy[..., 2].astype(np.float32))
    assert np.diff(smooth_landmarks(noisy)[..., :2], axis=0).std() < 0.6 * np.diff(noisy, axis=0).std()


@pytest.mark.parametrize("n_frames", [1, 2, 3, 4])
def test_smoothing_of_short_clips(n_frames: int) -> None:
    track = np.full((n_frames, 2), 7.0)
    np.testing.assert_allclose(smooth_hann(track, 11), track)


def test_refusals(faces: tuple[np.ndarray, np.ndarray]) -> None:
    standard, posed = faces
    with pytest.raises(ShapeError, match=r"landmarks: shape \(40, 68, 2\), needed \(T, 68, 3\)"):
        frontalise(posed[..., :2], standard)
    with pytest.raises(ShapeError, match=r"needed \(68, 3\)"):
        frontalise(posed, posed)
    with pytest.raises(ShapeError, match=r"rt: shape \(40, 5\), needed \(T, 6\)"):
        reverse_rt(posed, np.zeros((40, 5)))
    with pytest.raises(ShapeError, match=r"front: shape .* needed \(3, N, 3\) or \(N, 3\)"):
        reverse_rt(posed, np.zeros((3, 6)))
    posed[7, 5, 1] = np.nan
    with pytest.raises(UserError, match="landmarks: frame 7 is not finite"):
        frontalise(posed, standard)
