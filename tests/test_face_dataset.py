"""Training samples: the same for any number of workers; selection as the data contract says; geometry that fits."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from data.clip_store import StoredClip, prepare_clips, store_rows
from data.face_dataset import N_ANCHORS, FaceDataset, SamplePlan, mirror, reference_face, sampling_weights
from data.training_clips import training_dataset
from face.expression_basis import load_basis
from face.landmarks68 import to_landmarks68
from face.part_boxes import face_boxes, mouth_boxes, template_masks
from face.pose import Pose, rotation_from_angles, to_canonical
from models.geometric import FaceMotion, GeometricGenerator
from models.geometry_stage import GeometryStage
from options.groups import DataFlags, TrainReferenceFlags
from tests.clips import moving_portrait
from util.batch import FaceBatch
from util.errors import UserError

SIZE = 128


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    moving_portrait(folder / "clips" / "a.mp4")
    return folder


@pytest.fixture(scope="module")
def clips(root: Path) -> list[StoredClip]:
    return prepare_clips(store_rows(root / "clips"), root / "store", root / "tracks", SIZE)


def dataset(clips: list[StoredClip], **plan: object) -> FaceDataset:
    return FaceDataset(clips, SamplePlan(**{"n_shot": 3, "epoch_samples": 4, **plan}), GeometryStage())


def made_up_clip(name: str, n_frames: int = 40, gap_at: int | None = None) -> StoredClip:
    """A clip that turns from -20 to 20 degrees and opens its mouth more and more; it has no file."""
    angles = np.zeros((n_frames, 3))
    angles[:, 0] = np.linspace(-20, 20, n_frames)
    pose = Pose(
        rotation_from_angles(angles), np.ones(n_frames, np.float32), np.zeros((n_frames, 3), np.float32)
    )
    number = np.arange(n_frames) + (0 if gap_at is None else 3 * (np.arange(n_frames) >= gap_at))
    return StoredClip(Path(name), name, number, pose, np.linspace(0, 0.2, n_frames).astype(np.float32))


def choices(plan: SamplePlan, clips: list[StoredClip], n: int = 60) -> list:
    made = FaceDataset(clips, plan)
    return [made.choose(0, np.random.default_rng(k)) for k in range(n)]


def warp(image: Tensor, flow: Tensor) -> Tensor:
    side = image.shape[-1]
    axis = torch.arange(float(side))
    grid = torch.stack([axis + flow[:, 0], axis[:, None] + flow[:, 1]], -1) * (2 / (side - 1)) - 1
    return F.grid_sample(image, grid, padding_mode="border", align_corners=True)


def same(one: FaceBatch, other: FaceBatch) -> bool:
    return all(torch.equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))


def test_shapes_and_ranges(clips: list[StoredClip]) -> None:
    sample = dataset(clips, n_frames=2)[0]
    assert sample.tgt_image.shape == sample.warp_image.shape == sample.ani_image.shape == (2, 3, SIZE, SIZE)
    assert sample.ref_image.shape == (3, 3, SIZE, SIZE)
    assert sample.warp_flow.shape == (2, 2, SIZE, SIZE)
    assert sample.face_box.shape == sample.mouth_box.shape == (2, 4)
    for name in ("tgt_sketch", "warp_sketch", "ani_sketch", "template", "ani_mask"):
        values = getattr(sample, name)
        assert values.shape == (2, 1, SIZE, SIZE)
        assert values.min() == 0, name
        assert values.max() == 1, name
    for name in ("tgt_image", "ref_image", "warp_image", "ani_image"):
        assert -1 <= getattr(sample, name).min() < getattr(sample, name).max() <= 1
    assert all(getattr(sample, f.name).dtype == torch.float32 for f in fields(sample))
    assert not any(getattr(sample, f.name).is_inference() for f in fields(sample))
    assert FaceBatch.stack([sample, sample]).frame(1).warp_flow.shape == (2, 2, SIZE, SIZE)


def test_same_data_for_any_number_of_workers(clips: list[StoredClip]) -> None:
    made = dataset(clips)
    made.set_epoch(2)
    alone = [made[k] for k in range(4)]
    loader = DataLoader(made, 2, collate_fn=FaceBatch.stack, num_workers=2)
    shared = FaceBatch.concatenate(list(loader))
    assert same(shared, FaceBatch.stack(alone))
    assert same(dataset_at(clips, 2)[3], alone[3])  # a resumed training: nothing was drawn before
    made.set_epoch(3)
    assert not torch.equal(made[3].tgt_image, alone[3].tgt_image)
    with pytest.raises(IndexError):
        made[4]


def dataset_at(clips: list[StoredClip], epoch: int) -> FaceDataset:
    made = dataset(clips)
    made.set_epoch(epoch)
    return made


def test_mirror_is_consistent(clips: list[StoredClip]) -> None:
    sample = dataset(clips, augment=False)[0]
    other = mirror(sample)
    warped = warp(sample.warp_image, sample.warp_flow)
    torch.testing.assert_close(warp(other.warp_image, other.warp_flow), warped.flip(-1), atol=1e-3, rtol=0)
    assert same(mirror(other), sample)
    for box in ("face_box", "mouth_box"):
        (x0, y0, x1, y1), m = getattr(sample, box)[0].int().tolist(), getattr(other, box)[0].int().tolist()
        cut = sample.tgt_image[0, :, y0:y1, x0:x1]
        assert torch.equal(other.tgt_image[0, :, m[1] : m[3], m[0] : m[2]], cut.flip(-1))


def test_augmentation_is_shared_by_all_images(clips: list[StoredClip]) -> None:
    plain, changed = dataset(clips, augment=False), dataset(clips)
    ratios = []
    for k in range(4):
        one, two = plain[k], changed[k]
        mirrored = (one.tgt_sketch != two.tgt_sketch).any()
        two = mirror(two) if mirrored else two
        assert torch.equal(one.tgt_sketch, two.tgt_sketch)
        shift = [(getattr(two, n) - getattr(one, n)).mean() for n in ("tgt_image", "ref_image", "warp_image")]
        assert max(shift) - min(shift) < 0.02
        assert torch.equal(one.ani_image == -1, two.ani_image == -1) or (two.ani_image == -1).any()
        ratios.append((float(shift[0]), bool(mirrored)))
    assert len(set(ratios)) == 4


def test_composition_is_the_geometric_generators_frame(clips: list[StoredClip]) -> None:
    made, clip = dataset(clips, augment=False), clips[0]
    choice = made.choose(0, np.random.default_rng([0, 0, 0]))
    sample = made[0]
    composed = torch.lerp(warp(sample.warp_image, sample.warp_flow), sample.ani_image, sample.ani_mask)
    faces = [reference_face(clip, k) for k in (choice.warped, choice.open_mouth)]
    generator = GeometricGenerator(faces[0], load_basis(), faces[1], depth=1.0, crispness=0.0)
    pose = clip.pose[list(choice.targets)]
    meshes = to_canonical(clip.vertices(choice.targets), pose)
    image = generator(FaceMotion(meshes, pose, np.zeros((1, 2), np.float32))).image * 2 - 1
    assert (composed - image).abs().mean() < 2e-3
    assert (sample.tgt_image - image).abs().mean() < (sample.tgt_image - sample.warp_image).abs().mean()


def test_crop_ref_blanks_eyes_and_mouth(clips: list[StoredClip]) -> None:
    whole, blanked = (dataset(clips, crop_ref=crop, augment=False)[1] for crop in (False, True))
    boxes = blanked.template > 0
    assert (blanked.ani_image.masked_select(boxes) == -1).all()
    assert torch.equal(blanked.ani_image.masked_fill(boxes, 0), whole.ani_image.masked_fill(boxes, 0))
    lost = (blanked.warp_image != whole.warp_image).any(1)
    assert 0.01 < lost.float().mean() < 0.15
    assert (blanked.warp_image.movedim(1, -1)[lost] == -1).all()
    for name in ("tgt_image", "ref_image", "warp_flow", "ani_mask"):
        assert torch.equal(getattr(whole, name), getattr(blanked, name))


def test_template_is_the_data_contracts(golden: dict[str, np.ndarray]) -> None:
    wanted = np.unpackbits(golden["mask_get_roi_t4"], axis=1)
    masks = template_masks(golden["lmark_smoothed"][4:5], 256)
    assert (masks[0, 0].numpy() == wanted).all()
    half = template_masks(golden["lmark_smoothed"][4:5] / 2, 128)[0, 0]
    assert abs(float(half.mean()) - wanted.mean()) < 0.005


def test_boxes_are_squares_inside_the_picture(clips: list[StoredClip]) -> None:
    landmarks = to_landmarks68(clips[0].vertices([0, 5]))
    near = landmarks - [[[landmarks[0, :, 0].min(), landmarks[0, :, 1].min(), 0]]]
    for points in (landmarks, near, near * 3):
        for boxes in (face_boxes(points, SIZE), mouth_boxes(points, SIZE)):
            assert torch.equal(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
            assert boxes.min() >= 0
            assert boxes.max() <= SIZE
            assert torch.equal(boxes, boxes.round())
    face, mouth = face_boxes(landmarks, SIZE), mouth_boxes(landmarks, SIZE)
    assert (face[:, :2] <= mouth[:, :2]).all()
    assert (mouth[:, 2:] <= face[:, 2:]).all()


def test_references_come_first_and_targets_after(clips: list[StoredClip]) -> None:
    clip = made_up_clip("a")
    warped = set()
    for c in choices(SamplePlan(n_shot=4, n_frames=3), [clip], 200):
        assert len(set(c.references)) == 4
        assert max(c.references) < 10 <= min(c.targets)
        assert c.warped in c.references
        assert np.diff(c.targets).tolist() == [1, 1]
        warped.add(c.warped)
    assert 2 <= len(warped) <= N_ANCHORS
    many = choices(SamplePlan(n_shot=16), [clip], 5)  # max(T - int(0.75 T), n_shot)
    assert all(len(set(c.references)) == 16 and max(c.references) == 15 for c in many)
    short = choices(SamplePlan(n_shot=8), [made_up_clip("s", 6)], 5)  # fewer frames than references
    assert all(len(c.references) == 8 and max(c.references) < min(c.targets) == 5 for c in short)


def test_worst_reference_is_warped() -> None:
    """The clip turns one way: the first frame drawn is farthest from any target."""
    plan = SamplePlan(n_shot=6, worst_ref_prob=1.0)
    assert all(c.warped == 0 for c in choices(plan, [made_up_clip("a")]))
    random = choices(replace(plan, worst_ref_prob=0.0), [made_up_clip("a")])
    assert len({c.warped for c in random}) > 3
    mixed = choices(replace(plan, worst_ref_prob=0.75), [made_up_clip("a")], 300)
    assert 0.7 < np.mean([c.warped == 0 for c in mixed]) < 0.9  # 0.75 + 0.25 / 6


def test_open_mouths_are_preferred() -> None:
    clip = made_up_clip("a", 200)  # of the 50 reference frames, the last 16 have the mouth most open

    def others(preferred: bool) -> np.ndarray:
        plan = SamplePlan(n_shot=2, find_largest_mouth=preferred)
        return np.array([k for c in choices(plan, [clip], 400) for k in c.references if k != c.warped])

    # Chance gives 16 of 50; preferred in 0.4 of the samples, 0.4 + 0.6 x 0.32 of them.
    assert 0.25 < (others(False) >= 34).mean() < 0.4
    assert 0.52 < (others(True) >= 34).mean() < 0.67


def test_targets_never_span_a_gap() -> None:
    clip = made_up_clip("a", 40, gap_at=20)
    for c in choices(SamplePlan(n_frames=4), [clip], 100):
        assert np.ptp(clip.number[list(c.targets)]) == 3


def test_longer_slices_leave_short_clips_out(capsys: pytest.CaptureFixture[str]) -> None:
    made = FaceDataset([made_up_clip("a", 30), made_up_clip("b", 60)], SamplePlan())
    assert len(made) == 2
    made.set_epoch(1, n_frames=40)
    assert [c.identity for c in made.clips] == ["b"]
    assert "1 clips are shorter" in capsys.readouterr().err
    with pytest.raises(UserError, match="n_frames_G 90"):
        made.set_epoch(1, n_frames=90)


def test_order_and_weights_of_clips() -> None:
    clips = [made_up_clip(n, k) for n, k in (("a", 40), ("b", 40), ("c", 80))]
    rng = np.random.default_rng(0)
    serial = FaceDataset(clips, SamplePlan(serial=True, epoch_samples=5))
    assert [serial.choose(k, rng).clip for k in range(5)] == [0, 1, 2, 0, 1]
    each = FaceDataset(clips, SamplePlan())
    orders = set()
    for epoch in range(6):
        each.set_epoch(epoch)
        order = tuple(each.choose(k, rng).clip for k in range(3))
        assert sorted(order) == [0, 1, 2]
        orders.add(order)
    assert len(orders) > 1
    weighted = FaceDataset(clips, SamplePlan(epoch_samples=9))
    drawn = np.bincount([weighted.choose(0, rng).clip for _ in range(3000)]) / 3000
    np.testing.assert_allclose(drawn, sampling_weights("abc", [40, 40, 80]), atol=0.03)
    share = sampling_weights(["x", "x", "y"], [300, 100, 100])
    np.testing.assert_allclose(share, [0.5, 1 / 6, 1 / 3])  # sqrt(400) to sqrt(100)


def test_geometry_stage_keeps_the_last_used(clips: list[StoredClip]) -> None:
    clip, stage, made = clips[0], GeometryStage(capacity=2), []
    pose = clip.pose[[9]]
    meshes = to_canonical(clip.vertices([9]), pose)

    def faces(k: int):
        made.append(k)
        return reference_face(clip, k), reference_face(clip, 0)

    for k in (0, 1, 0, 2, 0, 1):
        stage(k, lambda k=k: faces(k), meshes, pose)
    assert made == [0, 1, 2, 1]
    at_rest = stage("own", lambda: faces(9), meshes, pose)
    assert at_rest.flow.abs().max() < 0.05


def test_dataset_from_flags(root: Path, clips: list[StoredClip], tmp_path: Path) -> None:
    data = DataFlags(dataroot=str(root / "clips"), fineSize=64, epoch_samples=7)
    made = training_dataset(data, TrainReferenceFlags(n_shot=2, crop_ref=True), None, root / "cache", seed=3)
    assert len(made) == 7
    assert made[0].ref_image.shape == (2, 3, 64, 64)
    assert made[0].warp_flow is None
    assert (made.plan.crop_ref, made.plan.seed, made.plan.augment) == (True, 3, True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no usable clip"):
        training_dataset(
            replace(data, dataroot=str(tmp_path / "empty")), TrainReferenceFlags(), None, tmp_path
        )
