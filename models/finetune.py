"""Few-shot fine-tuning (--finetune): a copy of the generator learns a person's reference frames by heart."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from models.generator import FewShotGenerator
from models.losses import generator_losses
from models.perceptual import PerceptualFeatures
from options.groups import LossFlags
from util.batch import FaceBatch

# What the method tunes, by our modules' names: the generator of the SPADE weights, the decoder, its output layers.
TUNED = ("embedding.generators.", "blocks.", "to_image.")
# The warped images don't depend on what is tuned: their terms are left out.
LOSSES = LossFlags(lambda_vgg=5.0, face_l1=20.0, mask_l1=5.0, lambda_warp=0.0, lambda_flow=0.0)
BETAS, CLIP_GRAD = (0.0, 0.999), 10.0  # the generator's Adam and limit in training


@dataclass(frozen=True)
class TuningPlan:
    """How long and how fast."""

    steps: int = 20  # benchmarks/finetune.py: 40 and 80 were no better on four dev clips
    rate: float = 0.0002  # the generator's in training
    batch: int = 1  # samples per step
    seed: int = 0  # of the order of samples


def finetune(
    generator: FewShotGenerator,
    samples: Sequence[FaceBatch],
    perceptual: PerceptualFeatures | None,
    plan: TuningPlan = TuningPlan(),
) -> FewShotGenerator:
    """A copy of `generator`, on its device and in evaluation mode, after some steps on samples without batch axis.

    Only parameters named by TUNED change; `generator` stays as it is. The loss is L1, L1 about eyes and mouth, and
    the distance in the features of `perceptual` (on the generator's device; None leaves it out). The published
    method lets the discriminator take part and tunes it too; its weights are not shipped, so there is none here.
    Only first frames of slices are learnt: a temporal generator's part for the frame before stays as it is.
    Repeatable on one device by `plan.seed`. Raises ValueError without samples.
    """
    if not len(samples):
        raise ValueError("no sample to tune on")
    tuned = copy.deepcopy(generator).eval().requires_grad_(False)
    parameters = tuned_parameters(tuned)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    optimiser = torch.optim.Adam(parameters.values(), plan.rate, BETAS)
    device = next(tuned.parameters()).device
    with torch.enable_grad(), tqdm(total=plan.steps, desc="fine-tuning", unit="step", disable=None) as bar:
        for batch in _batches(samples, plan):
            loss = _loss(tuned, batch.to(device), perceptual)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters.values(), CLIP_GRAD)
            optimiser.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            bar.update()
    return tuned.requires_grad_(False)


def tuned_parameters(generator: nn.Module) -> dict[str, nn.Parameter]:
    """Those that fine-tuning changes, by name."""
    return {name: p for name, p in generator.named_parameters() if name.startswith(TUNED)}


def tuning_loss(
    generator: FewShotGenerator, samples: Sequence[FaceBatch], perceptual: PerceptualFeatures | None
) -> float:
    """Mean loss of samples without batch axis."""
    device = next(generator.parameters()).device
    with torch.no_grad():
        losses = [_loss(generator, FaceBatch.stack([s]).to(device), perceptual).item() for s in samples]
    return float(np.mean(losses))


def _loss(
    generator: FewShotGenerator, batch: FaceBatch, perceptual: PerceptualFeatures | None
) -> torch.Tensor:
    made = generator(batch.references, batch.frame(0))
    return sum(generator_losses(made, batch, 0, None, perceptual, None, LOSSES).values())


def _batches(samples: Sequence[FaceBatch], plan: TuningPlan) -> Iterator[FaceBatch]:
    """One batch for each step: all samples in a random order, then again in another."""
    rng, order = np.random.default_rng(plan.seed), np.zeros(0, int)
    for _ in range(plan.steps):
        while len(order) < plan.batch:
            order = np.concatenate([order, rng.permutation(len(samples))])
        drawn, order = order[: plan.batch], order[plan.batch :]
        yield FaceBatch.stack([samples[int(i)] for i in drawn])
