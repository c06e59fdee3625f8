"""The reference: a picture or frames of a clip, cropped and measured; what isn't there is refused."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from face.crop import from_crop
from face.expression_basis import lip_gap
from face.pose import apply_pose
from face.reference import HALF_PIXEL, MAX_SOURCE_PX, load_reference
from tests.faces import PORTRAIT, basis, portrait, portrait_face, reference
from util.errors import UserError
from util.video import VideoWriter, probe

N_FRAMES = 8
TILT = (14.0, 9.0, 0.0)  # degrees of roll of the clip's first, fourth and last frame


def _tilted(degrees: float) -> np.ndarray:
    matrix = cv2.getRotationMatrix2D((225, 130), degrees, 1.0)
    picture = cv2.warpAffine(portrait(), matrix, (512, 512), borderMode=cv2.BORDER_REPLICATE)
    return np.ascontiguousarray(picture[:320, 64:384])


@pytest.fixture(scope="module")
def tilted_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight frames of the portrait; the head straightens up."""
    path = tmp_path_factory.mktemp("reference") / "tilted clip.mp4"
    with VideoWriter(path, 320, 320) as video:
        for k in range(N_FRAMES):
            video.write(_tilted(TILT[0] if k < 3 else TILT[1] if k < 6 else TILT[2]))
    return path


def test_picture() -> None:
    ref = reference()
    assert len(ref.faces) == 1
    assert ref.ani is ref.faces[0]
    assert ref.ani.image.shape == (256, 256, 3)
    assert ref.ani.image.dtype == np.uint8
    assert ref.ani.vertices.shape == ref.ani.canonical.shape == ref.neutral.shape == (478, 3)
    assert ref.ani.blendshapes.shape == (52,)
    assert len(ref.ani.pose) == 1
    np.testing.assert_array_equal(ref.source, portrait())


def test_parts_fit_together() -> None:
    """Pose times canonical gives the vertices; the crop's vertices are the source's, counted from pixel centres."""
    ani = reference().ani
    np.testing.assert_allclose(apply_pose(ani.canonical[None], ani.pose)[0], ani.vertices, atol=0.01)
    source = from_crop(ani.vertices + HALF_PIXEL, ani.box, 256)
    np.testing.assert_allclose(source, portrait_face().vertices, atol=0.05)
    np.testing.assert_allclose(ani.seen_angles, ani.pose.angles_deg[0], atol=6)
    assert ani.vertices[:468, :2].min() > 0
    assert ani.vertices[:468, :2].max() < 256


def test_neutral_face_is_at_rest() -> None:
    assert lip_gap(reference().neutral) < 0.5 * lip_gap(reference().ani.canonical)


def test_other_size() -> None:
    ref = load_reference(PORTRAIT, (0,), None, 384, basis())
    assert ref.ani.image.shape == (384, 384, 3)
    expected = (reference().ani.vertices + HALF_PIXEL) * 1.5 - HALF_PIXEL
    np.testing.assert_allclose(ref.ani.vertices, expected, atol=0.1)
    assert ref.ani.pose.scale[0] == pytest.approx(1.5 * reference().ani.pose.scale[0], rel=1e-3)


@pytest.mark.parametrize(("frames", "ani", "named"), [((3,), None, 3), ((0, 2), None, 2), ((0, 5), 0, 5)])
def test_a_picture_has_one_frame(frames: tuple[int, ...], ani: int | None, named: int) -> None:
    with pytest.raises(
        UserError, match=rf"^--ref_img_id {named}: .*portrait\.png is one picture; only frame 0 is there"
    ):
        load_reference(PORTRAIT, frames, ani, 256, basis())


def test_a_picture_has_one_frame_for_the_texture_too() -> None:
    with pytest.raises(UserError, match=r"^--ref_ani_id 4: .*is one picture; only frame 0 is there"):
        load_reference(PORTRAIT, (0,), 4, 256, basis())


def test_frame_beyond_the_clip(tilted_clip: Path) -> None:
    n = probe(tilted_clip, "x").n_frames
    assert n == N_FRAMES
    with pytest.raises(
        UserError, match=rf"^--ref_img_id 99: .*tilted clip\.mp4 has {n} frames; choose 0 to {n - 1}$"
    ):
        load_reference(tilted_clip, (0, 99), None, 256, basis())
    with pytest.raises(UserError, match=rf"^--ref_ani_id {n}: .* has {n} frames; choose 0 to {n - 1}$"):
        load_reference(tilted_clip, (0,), n, 256, basis())


