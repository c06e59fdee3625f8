"""From the flags of a training to its data: prepared clips are found, or raw ones prepared once, and drawn from."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from data.clip_list import clip_records, is_prepared
from data.contract import RawClip
from data.face_sample import GeometryStage
from data.frame_choice import SamplePlan
from data.layouts import find_clips
from data.open_clips import ClipFolder, PreparedClips, ShardClips
from data.pack import MANIFEST
from data.preprocessing.prepare_clip import ClipSettings, ClipTools
from data.preprocessing.run import RunPlan, prepare_clips
from data.shards import is_shards, open_shards
from options.groups import DataFlags, TrainReferenceFlags
from options.preprocess import QualityGates
from util.errors import UserError, remark

DATASETS = {  # --dataset_mode, looked up when asked for: a class with a `from_flags`
    "facefore": "data.face_fore_dataset:FaceForeDataset",
    "facefore_demo": "data.face_fore_demo_dataset:FaceForeDemoDataset",
}
# Who trains on a folder of their own wants its clips in if they can be used at all; frames without a usable face are
# left out one by one.
MILD_GATES = QualityGates(
    min_frames=20,
    max_yaw=45.0,
    min_fps=0.0,
    max_damaged=-1,
    min_sound=0.0,
    min_seen=0.0,
    min_face_px=0.0,
    min_brightness=0.0,
    max_brightness=255.0,
    max_second_face=1.0,
    max_cuts=-1,
    max_pitch=180.0,
    max_outside=1.0,
    max_lip_lag_ms=0.0,
)


def dataset_class(mode: str) -> type:
    """The dataset of a --dataset_mode. Raises UserError for an unknown one."""
    if mode not in DATASETS:
        raise UserError(f"--dataset_mode {mode}: unknown; choose one of {', '.join(DATASETS)}")
    module, name = DATASETS[mode].split(":")
    return getattr(import_module(module), name)


def training_dataset(
    data: DataFlags,
    reference: TrainReferenceFlags,
    stage: GeometryStage | None,
    cache: str | Path,
    split: str = "train",
    n_frames: int = 1,
    seed: int = 0,
    tools: ClipTools | None = None,
) -> Any:
    """The clips of `data.dataroot` as the samples of its --dataset_mode; raw clips are prepared now, once.

    cache: folder for what is made of the clips. split: any other than "train" is for validation, in order and as they
    are, one sample of each clip; also of clips that `free_only` leaves out of training. tools: what preparing needs of
    the models; None where all is prepared. Raises UserError if no clip is usable.
    """
    train, cache = split == "train", Path(cache)
    plan = SamplePlan(
        n_shot=reference.n_shot,
        n_frames=n_frames,
        ref_ratio=reference.ref_ratio,
        warp_choice=reference.warp_choice,
        worst_ref_prob=reference.worst_ref_prob if train else 1.0,
        find_largest_mouth=reference.find_largest_mouth and train,
        crop_ref=reference.crop_ref,
        geometry=reference.geometry,
        augment=train,
        serial=data.serial_batches or not train,
        epoch_samples=data.epoch_samples if train else 0,
        seed=seed,
    )
    source = clip_source(data, split, cache, tools)
    return dataset_class(data.dataset_mode)(source, plan, stage, data.fineSize, cache / "frames")


def clip_source(data: DataFlags, split: str, cache: Path, tools: ClipTools | None) -> PreparedClips:
    """The prepared clips of one split of `data.dataroot`. Raises UserError if there is none."""
    train = split == "train"
    free_only = data.free_only and train
    if is_shards(data.dataroot):
        everything = open_shards(data.dataroot, cache / "shards", int(data.shard_cache_gb * 1e9))
        source: PreparedClips = ShardClips(everything.of_split(train, free_only))
        n_others = len(everything) - len(source.records)
    else:
        root, ids = Path(data.dataroot), None
        if not (data.clip_list or is_prepared(root)):
            root, ids = _prepared(root, data, free_only, cache, tools)
        records = clip_records(root, data.dataset_name, split, free_only, data.clip_list, ids)
        source = ClipFolder(root, records or clip_records(root, "folder", split, free_only, ids=ids))
        if ids is not None and train and (n := len(clip_records(root, "folder", "test", ids=ids))):
            remark(f"{n} clips, of speakers of their own, are left out of training for tests: docs/data.md")
        n_others = 0 if source.records else len(clip_records(root, "folder", "test" if train else "train"))
    if not source.records:
        what = "train on" if train else "validate with"
        raise UserError(
            f"--dataroot {data.dataroot}: no usable clip to {what} ({n_others} are for another split or may not be "
            "used with --free_only); videos of one face each, of more speakers, are needed"
        )
    return source


def _prepared(
    root: Path, data: DataFlags, free_only: bool, cache: Path, tools: ClipTools | None
) -> tuple[Path, set[str]]:
    """The folder into which the raw clips under `root` are prepared, those that are not there yet; and their ids.

    A clip that was taken out of `root` since then is still in that folder.
    """
    found = [c for c in _raw_clips(root, data.dataset_name) if not (free_only and c.redistributable == "no")]
    if not found or tools is None:
        raise UserError(f"--dataroot {root}: no usable clip in it; videos of one face each are needed")
    out = cache / "prepared" / f"{'-'.join(root.resolve().parts[1:])}-{found[0].dataset}-{data.fineSize}"
    settings = ClipSettings(size=data.fineSize, gates=MILD_GATES)
    plan = RunPlan(n_processes=data.nThreads, n_clips=len(found))
    prepare_clips(found, out, root, settings, tools, plan)
    return out, {c.id for c in found}


def _raw_clips(root: Path, dataset_name: str) -> Iterator[RawClip]:
    """The raw clips of a data set in its own layout, or else of any folder of videos."""
    if (root / MANIFEST).is_file():
        return find_clips("pack", root)
    try:
        return find_clips(dataset_name, root)
    except UserError:
        return find_clips("folder", root)
