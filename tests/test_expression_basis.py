"""Expression basis: projection inverts synthesis, named blendshapes do what they say, learning finds a basis again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from face.expression_basis import (
    BASIS_FILE,
    BLENDSHAPE_NAMES,
    LOWER_LIP,
    N_COMPONENTS,
    UPPER_LIP,
    learn_basis,
    lip_gap,
    load_basis,
    point_weights,
)
from face.mesh import INNER_LIPS
from face.pose import Pose, apply_pose, rotation_from_angles
from face.tracker import FaceTrack
from tests.faces import basis, reference
from util.errors import UserError


def test_shapes_and_units() -> None:
    b = basis()
    assert b.template.shape == (478, 3)
    assert b.components.shape == (N_COMPONENTS, 478, 3)
    assert b.n_components == N_COMPONENTS
    assert b.blendshape_offsets.shape == (52, 478, 3)
    assert b.projector.shape == (478 * 3, N_COMPONENTS)
    assert np.linalg.norm(b.template[33] - b.template[263]) == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(
        np.abs(b.template[33]), np.abs(b.template[263]), atol=1e-3
    )  # symmetric, frontal
    assert b.template[1, 2] < b.template[[234, 454], 2].min()  # the nose is nearer than the ears


def test_coefficients_invert_offsets() -> None:
    coefficients = np.random.default_rng(0).normal(0, 1, (20, N_COMPONENTS)).astype(np.float32)
    offsets = basis().offsets(coefficients)
    assert offsets.shape == (20, 478, 3)
    assert offsets.dtype == np.float32
    np.testing.assert_allclose(basis().coefficients(offsets), coefficients, atol=1e-3)


def test_projection_is_a_projection() -> None:
    """What the basis can't express is dropped once, and once for all."""
    rng = np.random.default_rng(1)
    offsets = basis().offsets(rng.normal(0, 1, (5, N_COMPONENTS))) + rng.normal(0, 0.02, (5, 478, 3))
    once = basis().offsets(basis().coefficients(offsets))
    np.testing.assert_allclose(basis().offsets(basis().coefficients(once)), once, atol=1e-4)


def test_components_fall_in_importance() -> None:
    energy = (basis().components.reshape(N_COMPONENTS, -1, 3) ** 2).sum(2) @ point_weights()
    assert (np.diff(energy) <= 1e-5 * energy[0]).all()


def test_jaw_opens_the_lips() -> None:
    opening = [lip_gap(basis().template + basis().from_blendshapes(jawOpen=s)) for s in (0.0, 0.3, 0.6, 1.0)]
    assert (np.diff(opening) > 0.03).all()
    offset = basis().from_blendshapes(jawOpen=1.0)
    assert offset[152, 1] > 0.1  # the chin drops
    assert np.abs(offset[[10, 33, 263]]).max() < 0.05  # forehead and eyes stay
    expressed = basis().offsets(basis().coefficients(offset[None]))[0]
    assert lip_gap(expressed) == pytest.approx(lip_gap(offset), abs=0.01)


@pytest.mark.parametrize(
    ("name", "points", "axis", "sign"),
    [
        ("mouthSmile", ([61, 291],), 1, -1),  # corners up
        ("mouthFrown", ([61, 291],), 1, 1),
        ("browDown", ([105, 334],), 1, 1),
        ("browOuterUp", ([70, 300],), 1, -1),
        ("eyeBlink", ([159, 386],), 1, 1),  # upper lids down
        ("eyeWide", ([159, 386],), 1, -1),
    ],
)
def test_paired_blendshapes(name: str, points: tuple[list[int]], axis: int, sign: int) -> None:
    offset = basis().from_blendshapes(**{f"{name}Left": 1.0, f"{name}Right": 1.0})
    assert (sign * offset[points[0], axis] > 0.005).all()


def test_left_is_the_persons_left() -> None:
    """The person's left eye, on the picture's right, blinks with eyeBlinkLeft."""
    offset = basis().from_blendshapes(eyeBlinkLeft=1.0)
    assert offset[386, 1] > 1.3 * abs(offset[159, 1])


