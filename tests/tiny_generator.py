"""A tiny generator and inputs for it, at 32 pixels, for tests."""

from __future__ import annotations

from dataclasses import replace

import torch

from models.generator import FewShotGenerator
from models.generator_config import LITE, GeneratorConfig
from util.batch import FrameInputs, References

SIZE = 32
TINY = GeneratorConfig(
    ngf=4, max_channels=16, n_downsample=3, n_adaptive=2, nff=4, n_downsample_flow=1, n_blocks_flow=1
)
TINY_LITE = replace(TINY, stem=LITE.stem, flow_stem=LITE.flow_stem, n_downsample=2)


def tiny_generator(seed: int = 0, **changes: object) -> FewShotGenerator:
    """TINY with some fields changed."""
    torch.manual_seed(seed)
    return FewShotGenerator(replace(TINY, **changes))


def references(batch: int = 2, k: int = 3, seed: int = 1) -> References:
    """Random pictures and sketches."""
    rng = torch.Generator().manual_seed(seed)
    draw = lambda c: torch.rand(batch, k, c, SIZE, SIZE, generator=rng)  # noqa: E731
    return References(draw(3) * 2 - 1, draw(1).round())


def frame_inputs(batch: int = 2, seed: int = 2, previous: bool = False) -> FrameInputs:
    """Random inputs; flows of up to some pixels, and a 3D face in the middle."""
    rng = torch.Generator().manual_seed(seed)
    draw = lambda c: torch.rand(batch, c, SIZE, SIZE, generator=rng)  # noqa: E731
    mask = torch.zeros(batch, 1, SIZE, SIZE)
    mask[..., 8:24, 8:24] = 1
    inputs = FrameInputs(
        sketch=draw(1).round(),
        warp_image=draw(3) * 2 - 1,
        warp_sketch=draw(1).round(),
        warp_flow=draw(2) * 6 - 3,
        ani_image=draw(3) * 2 - 1,
        ani_sketch=draw(1).round(),
        ani_mask=mask,
    )
    if not previous:
        return inputs
    return replace(inputs, prev_image=draw(3) * 2 - 1, prev_sketch=draw(1).round(), prev_flow=draw(2))
