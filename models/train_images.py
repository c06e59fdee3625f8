"""The image networks' training, put together from the options."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from models.batch_order import FaceSamples
from models.discriminator import build_discriminators
from models.distributed import join_world, leave_world, share_out
from models.flow_teacher import make_flow_teacher
from models.flow_truth import FlowTruth
from models.generator import FewShotGenerator
from models.generator_config import GeneratorConfig, config_from_flags
from models.image_trainer import ImageTrainer
from models.perceptual import PerceptualFeatures
from models.train_step import Judges
from options.groups import LossFlags
from options.scripts import TrainOptions
from util.checkpoints import checkpoint_path
from util.errors import UserError, remark


def train_images(options: TrainOptions, dataset: Callable[[], FaceSamples], device: str) -> Path:
    """Train generator and critics; returns where the generator's averaged weights are.

    Several --gpu_ids start this script again, once per GPU.

    dataset: makes the samples; the first process of a machine calls it before the others.
    device: "cpu" or "cuda:N" for a process alone; one of several takes its own of --gpu_ids. Raises UserError
    for options that contradict the data or what is installed, and as `ImageTrainer.fit`.
    """
    flags, folder = options.loss, checkpoint_path(options.experiment.name)
    config = config_from_flags(options.generator, flags.add_raw_loss, options.reference.crop_ref)
    if options.data.fineSize % config.multiple:
        raise UserError(f"--fineSize {options.data.fineSize}: needs a multiple of {config.multiple}")
    share_out(options.experiment.gpu_ids, sys.argv)
    world = join_world(options.experiment.gpu_ids, device)
    try:
        samples = world.one_before_the_others(dataset)
        config = _fitting(config, samples)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.schedule.seed)
            generator = FewShotGenerator(config)
            critics = build_discriminators(
                options.discriminator, config.temporal, options.generator.n_frames_G
            )
        judges = Judges(critics, _perceptual(flags), _flow_truth(options, world.device))
        try:
            ImageTrainer(options, generator, judges, folder, world).fit(samples)
        finally:
            if hasattr(samples, "report"):
                samples.report()
    finally:
        leave_world()
    return folder / "latest_G.safetensors"


def _fitting(config: GeneratorConfig, samples: FaceSamples) -> GeneratorConfig:
    """The generator for what the samples have. Raises UserError where it needs what they lack."""
    if "ani" in config.sources and not getattr(samples, "has_ani", True):
        raise UserError(
            "--warp_ani: the clips under --dataroot come without a 3D projection video (grid and crema of the public "
            "code have none); leave --warp_ani out, or prepare the clips with scripts/preprocess.py"
        )
    if config.mesh_flow and not getattr(samples, "has_flow", True):
        # Else its flow networks would learn whole flows, and be given the mesh's on top of them in a demo.
        remark("the clips give no mesh: the generator is trained as with --mesh_flow off")
        return replace(config, mesh_flow=False)
    return config


def _perceptual(flags: LossFlags) -> PerceptualFeatures | None:
    return None if flags.no_vgg_loss or not flags.lambda_vgg else PerceptualFeatures(flags.vgg_weights)


def _flow_truth(options: TrainOptions, device: torch.device) -> FlowTruth | None:
    flags = options.loss
    teacher = None
    if flags.lambda_flow and not flags.no_flow_gt:
        teacher = make_flow_teacher(flags.flow_teacher, device)
    return teacher and FlowTruth(teacher, options.reference.crop_ref)
