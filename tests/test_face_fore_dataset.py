"""Training samples: the same for any number of workers; selection as the data contract says; geometry that fits."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from prepared import SIZE, level_of, public_clip
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from data import prepared_clip
from data.clip_list import ListedRecords, clip_records
from data.contract import ClipRecord, clip_paths
from data.face_fore_dataset import FaceForeDataset, sampling_weights
from data.face_sample import (
    Look,
    SampleFrames,
    mirror,
    plain_sample,
    reference_face,
    with_mesh,
    with_video,
)
from data.frame_choice import SamplePlan, choose_frames
from data.open_clips import ClipFolder, OpenClips
from data.prepared_clip import ClipFiles, PreparedClip
from data.preprocessing.prepare_clip import ClipTools
from data.training_clips import DATASETS, dataset_class, training_dataset
from face.contract_pose import reverse_rt
from face.expression_basis import load_basis
from face.part_boxes import face_boxes, mouth_boxes, template_masks
from face.pose import to_canonical
from face.sketch import sketch_maps
from models.ani_frames import clip_tools
from models.geometric import FaceMotion, GeometricGenerator
from models.geometry_stage import GeometryStage
from options.groups import DataFlags, TrainReferenceFlags
from tests.clips import moving_portrait
from util.batch import FaceBatch
from util.errors import UserError


@pytest.fixture(scope="module")
def clip(prepared: Path) -> PreparedClip:
    return PreparedClip.open(ClipFiles.of(clip_paths(prepared, "clips/ann/a", "folder")))


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two GRID speakers by the public code's names, without 3D projection videos, and a vox clip with one."""
    root = tmp_path_factory.mktemp("public")
    for id_ in ("align/s3/a", "align/s4/b"):
        public_clip(root, id_, "grid", ani=False)
    public_clip(root, "unzip/dev_video/id1/v/00001", "vox")
    return root


def folder(root: Path, dataset: str = "folder") -> ClipFolder:
    return ClipFolder(root, clip_records(root, dataset))


def dataset(prepared: Path, **plan: object) -> FaceForeDataset:
    made = SamplePlan(**{"n_shot": 3, "epoch_samples": 4, **plan})
    return FaceForeDataset(folder(prepared), made, GeometryStage())


def warp(image: Tensor, flow: Tensor) -> Tensor:
    side = image.shape[-1]
    axis = torch.arange(float(side))
    grid = torch.stack([axis + flow[:, 0], axis[:, None] + flow[:, 1]], -1) * (2 / (side - 1)) - 1
    return F.grid_sample(image, grid, padding_mode="border", align_corners=True)


def same(one: FaceBatch, other: FaceBatch) -> bool:
    return all(torch.equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))


def test_shapes_and_ranges(prepared: Path) -> None:
    sample = dataset(prepared, n_frames=2)[0]
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


def test_same_data_for_any_number_of_workers(prepared: Path) -> None:
    made = dataset(prepared)
    made.set_epoch(2)
    alone = [made[k] for k in range(4)]
    loader = DataLoader(made, 2, collate_fn=FaceBatch.stack, num_workers=2)
    shared = FaceBatch.concatenate(list(loader))
    assert same(shared, FaceBatch.stack(alone))
    assert same(dataset_at(prepared, 2)[3], alone[3])  # a resumed training: nothing was drawn before
    made.set_epoch(3)
    assert not torch.equal(made[3].tgt_image, alone[3].tgt_image)
    with pytest.raises(IndexError):
        made[4]


def dataset_at(prepared: Path, epoch: int) -> FaceForeDataset:
    made = dataset(prepared)
    made.set_epoch(epoch)
    return made


def test_mirror_is_consistent(prepared: Path) -> None:
    sample = dataset(prepared, augment=False)[0]
    other = mirror(sample)
    warped = warp(sample.warp_image, sample.warp_flow)
    torch.testing.assert_close(warp(other.warp_image, other.warp_flow), warped.flip(-1), atol=1e-3, rtol=0)
    assert same(mirror(other), sample)
    for box in ("face_box", "mouth_box"):
        (x0, y0, x1, y1), m = getattr(sample, box)[0].int().tolist(), getattr(other, box)[0].int().tolist()
        cut = sample.tgt_image[0, :, y0:y1, x0:x1]
        assert torch.equal(other.tgt_image[0, :, m[1] : m[3], m[0] : m[2]], cut.flip(-1))


