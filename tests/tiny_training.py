"""A training so small that a step takes a tenth of a second: 32-pixel samples out of thin air, thin networks.

Run as a program it trains and writes each step's losses as JSON lines:
tiny_training.py FOLDER LOSSES [flags of train.py ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from models.discriminator import build_discriminators
from models.distributed import join_world, leave_world
from models.generator import FewShotGenerator
from models.generator_config import config_from_flags
from models.image_trainer import ImageTrainer
from models.train_step import Judges
from options import TrainOptions
from util.batch import FaceBatch

SIZE = 32
FLAGS = (
    "--fineSize 32 --preset lite --ngf 4 --nff 4 --ndf 4 --n_layers_D 2 --adaptive_spade --warp_ref --warp_ani "
    "--spade_combine --use_new --add_raw_loss --batchSize 2 --n_shot 2 --nThreads 0 --gpu_ids -1 --no_vgg_loss"
).split()


class TinyFaces:
    """Noise that depends on epoch and index only; what `models.image_trainer.FaceSamples` asks for."""

    def __init__(self, n: int = 8, n_shot: int = 2) -> None:
        self.n, self.n_shot, self.n_frames, self.epoch = n, n_shot, 1, 0
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.n

    def set_epoch(self, epoch: int, n_frames: int | None = None) -> None:
        self.epoch, self.n_frames = epoch, n_frames or self.n_frames

    def __getitem__(self, index: int) -> FaceBatch:
        self.read.append(index)
        draw = torch.Generator().manual_seed(1000 * self.epoch + index)
        t, k = self.n_frames, self.n_shot

        def noise(*shape: int) -> torch.Tensor:
            return torch.rand(*shape, SIZE, SIZE, generator=draw)

        return FaceBatch(
            tgt_image=noise(t, 3) * 2 - 1,
            tgt_sketch=noise(t, 1),
            ref_image=noise(k, 3) * 2 - 1,
            ref_sketch=noise(k, 1),
            warp_image=noise(t, 3) * 2 - 1,
            warp_sketch=noise(t, 1),
            face_box=torch.tensor([4.0, 4, 28, 28]).expand(t, 4),
            mouth_box=torch.tensor([10.0, 18, 22, 26]).expand(t, 4),
            template=(noise(t, 1) > 0.8).float(),
            warp_flow=noise(t, 2) - 0.5,
            ani_image=noise(t, 3) * 2 - 1,
            ani_sketch=noise(t, 1),
            ani_mask=noise(t, 1),
        )


def tiny_options(*more: str) -> TrainOptions:
    """Options of a tiny training; later flags win."""
    argv = {}
    for argument in [*FLAGS, *more]:
        if argument.startswith("--"):
            argv[argument] = None
            last = argument
        else:
            argv[last] = argument
    return TrainOptions.parse([part for pair in argv.items() for part in pair if part is not None])


def tiny_trainer(folder: Path, options: TrainOptions, world: object = None) -> ImageTrainer:
    """A trainer of thin networks from the options' seed."""
    torch.manual_seed(options.schedule.seed)
    config = config_from_flags(options.generator, options.loss.add_raw_loss)
    generator = FewShotGenerator(config)
    critics = build_discriminators(options.discriminator, config.temporal, options.generator.n_frames_G)
    world = world or join_world((), "cpu")
    return ImageTrainer(options, generator, Judges(critics, None, None), folder, world)


def train(folder: Path, *flags: str, dataset: TinyFaces | None = None) -> list[dict[str, float]]:
    """Train to the end; every step's losses."""
    losses = []
    trainer = tiny_trainer(folder, tiny_options(*flags))
    trainer.fit(
        dataset or TinyFaces(trainer.options.data.epoch_samples or 8),
        lambda at, result: losses.append(result.losses),
    )
    return losses


def main() -> None:
    folder, path, *flags = sys.argv[1:]
    torch.set_num_threads(1)
    with open(path, "a") as log:
        trainer = tiny_trainer(Path(folder), tiny_options(*flags))

        def tell(at: object, result: object) -> None:
            if trainer.world.is_first:
                log.write(json.dumps({"step": at.step} | result.losses) + "\n")
                log.flush()

        trainer.fit(TinyFaces(trainer.options.data.epoch_samples or 8), tell)
    leave_world()


if __name__ == "__main__":
    main()
