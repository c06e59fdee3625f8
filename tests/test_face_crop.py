"""The crop: the contract's geometry, no jitter, no aliasing, no black border, and an invisible way back."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from face.crop import (
    CropBox,
    crop_boxes,
    crop_motion,
    extract,
    extract_whole,
    from_crop,
    paste,
    photo_crop,
    to_crop,
    whole,
)
from util.errors import ShapeError, UserError


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    """A face (68, 3) whose landmark box is 90 px high and 80 px wide, eyes' mean at (300, 200)."""
    rng = np.random.default_rng(5)
    points = np.zeros((68, 3))
    points[:, 0] = rng.uniform(260, 340, 68)
    points[:, 1] = rng.uniform(190, 270, 68)
    points[[0, 16], 0] = 260, 340
    points[36:42, :2] = (285, 199)
    points[42:48, :2] = (315, 201)
    points[[8, 19], 1] = 275, 185
    return points


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """A smooth, structured 480 x 640 RGB picture."""
    noise = np.random.default_rng(7).random((480, 640, 3), np.float32)
    smooth = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 4), None, 0, 255, cv2.NORM_MINMAX)
    return smooth.astype(np.uint8)


def _ramp(height: int, width: int) -> np.ndarray:
    """Every pixel holds its own centre's x."""
    return np.tile(np.arange(width, dtype=np.float32) + 0.5, (height, 1))


def test_contract_geometry(face: np.ndarray) -> None:
    (box,) = crop_boxes(face[None])
    assert box.side == 205
    assert (box.left, box.top) == pytest.approx((200, 120))
    (larger,) = crop_boxes(1.5 * face[None])
    assert larger.side == int(205 * 1.5)
    assert (larger.left, larger.top) == pytest.approx((300, 180))


def test_last_point_of_each_eye_does_not_count(face: np.ndarray) -> None:
    other = face.copy()
    other[[41, 47], 0] += 15
    assert crop_boxes(other[None]) == crop_boxes(face[None])


def test_scale_is_fixed_and_static_stands(face: np.ndarray) -> None:
    walk = face + np.linspace(0, 40, 30)[:, None, None] * [1, 0.5, 0]
    boxes, still = crop_boxes(walk), crop_boxes(walk, static=True)
    assert {b.side for b in boxes} == {205.0}
    assert boxes[29].left - boxes[0].left == pytest.approx(40, abs=6)
    assert len(set(still)) == 1
    assert still[0].left == pytest.approx(220)


@pytest.mark.parametrize("shared", [False, True])
def test_no_jitter_on_a_still_head(face: np.ndarray, shared: bool) -> None:
    """0.7 px of noise, of each point alone or of the whole head, moves the crop by less than 0.15 px."""
    noise = np.random.default_rng(0).normal(0, 0.7, (250, 1 if shared else 68, 3))
    boxes = crop_boxes(face + noise)
    steps = np.abs(np.diff([(b.left, b.top) for b in boxes], axis=0))
    assert crop_motion(boxes) < 0.15
    assert steps.mean() < 0.1
    if not shared:
        assert steps.max() < 0.15
        assert crop_motion(boxes) < 0.05


@pytest.mark.parametrize("n_frames", [1, 2, 5])
def test_short_clips(face: np.ndarray, n_frames: int) -> None:
    boxes = crop_boxes(np.repeat(face[None], n_frames, 0))
    assert len(boxes) == n_frames
    assert boxes[0] == boxes[-1]


def test_photo_with_room_keeps_the_contract_box(face: np.ndarray) -> None:
    assert photo_crop(face, 640, 480) == crop_boxes(face[None], static=True)[0]


@pytest.mark.parametrize("shift", [(-200, 0), (0, -120), (250, 0), (0, 180), (-200, -120)])
def test_photo_window_is_shifted_into_the_picture(face: np.ndarray, shift: tuple[int, int]) -> None:
    box = photo_crop(face + np.array([*shift, 0]), 640, 480)
    assert box.side == 205
    assert 0 <= box.left <= 640 - 205
    assert 0 <= box.top <= 480 - 205


def test_small_photo_shrinks_by_a_fifth_at_most(face: np.ndarray) -> None:
    near = face - [200, 120, 0]
    fits = photo_crop(near, 180, 200)
    assert (fits.left, fits.side) == (0, 180)
    assert 0 <= fits.top <= 20
    over = photo_crop(near, 150, 200)
    assert over.side == pytest.approx(0.8 * 205)
    assert over.left <= 0
    assert over.left + over.side >= 150