@pytest.mark.parametrize("geometry", ["mesh", "video", "none"])
def test_mirrored_samples_are_the_mirror_image(clip: PreparedClip, geometry: str) -> None:
    """Pictures are mirrored as bytes and sketches as they are drawn: the same as the finished sample's mirror image."""
    plan, stage = SamplePlan(n_shot=3, n_frames=2, crop_ref=True), GeometryStage()
    choice = choose_frames(clip, plan, True, np.random.default_rng(1))
    at = [choice.references.index(choice.warped)] * 2

    def made(look: Look) -> FaceBatch:
        batch = plain_sample(clip, clip, SampleFrames(choice.references, choice.targets, at), look, True)
        if geometry == "mesh":
            return with_mesh(batch, clip, choice, stage, look, True)
        return with_video(batch, clip, choice.targets, look, True) if geometry == "video" else batch

    one, other = made(Look(bias=0.05, mirrored=True)), mirror(made(Look(bias=0.05)))
    for f in fields(one):
        assert (getattr(one, f.name) is None) == (getattr(other, f.name) is None)
        if getattr(one, f.name) is not None:
            assert torch.equal(getattr(one, f.name), getattr(other, f.name)), f.name


def test_augmentation_is_shared_by_all_images(prepared: Path) -> None:
    plain, changed = dataset(prepared, augment=False), dataset(prepared)
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


def test_composition_is_the_geometric_generators_frame(prepared: Path, clip: PreparedClip) -> None:
    made = dataset(prepared, augment=False)
    choice = choose_frames(clip, made.plan, True, np.random.default_rng([0, 0, 0]))
    sample = made[0]
    composed = torch.lerp(warp(sample.warp_image, sample.warp_flow), sample.ani_image, sample.ani_mask)
    faces = [reference_face(clip, k) for k in (choice.warped, choice.open_mouth)]
    generator = GeometricGenerator(faces[0], load_basis(), faces[1], depth=1.0, crispness=0.0)
    pose = clip.pose[list(choice.targets)]
    meshes = to_canonical(clip.vertices(choice.targets), pose)
    image = generator(FaceMotion(meshes, pose, np.zeros((1, 2), np.float32))).image * 2 - 1
    assert (composed - image).abs().mean() < 2e-3
    assert (sample.tgt_image - image).abs().mean() < (sample.tgt_image - sample.warp_image).abs().mean()


def test_crop_ref_blanks_eyes_and_mouth(prepared: Path) -> None:
    whole, blanked = (dataset(prepared, crop_ref=crop, augment=False)[1] for crop in (False, True))
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


def test_boxes_are_squares_inside_the_picture(clip: PreparedClip) -> None:
    landmarks = clip.landmarks[[0, 5]]
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


def records(*frames: int, speakers: str = "abcdefgh") -> ListedRecords:
    made = (ClipRecord(f"clips/{k}", "folder", s, "train", n, n, 0, "", "", 0, 25.0)
            for k, (s, n) in enumerate(zip(speakers, frames, strict=False)))  # fmt: skip
    return ListedRecords(made)


def test_longer_slices_leave_short_clips_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = FaceForeDataset(ClipFolder(tmp_path, records(30, 60)), SamplePlan())
    assert len(made) == 2
    made.set_epoch(1, n_frames=40)
    assert made.usable.tolist() == [1]
    assert "1 clips are shorter" in capsys.readouterr().err
    with pytest.raises(UserError, match="n_frames_G 90"):
        made.set_epoch(1, n_frames=90)