def test_blendshapes_add_up_and_unknown_ones_are_refused() -> None:
    both = basis().from_blendshapes(jawOpen=0.4, mouthPucker=0.7)
    parts = 0.4 * basis().from_blendshapes(jawOpen=1.0) + 0.7 * basis().from_blendshapes(mouthPucker=1.0)
    np.testing.assert_allclose(both, parts, atol=1e-6)
    assert len(set(BLENDSHAPE_NAMES)) == 52
    with pytest.raises(ValueError, match="jawopen"):
        basis().from_blendshapes(jawopen=1.0)


def test_lip_gap_sign_and_shape() -> None:
    mesh = np.zeros((2, 3, 478, 3), np.float32)
    mesh[..., LOWER_LIP, 1] = 0.2
    assert lip_gap(mesh).shape == (2, 3)
    np.testing.assert_allclose(lip_gap(mesh), 0.2)
    mesh[..., UPPER_LIP, 1] = 0.5
    np.testing.assert_allclose(lip_gap(mesh), -0.3, atol=1e-6)
    assert set(UPPER_LIP) < set(INNER_LIPS[0])
    assert set(LOWER_LIP) < set(INNER_LIPS[1])
    assert -0.01 < lip_gap(basis().template) < 0.1


def test_neutral_takes_the_expression_away() -> None:
    """The smiling portrait's neutral face has its lips nearer together and its corners lower."""
    ani = reference().ani
    neutral = basis().neutral(ani.canonical[None], ani.blendshapes[None])
    assert neutral.shape == (478, 3)
    assert lip_gap(neutral) < 0.5 * lip_gap(ani.canonical)
    assert neutral[[61, 291], 1].mean() > ani.canonical[[61, 291], 1].mean() + 0.02
    frames = ani.canonical + np.tensordot(np.eye(52)[:4], basis().blendshape_offsets, 1)
    scores = ani.blendshapes + np.eye(52)[:4]
    np.testing.assert_allclose(basis().neutral(frames, scores), neutral, atol=1e-4)


def test_learning_finds_the_expressions_again() -> None:
    """Clips made of a few blendshapes on different people: the learnt basis explains them and tells the lips' gap."""
    rng = np.random.default_rng(3)
    names = [
        BLENDSHAPE_NAMES.index(n) for n in ("jawOpen", "mouthSmileLeft", "mouthSmileRight", "browInnerUp")
    ]
    tracks = []
    for _ in range(4):
        person = basis().template + rng.normal(0, 0.01, (478, 3)).astype(np.float32)
        scores = np.zeros((60, 52), np.float32)
        scores[:, names] = rng.uniform(0, 1, (60, len(names)))
        canonical = person + np.tensordot(scores, basis().blendshape_offsets, 1)
        pose = Pose(
            rotation_from_angles(rng.uniform(-8, 8, (60, 3))), np.full(60, 80.0), np.full((60, 3), 128.0)
        )
        tracks.append(FaceTrack(apply_pose(canonical, pose), scores, np.zeros((60, 4, 4)), np.ones(60, bool)))
    learnt, explained = learn_basis(tracks, basis().template, n_components=4, ridge=0.01)
    assert explained["frames"] == 240
    assert explained["blendshape_explained"] > 0.9
    assert explained["pca_explained"] > 0.95
    jaw = learnt.from_blendshapes(jawOpen=1.0)
    assert lip_gap(jaw) == pytest.approx(lip_gap(basis().from_blendshapes(jawOpen=1.0)), rel=0.15)
    coefficients = rng.normal(0, 1, (3, 4)).astype(np.float32)
    np.testing.assert_allclose(learnt.coefficients(learnt.offsets(coefficients)), coefficients, atol=1e-3)


def test_damaged_basis_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = tmp_path / BASIS_FILE
    bad.write_bytes(b"no tensors in here, only words")
    monkeypatch.setattr("face.expression_basis.checkpoint_path", lambda name: bad)
    with pytest.raises(UserError, match=r"expression basis .*damaged"):
        load_basis.__wrapped__()
    bad.unlink()
    with pytest.raises(UserError, match="expression basis"):
        load_basis.__wrapped__()