def test_clip_windows_can_be_kept_inside(face: np.ndarray) -> None:
    walk = face + np.linspace(0, -320, 30)[:, None, None] * [1, 0, 0]
    boxes = crop_boxes(walk, frame_size=(640, 480))
    assert {b.side for b in boxes} == {205.0}
    assert min(b.left for b in boxes) == 0


@pytest.mark.parametrize("side", [100.0, 256.0, 333.3, 901.5, 2500.0])
def test_extract_is_accurate_below_a_pixel(side: float) -> None:
    box = CropBox(120.37, 60.81, side)
    crop = extract(_ramp(2600, 2700), box)
    centres = np.stack([np.arange(256) + 0.5, np.zeros(256)], 1)
    expected = from_crop(centres, box)[:, 0]
    error = np.abs(crop - expected)[:, 3:-3].max()
    assert crop.shape == (256, 256)
    assert error < 0.06 * max(side / 256, 1)


def test_extract_at_scale_one_copies(picture: np.ndarray) -> None:
    np.testing.assert_array_equal(extract(picture, CropBox(30, 40, 256)), picture[40:296, 30:286])


@pytest.mark.parametrize("box", [CropBox(-60, -80, 300), CropBox(500, 400, 256), CropBox(-900, -900, 50)])
def test_outside_repeats_the_edge_and_is_never_black(box: CropBox) -> None:
    picture = np.full((480, 640, 3), (200, 150, 100), np.uint8)
    np.testing.assert_array_equal(extract(picture, box), np.broadcast_to([200, 150, 100], (256, 256, 3)))


def test_edge_is_the_nearest_pixel(picture: np.ndarray) -> None:
    crop = extract(picture, CropBox(-56, 100, 256))
    np.testing.assert_array_equal(crop[:, :50], np.repeat(picture[100:356, :1], 50, 1))


@pytest.mark.parametrize("step", [1.7, 3.0, 5.3, 13.0])
def test_no_aliasing(step: float) -> None:
    """Stripes and checks too fine for the crop come out as an even grey, not as moire."""
    side = int(256 * step)
    y, x = np.mgrid[: side + 40, : side + 40]
    checks = (((x + y) % 2) * 255).astype(np.uint8)
    crop = extract(checks, CropBox(3.3, 5.7, float(side)))
    assert abs(float(crop.mean()) - 127.5) < 2
    assert crop.std() < (22 if step < 2 else 9)


def test_8k_photo() -> None:
    photo = np.random.default_rng(1).integers(0, 256, (4320, 7680, 3), dtype=np.uint8)
    crop = extract(photo, CropBox(1500.5, 10.25, 4300))
    assert crop.shape == (256, 256, 3)
    assert crop.std() < 8


@pytest.mark.parametrize("shape", [(300, 400), (300, 400, 1), (300, 400, 4)])
def test_extract_of_other_channel_counts(shape: tuple[int, ...]) -> None:
    crop = extract(np.full(shape, 9, np.uint8), CropBox(10, 10, 200), size=128)
    assert crop.shape[:2] == (128, 128)
    assert (crop == 9).all()


def test_points_go_and_come_back() -> None:
    box = CropBox(12.5, -7.25, 300)
    points = np.random.default_rng(2).uniform(0, 400, (4, 68, 3))
    there = to_crop(points, box)
    np.testing.assert_allclose(from_crop(there, box), points, atol=1e-3)
    np.testing.assert_allclose(to_crop(np.array([12.5, -7.25, 30]), box), [0, 0, 30 * 256 / 300], atol=1e-4)
    np.testing.assert_allclose(to_crop(np.array([[312.5, 292.75]]), box, 512), [[512, 512]], atol=1e-4)


def test_points_follow_the_picture() -> None:
    """A bright dot at a point is found in the crop where `to_crop` says."""
    dots = np.zeros((480, 640), np.uint8)
    dots[200:204, 300:304] = 255  # centre at (302, 202)
    box = CropBox(180.4, 90.3, 230)
    crop = extract(dots, box).astype(float)
    y, x = np.mgrid[:256, :256] + 0.5
    found = (x * crop).sum() / crop.sum(), (y * crop).sum() / crop.sum()
    assert found == pytest.approx(to_crop(np.array([302.0, 202.0]), box).tolist(), abs=0.05)