def test_most_frontal_gives_the_texture(tilted_clip: Path) -> None:
    ref = load_reference(tilted_clip, (0, 4, 7), None, 256, basis())
    assert len(ref.faces) == 3
    roll = [abs(float(f.pose.angles_deg[0, 2])) for f in ref.faces]
    assert roll[0] > roll[2] + 5 or roll[0] > 8
    angles = [float(np.abs(f.pose.angles_deg).sum()) for f in ref.faces]
    assert ref.ani is ref.faces[int(np.argmin(angles))]
    assert ref.ani is not ref.faces[int(np.argmax(angles))]


def test_chosen_frame_gives_the_texture(tilted_clip: Path) -> None:
    """--ref_ani_id need not be among the references, and a repeated reference is read once and kept K times."""
    ref = load_reference(tilted_clip, (7, 7), 0, 256, basis())
    assert len(ref.faces) == 2
    assert ref.faces[0] is ref.faces[1]
    assert ref.ani is not ref.faces[0]
    difference = ref.ani.pose.angles_deg[0, 2] - ref.faces[0].pose.angles_deg[0, 2]
    assert abs(difference) == pytest.approx(TILT[0], abs=3)
    assert np.abs(ref.source.astype(int) - _tilted(TILT[0])).mean() < 6


def test_clip_and_picture_agree(tilted_clip: Path) -> None:
    clip = load_reference(tilted_clip, (7,), None, 256, basis())
    np.testing.assert_allclose(clip.ani.vertices, reference().ani.vertices, atol=3)
    np.testing.assert_allclose(clip.neutral, reference().neutral, atol=0.06)


def test_large_pictures_are_reduced(tmp_path: Path) -> None:
    big = tmp_path / "big.png"
    Image.fromarray(cv2.resize(portrait(), (2400, 2400), interpolation=cv2.INTER_LINEAR)).save(big)
    ref = load_reference(big, (0,), None, 256, basis())
    assert max(ref.source.shape) == MAX_SOURCE_PX
    np.testing.assert_allclose(ref.ani.vertices, reference().ani.vertices, atol=3)


def test_no_face_is_told_with_file_and_frame(tmp_path: Path) -> None:
    path = tmp_path / "wall.png"
    Image.fromarray(np.full((200, 200, 3), 150, np.uint8)).save(path)
    with pytest.raises(UserError, match=r"^--ref_video_path .*wall\.png, frame 0: no face found"):
        load_reference(path, (0,), None, 256, basis())


def test_two_faces_are_remarked_once(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """A clip with a second person: the remark names the file, and comes once for the frame that is the reference."""
    path = tmp_path / "two.mp4"
    close = portrait()[:256, 96:352]
    second = cv2.copyMakeBorder(cv2.resize(close, (200, 200)), 56, 0, 0, 0, cv2.BORDER_REPLICATE)
    both = np.concatenate([close, second], 1)
    with VideoWriter(path, both.shape[1], both.shape[0]) as video:
        for _ in range(3):
            video.write(both)
    load_reference(path, (0,), None, 256, basis())
    notes = [line for line in capfd.readouterr().err.splitlines() if line.startswith("note: ")]
    assert notes == [f"note: --ref_video_path {path}, frame 0: 2 faces; the largest is taken"]


def test_a_frame_without_a_face_gives_way_to_the_nearest(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    path = tmp_path / "fade in.mp4"
    with VideoWriter(path, 320, 320) as video:
        for k in range(6):
            video.write(np.full((320, 320, 3), 20, np.uint8) if k < 2 else _tilted(0.0))
    ref = load_reference(path, (0,), None, 256, basis())
    assert np.abs(ref.source.astype(int) - _tilted(0.0)).mean() < 6
    assert ref.ani is ref.faces[0]
    notes = [line for line in capfd.readouterr().err.splitlines() if line.startswith("note: ")]
    assert notes == [
        f"note: --ref_video_path {path}, frame 0: shows no usable face; frame 2 is taken instead"
    ]
