"""From the flags of a training to its data: clips are found, prepared once, and drawn from."""

from __future__ import annotations

from pathlib import Path

from data.clip_store import prepare_clips, store_rows
from data.face_dataset import FaceDataset, GeometryStage, SamplePlan
from options.groups import DataFlags, TrainReferenceFlags
from util.errors import UserError


def training_dataset(
    data: DataFlags,
    reference: TrainReferenceFlags,
    stage: GeometryStage | None,
    cache: str | Path,
    split: str = "train",
    n_frames: int = 1,
    seed: int = 0,
) -> FaceDataset:
    """The clips of `data.dataroot` as training samples; those not prepared yet are prepared now.

    cache: folder for face tracks and the clip store. split "dev": for validation, in order and as they are, one sample
    of each clip; also of clips that `free_only` leaves out of training. Raises UserError if no clip is usable.
    """
    root, train = Path(data.dataroot), split == "train"
    rows = store_rows(root, split, data.free_only and train)
    name = "-".join(root.resolve().parts[1:])
    store = Path(cache) / "store" / f"{name}-{data.fineSize}"
    clips = prepare_clips(rows, store, Path(cache) / "tracks" / name, data.fineSize, data.nThreads)
    if not clips:
        raise UserError(
            f"--dataroot {root}: no usable clip among {len(rows)}; videos of one face each are needed"
        )
    plan = SamplePlan(
        n_shot=reference.n_shot,
        n_frames=n_frames,
        ref_ratio=reference.ref_ratio,
        worst_ref_prob=reference.worst_ref_prob,
        find_largest_mouth=reference.find_largest_mouth and train,
        crop_ref=reference.crop_ref,
        augment=train,
        serial=data.serial_batches or not train,
        epoch_samples=data.epoch_samples if train else 0,
        seed=seed,
    )
    return FaceDataset(clips, plan, stage)
