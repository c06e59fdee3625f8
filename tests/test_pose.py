"""Pose: the similarity fit inverts the pose, angles go both ways, signs are as documented."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from face.pose import (
    STABLE_POINTS,
    Pose,
    angles_deg,
    apply_pose,
    camera_angles_deg,
    fit_pose,
    rotation_from_angles,
    to_canonical,
)
from tests.faces import basis
from util.errors import ShapeError

ANGLES = st.tuples(st.floats(-80, 80), st.floats(-60, 60), st.floats(-170, 170))


def _pose(angles: tuple[float, float, float], scale: float, place: tuple[float, float, float]) -> Pose:
    rotation = rotation_from_angles(np.array([angles]))
    return Pose(rotation, np.array([scale], np.float32), np.array([place], np.float32))


@settings(max_examples=40, deadline=None)
@given(ANGLES, st.floats(5, 500), st.tuples(st.floats(-500, 2000), st.floats(-500, 2000), st.floats(-50, 50)))
def test_fit_inverts_apply(angles: tuple, scale: float, place: tuple) -> None:
    template = basis().template
    pose = _pose(angles, scale, place)
    found = fit_pose(apply_pose(template[None], pose), template)
    np.testing.assert_allclose(found.rotation, pose.rotation, atol=2e-4)
    np.testing.assert_allclose(found.scale, pose.scale, rtol=1e-4)
    np.testing.assert_allclose(found.translation, pose.translation, atol=0.01)
    assert np.linalg.det(found.rotation[0]) == pytest.approx(1, abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(ANGLES, st.floats(20, 300))
def test_to_canonical_inverts_apply(angles: tuple, scale: float) -> None:
    pose = _pose(angles, scale, (120.0, 90.0, 3.0))
    canonical = basis().template[None]
    np.testing.assert_allclose(to_canonical(apply_pose(canonical, pose), pose), canonical, atol=1e-4)


@settings(max_examples=50, deadline=None)
@given(ANGLES)
def test_angles_round_trip(angles: tuple) -> None:
    np.testing.assert_allclose(angles_deg(rotation_from_angles(np.array(angles))), angles, atol=2e-3)


def test_rotations_are_proper_and_broadcast() -> None:
    rotation = rotation_from_angles(np.random.default_rng(0).uniform(-60, 60, (4, 5, 3)))
    assert rotation.shape == (4, 5, 3, 3)
    assert rotation.dtype == np.float32
    product = np.einsum("...ij,...kj->...ik", rotation, rotation)
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(3), product.shape), atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-6)
    np.testing.assert_array_equal(rotation_from_angles(np.zeros(3)), np.eye(3))


def test_signs_of_the_angles() -> None:
    """Yaw turns the nose to the picture's right, pitch down, roll the crown to the left; z points away."""
    nose, crown = np.array([0, 0, -1.0]), np.array([0, -1.0, 0])
    assert (rotation_from_angles(np.array([20, 0, 0])) @ nose)[0] > 0.3
    assert (rotation_from_angles(np.array([0, 20, 0])) @ nose)[1] > 0.3
    assert (rotation_from_angles(np.array([0, 0, 20])) @ crown)[0] < -0.3


def test_camera_axes_are_the_image_axes_turned_over() -> None:
    turn = rotation_from_angles(np.array([12.0, -7, 5]))
    flip = np.diag([1.0, -1, -1])
    np.testing.assert_allclose(camera_angles_deg(flip @ turn @ flip), [12, -7, 5], atol=1e-3)
    np.testing.assert_allclose(angles_deg(turn), [12, -7, 5], atol=1e-3)


def test_expression_hardly_moves_the_fit() -> None:
    template = basis().template
    smile = template + basis().from_blendshapes(jawOpen=0.6, mouthSmileLeft=0.6, mouthSmileRight=0.6)
    pose = _pose((12, -8, 5), 80, (128, 128, 0))
    found = fit_pose(apply_pose(smile[None], pose), template)
    np.testing.assert_allclose(found.angles_deg, pose.angles_deg, atol=3)
    assert found.scale[0] == pytest.approx(80, rel=0.04)


def test_fit_is_frame_by_frame() -> None:
    rng = np.random.default_rng(1)
    vertices = basis().template * 90 + rng.normal(0, 1, (5, 478, 3)).astype(np.float32)
    whole = fit_pose(vertices, basis().template)
    assert len(whole) == 5
    assert len(whole[1:3]) == 2
    assert whole.angles_deg.shape == (5, 3)
    alone = fit_pose(vertices[3:4], basis().template)
    np.testing.assert_allclose(whole[3:4].rotation, alone.rotation, atol=1e-6)
    np.testing.assert_allclose(whole[3:4].translation, alone.translation, atol=1e-4)
    assert len(fit_pose(vertices[:0], basis().template)) == 0


def test_fit_is_optimal() -> None:
    """No small turn, growth or shift comes nearer to noisy points than the fit."""
    template, rng = basis().template, np.random.default_rng(2)
    noisy = (template * 70 + rng.normal(0, 2, (1, 478, 3))).astype(np.float32)
    found = fit_pose(noisy, template)

    def error(pose: Pose) -> float:
        return float(
            ((apply_pose(template[None], pose) - noisy)[:, STABLE_POINTS].astype(np.float64) ** 2).sum()
        )

    best = error(found)
    for k in range(3):
        for sign in (-1, 1):
            step = np.eye(3, dtype=np.float32)[k] * sign
            turn = rotation_from_angles(step)
            assert error(Pose(turn @ found.rotation, found.scale, found.translation)) > best
            assert error(Pose(found.rotation, found.scale, found.translation + step)) > best
    for factor in (0.98, 1.02):
        assert error(Pose(found.rotation, found.scale * np.float32(factor), found.translation)) > best


@pytest.mark.parametrize("shape", [(478, 3), (1, 477, 3), (1, 478, 2)])
def test_wrong_shapes_are_told(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"vertices: shape .* needed \(T, 478, 3\)"):
        fit_pose(np.zeros(shape, np.float32), basis().template)