BOXES = [
    CropBox(100.3, 80.6, 256),
    CropBox(100.3, 80.6, 390.5),
    CropBox(-70.2, -40.9, 300),
    CropBox(420, 300, 256),
]


@pytest.mark.parametrize("box", BOXES)
def test_pasting_what_was_cut_changes_nothing(picture: np.ndarray, box: CropBox) -> None:
    back = paste(picture, extract(picture, box), box)
    assert back.shape == picture.shape
    assert back.dtype == np.uint8
    assert np.abs(back.astype(int) - picture).max() <= 4


@pytest.mark.parametrize("box", BOXES)
def test_no_box_is_visible(box: CropBox) -> None:
    """A patch 60 levels brighter: full in the middle, gone at the box, no step of more than 6 levels."""
    frame = np.full((480, 640, 3), 90, np.uint8)
    back = paste(frame, np.full((256, 256, 3), 150, np.uint8), box, feather=0.1)[..., 0].astype(int)
    steps = [np.abs(np.diff(back, axis=a)).max() for a in (0, 1)]
    assert max(steps) <= 6
    outside = np.ones((480, 640), bool)
    x0, y0 = max(int(box.left), 0), max(int(box.top), 0)
    outside[y0 : int(box.top + box.side) + 1, x0 : int(box.left + box.side) + 1] = False
    assert (back[outside] == 90).all()
    assert back[int(box.top + box.side / 2), int(box.left + box.side / 2)] == 150


def test_paste_shrinks_a_large_patch_without_aliasing() -> None:
    y, x = np.mgrid[:1024, :1024]
    checks = np.repeat((((x + y) % 2) * 255).astype(np.uint8)[..., None], 3, 2)
    back = paste(np.full((480, 640, 3), 128, np.uint8), checks, CropBox(100, 100, 200))
    assert np.abs(back.astype(int) - 128).max() < 12


def test_paste_outside_the_frame_and_input_untouched(picture: np.ndarray) -> None:
    patch, before = np.zeros((64, 64, 3), np.uint8), picture.copy()
    np.testing.assert_array_equal(paste(picture, patch, CropBox(900, 900, 50)), before)
    assert (paste(picture, patch, CropBox(100, 100, 50)) != before).any()
    np.testing.assert_array_equal(picture, before)


def test_refusals(face: np.ndarray, picture: np.ndarray) -> None:
    with pytest.raises(ShapeError, match=r"needed \(T, 68, 2 or 3\)"):
        crop_boxes(face)
    with pytest.raises(ShapeError, match=r"landmarks: shape \(1, 68, 3\), needed \(68, "):
        photo_crop(face[None], 640, 480)
    with pytest.raises(UserError, match="not finite"):
        crop_boxes(face[None] * np.nan)
    with pytest.raises(UserError, match="landmarks are missing"):
        crop_boxes(face[None][:0])
    with pytest.raises(UserError, match="feather"):
        paste(picture, picture[:64, :64], CropBox(0, 0, 64), feather=0.7)


@pytest.mark.parametrize(
    "box", [(100, 60, 180), (40, 30, 256), (200, 120, 290), (-30, -20, 400), (300, 200, 300)]
)
def test_whole_boxes_are_cut_out_alike_but_faster(picture: np.ndarray, box: tuple[int, int, int]) -> None:
    box = CropBox(*map(float, box))
    difference = np.abs(extract_whole(picture, box).astype(int) - extract(picture, box))
    assert difference.mean() < 0.6
    assert difference.max() < 8


@pytest.mark.parametrize("side", [200, 256, 300, 640])
def test_whole_boxes_keep_the_place(side: int) -> None:
    """A ramp tells where each pixel was taken from."""
    ramp = np.repeat(_ramp(640, 640)[..., None], 3, 2)
    cut = extract_whole(ramp, CropBox(0.0, 0.0, float(side)), 128)[64, :, 0]
    wanted = (np.arange(128) + 0.5) * side / 128
    np.testing.assert_allclose(cut[4:-4], wanted[4:-4], atol=0.1)


def test_a_box_beside_the_picture_is_its_edge(picture: np.ndarray) -> None:
    cut = extract_whole(picture, CropBox(-500.0, 0.0, 300.0), 64)
    assert np.ptp(cut.astype(int), axis=1).max() == 0


def test_whole_boxes_are_the_nearest() -> None:
    assert whole(CropBox(10.4, -3.6, 0.2)) == CropBox(10.0, -4.0, 1.0)
