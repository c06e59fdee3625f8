"""Train a network. What is made of raw clips is made once and kept under cache."""

from __future__ import annotations

from pathlib import Path

from options import TrainOptions, parse_train
from util.errors import run_script


def train(options: TrainOptions) -> Path:
    """Bring clips and trainer together. Returns where the weights are."""
    from data import head_motion_dataset as heads  # late: --help needs no torch
    from data import motion_dataset as faces
    from data.preprocessing.prepare_clip import ClipTools
    from data.training_clips import training_dataset
    from face.expression_basis import load_basis
    from models import ani_frames, expression_trainer, geometry_stage, head_motion_trainer, train_images
    from talking_head import choose_device
    from util.checkpoints import checkpoint_path

    run, data, device = options.schedule, options.data, choose_device(options.experiment.device)
    root, cache, splits = data.dataroot, Path(__file__).parent / "cache", ("train", "dev")
    if run.model == "vid2vid":
        source = (data, options.reference, geometry_stage.GeometryStage(), cache)
        more = {"seed": run.seed, "tools": ClipTools(**ani_frames.clip_tools())}
        return train_images.train_images(options, lambda: training_dataset(*source, **more), device)
    path = checkpoint_path(f"{options.experiment.name}/{run.model}.safetensors")
    tracks = cache / "tracks" / "-".join(Path(root).resolve().parts[1:])
    plan = (path, run.niter, data.batchSize, run.seed, device)
    if run.model == "expression":
        clips, dev = (faces.load_motion_clips(root, split, tracks) for split in splits)
        expression_trainer.train_expression(clips, *plan, left_out=dev, resume=run.continue_train)
    else:
        clips, dev = (heads.head_motion_clips(root, tracks, load_basis().template, s) for s in splits)
        head_motion_trainer.train_head_motion(clips, *plan, dev_clips=dev, resume=run.continue_train)
    return path


if __name__ == "__main__":
    run_script(lambda: (options := parse_train()).ready() and print(train(options)))
