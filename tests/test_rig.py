"""Slit, rig and emotion: lips and lids close whatever else happens, and each emotion shows where it should."""

from __future__ import annotations

import numpy as np
import pytest

from face.emotion import EASE_SECONDS, RECIPES, emotion_envelope, emotion_offset
from face.expression_basis import lip_gap
from face.mesh import INNER_LIPS, LEFT_EYE, RIGHT_EYE
from face.rig import LIPS_TOUCH, FaceRig
from face.slit import Slit
from tests.faces import basis, reference, rig
from util.types import EMOTIONS, FPS

NO_EMOTION = np.zeros((478, 3), np.float32)
LIP_PAIRS = (INNER_LIPS[0][1:-1], INNER_LIPS[1][1:-1])


@pytest.fixture(scope="module")
def mouth() -> Slit:
    return Slit(basis().template, INNER_LIPS, reach_up=0.22, reach_down=0.5, lower_share=0.7)


def _gaps(meshes: np.ndarray, pairs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return meshes[:, pairs[1], 1] - meshes[:, pairs[0], 1]


def _faces(n: int, seed: int = 0, spread: float = 1.0) -> np.ndarray:
    """Coefficients (n, K) as wild as real ones get."""
    return (spread * np.random.default_rng(seed).normal(0, 1, (n, basis().n_components))).astype(np.float32)


def _speak(puppet: FaceRig, coefficients: np.ndarray, gap: float, emotion: str = "neutral") -> np.ndarray:
    n = len(coefficients)
    offset = emotion_offset(basis(), emotion)
    return puppet.speak(coefficients, np.full(n, gap, np.float32), offset, np.ones(n, np.float32))


def test_slit_sets_every_gap(mouth: Slit) -> None:
    meshes = basis().template + basis().offsets(_faces(6))
    wanted = np.random.default_rng(1).uniform(-0.02, 0.3, (6, 9)).astype(np.float32)
    changed = mouth.change(meshes, wanted - mouth.gaps(meshes))
    np.testing.assert_allclose(mouth.gaps(changed), wanted, atol=1e-5)
    np.testing.assert_allclose(_gaps(changed, LIP_PAIRS), wanted, atol=1e-5)
    np.testing.assert_array_equal(changed[..., [0, 2]], meshes[..., [0, 2]])  # it moves up and down only


def test_slit_shares_the_way(mouth: Slit) -> None:
    moved = mouth.change(basis().template[None], np.full((1, 9), 0.1, np.float32))[0] - basis().template
    np.testing.assert_allclose(moved[LIP_PAIRS[0], 1], -0.03, atol=1e-6)
    np.testing.assert_allclose(moved[LIP_PAIRS[1], 1], 0.07, atol=1e-6)


def test_slit_leaves_what_is_far_alone(mouth: Slit) -> None:
    moved = np.abs(
        mouth.change(basis().template[None], np.full((1, 9), 0.2, np.float32))[0] - basis().template
    )
    assert not moved[INNER_LIPS[0][[0, -1]]].any()  # the corners
    assert not moved[[10, 33, 133, 263, 362, 105, 334, 168, 6, 4, 1, 234, 454, 473, 468]].any()
    assert not moved[:, [0, 2]].any()
    assert moved[17, 1] > 0.05  # the lower lip's own edge comes along


def test_skin_goes_along_smoothly(mouth: Slit) -> None:
    """Down the middle of the face nothing jumps or turns over: points keep their order, the chin moves least."""
    meshes = np.concatenate(
        [mouth.change(basis().template[None], np.full((1, 9), d, np.float32)) for d in (0, 0.2)]
    )
    column = [14, 15, 16, 17, 18, 200, 199, 175, 152]
    assert (np.diff(meshes[:, column, 1], axis=1) > 0).all()
    moved = meshes[1, column, 1] - meshes[0, column, 1]
    assert (np.diff(moved) <= 1e-5).all()
    column = [2, 164, 0, 11, 12, 13]
    assert (np.diff(meshes[:, column, 1], axis=1) > 0).all()


@pytest.mark.parametrize("edges", [LEFT_EYE, RIGHT_EYE, INNER_LIPS])
def test_close_shuts_and_never_crosses(edges: tuple[np.ndarray, np.ndarray]) -> None:
    slit = Slit(basis().template, edges, reach_up=0.2, reach_down=0.2, lower_share=0.3)
    meshes = basis().template + basis().offsets(_faces(30, seed=2))
    before = np.maximum(slit.gaps(meshes), 0)
    for closure in (0.0, 0.4, 1.0):
        closed = slit.close(meshes, np.full(30, closure, np.float32))
        np.testing.assert_allclose(np.maximum(slit.gaps(closed), 0), before * (1 - closure), atol=2e-3)
    np.testing.assert_array_equal(slit.close(meshes, np.zeros(30, np.float32)), meshes)


@pytest.mark.parametrize("emotion", EMOTIONS)
def test_lips_close_whatever_is_felt(emotion: str) -> None:
    meshes = _speak(rig(), _faces(100, seed=3), 0.0, emotion)
    assert np.abs(lip_gap(meshes)).max() < 0.005
    gaps = _gaps(meshes, LIP_PAIRS)
    assert gaps.min() > 0  # touching, not crossing
    assert gaps.max() < LIPS_TOUCH + 0.001


@pytest.mark.parametrize("emotion", ["neutral", "happy", "surprise", "sad"])
@pytest.mark.parametrize("gap", [0.02, 0.05, 0.1, 0.2, 0.3])
def test_lips_open_as_far_as_asked(emotion: str, gap: float) -> None:
    meshes = _speak(rig(), _faces(60, seed=4), gap, emotion)
    np.testing.assert_allclose(lip_gap(meshes), gap, atol=0.005)
    assert _gaps(meshes, LIP_PAIRS).min() > 0


def test_lips_follow_frame_by_frame() -> None:
    wanted = np.abs(np.sin(np.arange(40) / 3)).astype(np.float32) * 0.2
    meshes = rig().set_lips(reference().ani.canonical[None].repeat(40, 0), wanted)
    assert np.corrcoef(lip_gap(meshes), wanted)[0, 1] > 0.999
    alone = rig().set_lips(reference().ani.canonical[None], wanted[7:8])
    np.testing.assert_allclose(alone[0], meshes[7], atol=1e-6)


def test_speaking_leaves_the_upper_face_its_own() -> None:
    """At rest the speaker keeps its brows and eyes, and most of its smile goes."""
    own = reference().ani.canonical
    mesh = _speak(rig(), np.zeros((1, basis().n_components), np.float32), 0.0)[0]
    assert np.abs(mesh - own)[[10, 33, 263, 105, 334, 159, 386, 168]].max() < 1e-4
    assert mesh[[61, 291], 1].mean() > own[[61, 291], 1].mean() + 0.01


def test_voice_moves_lips_more_than_brows() -> None:
    offset = basis().coefficients((basis().from_blendshapes(browInnerUp=1.0, jawOpen=0.5))[None])
    rest = _speak(rig(), np.zeros_like(offset), 0.1)
    moved = _speak(rig(), offset, 0.1) - rest
    full = basis().offsets(offset)
    np.testing.assert_allclose(moved[0, 107], 0.5 * full[0, 107], atol=1e-5)
    np.testing.assert_allclose(moved[0, 152, [0, 2]], full[0, 152, [0, 2]], atol=1e-5)


@pytest.mark.parametrize(
    ("closure", "shut"), [((1, 1), (True, True)), ((1, 0), (True, False)), ((0, 1), (False, True))]
)
def test_blink_shuts_the_eyes(closure: tuple[int, int], shut: tuple[bool, bool]) -> None:
    meshes = np.concatenate([_speak(rig(), _faces(20, seed=5), 0.1, e) for e in ("neutral", "surprise")])
    blinked = rig().blink(meshes, np.repeat(np.float32([closure]), len(meshes), 0))
    for eye, is_shut in zip((LEFT_EYE, RIGHT_EYE), shut, strict=True):
        pairs = eye[0][1:-1], eye[1][1:-1]
        if is_shut:
            assert np.maximum(_gaps(blinked, pairs), 0).max() < 0.003
        else:
            np.testing.assert_allclose(_gaps(blinked, pairs), _gaps(meshes, pairs), atol=1e-5)
    np.testing.assert_allclose(lip_gap(blinked), lip_gap(meshes), atol=1e-6)


def test_half_a_blink_is_half_way() -> None:
    mesh = reference().ani.canonical[None]
    half = rig().blink(mesh, np.float32([[0.5, 0.5]]))
    pairs = LEFT_EYE[0][1:-1], LEFT_EYE[1][1:-1]
    np.testing.assert_allclose(_gaps(half, pairs), 0.5 * _gaps(mesh, pairs), atol=1e-3)


def test_imitate_and_replace_mouth() -> None:
    offsets = basis().offsets(_faces(3, seed=6))
    copied = rig().imitate(offsets)
    np.testing.assert_allclose(copied - reference().neutral, offsets, atol=1e-6)
    spoken = _speak(rig(), _faces(3, seed=7), 0.15)
    mixed = rig().replace_mouth(copied, spoken)
    np.testing.assert_allclose(lip_gap(mixed), lip_gap(spoken), atol=1e-5)
    np.testing.assert_allclose(
        mixed[:, [105, 334, 33, 263, 159]], copied[:, [105, 334, 33, 263, 159]], atol=1e-6
    )


def test_one_frame_tells_its_own_neutral() -> None:
    ani = reference().ani
    alone = FaceRig(ani.canonical, ani.blendshapes, basis())
    np.testing.assert_allclose(alone.neutral, basis().neutral(ani.canonical[None], ani.blendshapes[None]))
    other = FaceRig(ani.canonical, ani.blendshapes, basis(), neutral=basis().template)
    np.testing.assert_array_equal(other.neutral, basis().template)


# Which points move along y, and how far at least (face units; negative is up).
SHOWS = [
    ("happy", [61, 291], -0.04),  # mouth corners
    ("sad", [55, 285, 107, 336], -0.03),  # inner brows
    ("fear", [55, 285, 107, 336], -0.03),
    ("surprise", [55, 285, 107, 336], -0.04),
    ("surprise", [70, 300], -0.02),  # outer brows
    ("angry", [105, 334, 52, 282], 0.03),  # brows
    ("disgust", [105, 334], 0.015),
    ("disgust", [0, 37, 267], -0.015),  # upper lip
    ("sad", [61, 291], 0.02),
]


@pytest.mark.parametrize(("emotion", "points", "least"), SHOWS)
def test_emotion_moves_what_it_should(emotion: str, points: list[int], least: float) -> None:
    moved = emotion_offset(basis(), emotion)[points, 1].mean()
    assert moved / np.sign(least) >= abs(least)


def test_emotions_are_complete_and_distinct() -> None:
    assert tuple(RECIPES) == EMOTIONS
    offsets = np.stack([emotion_offset(basis(), e) for e in EMOTIONS])
    assert offsets.shape == (7, 478, 3)
    assert not offsets[0].any()
    assert np.isfinite(offsets).all()
    assert np.abs(offsets).max() < 0.2
    flat = offsets[1:].reshape(6, -1)
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    assert (flat @ flat.T - np.eye(6)).max() < 0.9


def test_emotions_are_nearly_symmetric() -> None:
    for emotion in EMOTIONS[1:]:
        offset = emotion_offset(basis(), emotion)
        for right, left in ((61, 291), (105, 334), (159, 386)):
            assert offset[right, 1] == pytest.approx(offset[left, 1], abs=0.03)


def test_emotion_strength_scales_the_upper_face() -> None:
    offset = emotion_offset(basis(), "angry")
    gap, rest = np.full(3, 0.05, np.float32), np.zeros((3, basis().n_components), np.float32)
    meshes = rig().speak(rest, gap, offset, np.float32([0, 0.5, 1]))
    np.testing.assert_allclose(meshes[1, 105] - meshes[0, 105], 0.5 * offset[105], atol=1e-6)
    np.testing.assert_allclose(meshes[2, 105] - meshes[0, 105], offset[105], atol=1e-6)


@pytest.mark.parametrize("intensity", [0.0, 0.4, 1.0])
def test_envelope_eases_in(intensity: float) -> None:
    strength = emotion_envelope(60, intensity)
    assert strength.shape == (60,)
    assert strength.dtype == np.float32
    assert strength[0] <= 0.05 * intensity
    assert (np.diff(strength) >= 0).all()
    assert np.diff(strength).max() <= 0.12 * intensity + 1e-6
    np.testing.assert_allclose(strength[int(EASE_SECONDS * FPS) :], intensity)
    parts = [emotion_envelope(20, intensity, first) for first in (0, 20, 40)]
    np.testing.assert_array_equal(np.concatenate(parts), strength)
