"""Demo samples: every clip whole and in order, references and 3D face as asked for, nothing changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from prepared import SIZE, level_of, prepare_portrait, public_clip

from data.clip_list import ListedRecords, clip_records
from data.contract import clip_paths
from data.face_fore_demo_dataset import FaceForeDemoDataset
from data.frame_choice import SamplePlan
from data.open_clips import ClipFolder
from data.training_clips import training_dataset
from face.contract_pose import reverse_rt
from face.sketch import sketch_maps
from models.geometry_stage import GeometryStage
from options.groups import DataFlags, TrainReferenceFlags
from util.batch import FaceBatch
from util.errors import UserError

N = 12  # frames of a public clip


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> ClipFolder:
    root = tmp_path_factory.mktemp("public")
    for name in ("00001", "00002"):
        public_clip(root, f"unzip/dev_video/id1/v/{name}", "vox", n_frames=N)
    return ClipFolder(root, clip_records(root, "vox"))


def shown(images: torch.Tensor) -> list[int]:
    """The numbers of the frames that these are."""
    return [level_of(((i + 1) * 127.5).numpy()) for i in images]


def test_all_clips_come_whole_and_in_order(public: ClipFolder, tmp_path: Path) -> None:
    made = FaceForeDemoDataset(public, SamplePlan(n_shot=2, n_frames=5), cache=tmp_path)
    assert len(made) == 6
    assert [made.place(k) for k in range(6)] == [(0, 0), (0, 5), (0, 7), (1, 0), (1, 5), (1, 7)]
    assert [shown(made[k].tgt_image) for k in range(3)] == [[*range(5)], [*range(5, 10)], [*range(7, 12)]]
    assert torch.equal(made[4].tgt_image, made[1].tgt_image)  # the clips are alike, and nothing is drawn
    assert shown(made[0].ref_image) == [0, 2]  # spread over the first quarter
    with pytest.raises(IndexError):
        made[6]
    made.set_epoch(3, n_frames=4)
    assert len(made) == 6
    assert FaceBatch.stack([made[k] for k in range(6)]).tgt_image.shape[:2] == (6, 4)
    with pytest.raises(UserError, match="--n_frames_G 99: none of 2 clips is as long"):
        made.set_epoch(3, n_frames=99)


def test_nearest_reference_is_warped_frame_by_frame(public: ClipFolder, tmp_path: Path) -> None:
    made = FaceForeDemoDataset(public, SamplePlan(n_frames=N), cache=tmp_path, ref_img_id=(1, 10, 4))
    sample = made[0]
    assert shown(sample.ref_image) == [1, 10, 4]
    nearest = [min((1, 10, 4), key=lambda r: abs(r - t)) for t in range(N)]
    ties = [t for t in range(N) if len({abs(r - t) for r in (1, 4, 10)}) < 3]
    warped = shown(sample.warp_image)
    assert [w for t, w in enumerate(warped) if t not in ties] == [
        n for t, n in enumerate(nearest) if t not in ties
    ]
    assert len(set(warped)) == 3
    with pytest.raises(UserError, match=f"--ref_img_id 12: .*00001_aligned.mp4 has {N} frames"):
        FaceForeDemoDataset(public, SamplePlan(), cache=tmp_path, ref_img_id=(12,))._sample(0)


@pytest.mark.parametrize("ani_frame", [None, 2])
def test_3d_face_is_that_of_the_frame_asked_for(
    public: ClipFolder, tmp_path: Path, ani_frame: int | None
) -> None:
    plan = SamplePlan(n_frames=3, geometry="video", crop_ref=True)
    sample = FaceForeDemoDataset(public, plan, cache=tmp_path, ref_ani_id=ani_frame)[1]
    paths = clip_paths(public.root, "unzip/dev_video/id1/v/00001", "vox")
    front, rt = np.load(paths.front), np.load(paths.rt)
    key = int(np.abs(rt[:, :3]).sum(1).argmin()) if ani_frame is None else ani_frame
    assert torch.equal(sample.ani_sketch, sketch_maps(reverse_rt(front[key], rt[3:6]), 256))
    assert sample.warp_flow is None
    blank = sample.template > 0
    assert (sample.warp_image == -1).all(1).any()
    assert not (sample.tgt_image.masked_select(blank) == -1).all()


def test_another_clips_face_is_shown(tmp_path: Path) -> None:
    """The reference's picture under the target's poses, rigid; and with its own clip, what training sees."""
    record = prepare_portrait(tmp_path, n_frames=24)
    folder = ClipFolder(tmp_path / "out", ListedRecords([record, replace(record, id=record.id)]))
    plan = SamplePlan(n_shot=1, n_frames=2)
    own = FaceForeDemoDataset(folder, plan, GeometryStage(), ref_img_id=(0, 9), ref_ani_id=5)
    sample = own[3]
    assert torch.equal(sample.ani_sketch, sample.tgt_sketch)
    assert sample.warp_flow.shape == (2, 2, SIZE, SIZE)
    composed = torch.lerp(sample.warp_image, sample.ani_image, sample.ani_mask)
    assert (composed - sample.tgt_image).abs().mean() < (sample.warp_image - sample.tgt_image).abs().mean()
    other = FaceForeDemoDataset(folder, plan, GeometryStage(), ref_img_id=(0, 9), ref_ani_id=5, reference=1)[
        3
    ]
    assert other.warp_flow.shape == (2, 2, SIZE, SIZE)
    assert torch.equal(other.ref_image, sample.ref_image)
    # The mesh posed by the tracker's pose, the landmarks by the contract's: about the same place.
    apart = [
        np.argwhere(s.ani_sketch[0, 0].numpy() > 0).mean(0)
        - np.argwhere((s.ani_image[0] > -1).any(0).numpy()).mean(0)
        for s in (sample, other)
    ]
    assert np.abs(apart[0] - apart[1]).max() < 4
    assert FaceForeDemoDataset(folder, replace(plan, geometry="video"), reference=1)[0].ani_image is None


def test_demo_from_flags(public: ClipFolder, tmp_path: Path) -> None:
    data = DataFlags(dataset_mode="facefore_demo", dataroot=str(public.root), fineSize=64)
    made = training_dataset(data, TrainReferenceFlags(n_shot=3), None, tmp_path, n_frames=2)
    assert isinstance(made, FaceForeDemoDataset)
    assert len(made) == N
    assert made[0].ref_image.shape == (3, 3, 64, 64)