def test_order_and_weights_of_clips(tmp_path: Path) -> None:
    clips = ClipFolder(tmp_path, records(40, 40, 80))
    serial = FaceForeDataset(clips, SamplePlan(serial=True, epoch_samples=5))
    assert serial._clip_of.tolist() == [0, 1, 2, 0, 1]
    each = FaceForeDataset(clips, SamplePlan())
    orders = set()
    for epoch in range(6):
        each.set_epoch(epoch)
        orders.add(tuple(each._clip_of.tolist()))
        assert sorted(each._clip_of) == [0, 1, 2]
    assert len(orders) > 1
    weighted = FaceForeDataset(clips, SamplePlan(epoch_samples=3000))
    drawn = np.bincount(weighted._clip_of) / 3000
    np.testing.assert_allclose(drawn, sampling_weights([0, 1, 2], [40, 40, 80]), atol=0.03)
    share = sampling_weights(["x", "x", "y"], [300, 100, 100])
    np.testing.assert_allclose(share, [0.5, 1 / 6, 1 / 3])  # sqrt(400) to sqrt(100)


def test_nothing_is_opened_before_it_is_asked_for(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(prepared_clip.PreparedClip, "open", lambda *_, **__: pytest.fail("opened"))
        made = dataset(prepared)
        made.set_epoch(3, 2)
    assert made[1].tgt_image.shape[0] == 2


def test_open_clips_are_few(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    plain = prepared_clip.PreparedClip.open
    monkeypatch.setattr(
        prepared_clip.PreparedClip,
        "open",
        lambda *a, **k: opened.append(a[0].video.path.stem) or plain(*a, **k),
    )
    kept = OpenClips(folder(public, "grid"), None, None, with_ani=False, limit=50)  # one of 40 frames
    [kept[k] for k in (0, 0, 1, 0)]
    assert opened == ["a_crop", "b_crop", "a_crop"]
    roomy = OpenClips(folder(public, "grid"), None, None, with_ani=False, limit=80)
    opened.clear()
    [roomy[k] for k in (0, 0, 1, 0)]
    assert opened == ["a_crop", "b_crop"]


def test_public_clips_give_their_own_3d_image(public: Path, tmp_path: Path) -> None:
    plan = SamplePlan(n_shot=2, n_frames=2, augment=False, warp_choice="nearest")
    made = FaceForeDataset(folder(public, "vox"), plan, GeometryStage(), cache=tmp_path)
    assert (made.has_ani, made.has_flow) == (True, False)
    sample = made[0]
    clip = made.clip(0)
    choice = choose_frames(clip, plan, False, np.random.default_rng([0, 0, 0]))
    shown = [level_of(((i + 1) * 127.5).numpy()) for i in (*sample.ref_image, *sample.tgt_image)]
    assert shown == [*choice.references, *choice.targets]
    assert level_of(((sample.warp_image[0] + 1) * 127.5).numpy()) == choice.warped == max(choice.references)
    assert sample.warp_flow is None
    inside = sample.ani_mask[0, 0] > 0
    assert inside.sum() == pytest.approx(100 * 100, rel=0.03)
    assert (sample.ani_image[0][:, ~inside] == -1).all()
    level = float((sample.ani_image[0][:, inside].mean() + 1) * 127.5)
    assert level == pytest.approx(100 + choice.targets[0], abs=2)
    paths = clip_paths(public, "unzip/dev_video/id1/v/00001", "vox")
    rt, front = np.load(paths.rt), np.load(paths.front)
    key = int(np.abs(rt[:, :3]).sum(1).argmin())
    wanted = sketch_maps(reverse_rt(front[key], rt[list(choice.targets)]), 256)
    assert torch.equal(sample.ani_sketch, wanted)
    assert not torch.equal(sample.ani_sketch, sample.tgt_sketch)
    other = mirror(sample)
    assert other.warp_flow is None
    assert torch.equal(other.ani_image, sample.ani_image.flip(-1))
    cropped = FaceForeDataset(folder(public, "vox"), replace(plan, crop_ref=True), None, cache=tmp_path)[0]
    blank = template_masks(reverse_rt(front[key], rt[list(choice.targets)]), 256) > 0
    assert (cropped.ani_image.masked_select(blank) == -1).all()
    assert not list(public.rglob("*.safetensors"))  # nothing is written among the clips


def test_clips_without_a_3d_image_lack_its_fields(public: Path) -> None:
    made = FaceForeDataset(folder(public, "grid"), SamplePlan(n_shot=2), GeometryStage(), size=128)
    assert not made.has_ani
    sample = made[1]
    assert {f.name for f in fields(sample) if getattr(sample, f.name) is None} == {
        "warp_flow", "ani_image", "ani_sketch", "ani_mask"}  # fmt: skip
    assert sample.tgt_image.shape == (1, 3, 128, 128)
    assert FaceBatch.stack([sample, made[0]]).frame(0).ani_image is None


def test_3d_image_of_ours_by_video_is_nearly_the_meshs(prepared: Path) -> None:
    by_mesh, by_video = (dataset(prepared, augment=False, n_shot=1, geometry=g)[0] for g in ("mesh", "video"))
    assert by_video.warp_flow is None
    assert torch.equal(by_video.ani_sketch, by_video.tgt_sketch)
    plan = SamplePlan(n_shot=1, epoch_samples=4, augment=False, geometry="none")
    plain = FaceForeDataset(folder(prepared), plan)
    assert plain[0].ani_image is None
    assert torch.equal(by_mesh.tgt_image, by_video.tgt_image)
    # One shows the reference that is warped, the other the key frame; edges and mouth differ.
    inside = (by_video.ani_mask > 0) & (by_mesh.ani_mask > 0.9)
    assert inside.sum() > 0.9 * (by_mesh.ani_mask > 0.9).sum() > 1000
    assert (by_mesh.ani_image - by_video.ani_image).abs().masked_select(inside).mean() < 0.1


def test_geometry_stage_keeps_the_last_used(clip: PreparedClip) -> None:
    stage, made = GeometryStage(capacity=2), []
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


def test_registry_has_the_flags_words() -> None:
    mode = next(f for f in fields(DataFlags) if f.name == "dataset_mode")
    assert set(DATASETS) == set(mode.metadata["choices"])
    assert {dataset_class(m).__name__ for m in DATASETS} == {"FaceForeDataset", "FaceForeDemoDataset"}
    with pytest.raises(UserError, match="choose one of facefore, facefore_demo"):
        dataset_class("face")


def test_dataset_from_flags(prepared: Path, tmp_path: Path) -> None:
    data = DataFlags(dataroot=str(prepared), fineSize=64, epoch_samples=7)
    reference = TrainReferenceFlags(n_shot=2, crop_ref=True, warp_choice="nearest", geometry="video")
    made = training_dataset(data, reference, GeometryStage(), tmp_path, seed=3)
    assert len(made) == 7
    assert made[0].ref_image.shape == (2, 3, 64, 64)
    assert made[0].warp_flow is None
    plan = made.plan
    assert (plan.crop_ref, plan.seed, plan.augment, plan.warp_choice, plan.geometry) == (
        True, 3, True, "nearest", "video")  # fmt: skip
    with pytest.raises(UserError, match="no usable clip to validate with"):
        training_dataset(data, reference, None, tmp_path, split="dev")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no clips|no usable clip"):
        training_dataset(replace(data, dataroot=str(tmp_path / "empty")), reference, None, tmp_path)


def test_raw_clips_are_prepared_once(tmp_path: Path) -> None:
    moving_portrait(tmp_path / "raw" / "ann" / "a.mp4", n_frames=24)
    (tmp_path / "raw" / "b.mp4").write_bytes(b"no video at all")
    data = DataFlags(dataroot=str(tmp_path / "raw"), fineSize=64, nThreads=0)
    tools = ClipTools(**clip_tools())
    source = (data, TrainReferenceFlags(), GeometryStage(), tmp_path / "cache")
    made = training_dataset(*source, tools=tools)
    assert [r.speaker for r in made.source.records] == ["ann"]
    assert made[0].warp_flow.shape == (1, 2, 64, 64)
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache" / "prepared").rglob("*.mp4")}
    assert len(training_dataset(*source, tools=tools)) == 1
    assert {p: p.stat().st_mtime_ns for p in files} == files
    assert not (tmp_path / "raw" / "clips.jsonl").exists()
    (tmp_path / "raw" / "ann" / "a.mp4").unlink()
    with pytest.raises(UserError, match="no usable clip"):  # what was taken out is no longer trained on
        training_dataset(*source, tools=tools)
