"""Train a network. Face tracks of the clips are made once and kept under cache/tracks."""

from __future__ import annotations

from pathlib import Path

from options import TrainOptions, parse_train
from util.errors import run_script


def train(options: TrainOptions) -> Path:
    """Bring clips and trainer together. Returns where the weights are."""
    from data import head_motion_dataset as heads  # late: --help needs no torch
    from data import motion_dataset as faces
    from face.expression_basis import load_basis
    from models import expression_trainer, head_motion_trainer
    from talking_head import choose_device
    from util.checkpoints import checkpoint_path

    run, root, splits = options.schedule, options.data.dataroot, ("train", "dev")
    path = checkpoint_path(f"{options.experiment.name}/{run.model}.safetensors")
    tracks = Path(__file__).parent / "cache" / "tracks" / "-".join(Path(root).resolve().parts[1:])
    plan = (path, run.niter, options.data.batchSize, run.seed, choose_device(options.experiment.device))
    if run.model == "expression":
        clips, dev = (faces.load_motion_clips(root, split, tracks) for split in splits)
        expression_trainer.train_expression(clips, *plan, left_out=dev, resume=run.continue_train)
    else:
        clips, dev = (heads.head_motion_clips(root, tracks, load_basis().template, s) for s in splits)
        head_motion_trainer.train_head_motion(clips, *plan, dev_clips=dev, resume=run.continue_train)
    return path


def main() -> None:
    options = parse_train()
    if options.ready():
        print(train(options))


if __name__ == "__main__":
    run_script(main)
