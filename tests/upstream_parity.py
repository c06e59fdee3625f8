"""The rule-made weights and the vectors of shared/parity/rhm, for the tests of models/upstream."""

from __future__ import annotations

import json
import zlib
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.upstream import UpstreamConfig, UpstreamGenerator, UpstreamInput, UpstreamOutput, build_generator

PARITY = Path(__file__).resolve().parents[2] / "shared" / "parity" / "rhm"
TOLERANCE = 1e-4
GAINS = {"conv_flow.0.weight": 0.2, "conv_img.weight": 0.5}

needs_parity = pytest.mark.skipif(not PARITY.is_dir(), reason=f"no parity vectors at {PARITY}")


@cache
def manifest() -> dict[str, Any]:
    return json.loads((PARITY / "manifest.json").read_text())


def vectors(name: str) -> dict[str, np.ndarray]:
    with np.load(PARITY / f"{name}.npz") as file:
        return dict(file)


def config_of(flags: dict[str, Any], **others: Any) -> UpstreamConfig:
    """The configuration that the public flags stand for."""
    kept = ("adaptive_spade", "warp_ref", "warp_ani", "spade_combine", "add_raw_loss", "use_new", "n_shot")
    words = {"attention": not flags["no_atten"], "warped": not flags["no_warp"]}
    return UpstreamConfig(**{name: flags[name] for name in kept} | words | others)


@cache
def rule_weight(key: str, shape: tuple[int, ...]) -> Tensor:
    """A weight of two or more dimensions, made once for all networks that have it."""
    gain = next((g for end, g in GAINS.items() if key.endswith(end)), 1.4)
    z = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    z *= gain / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(z.astype(np.float32))


def fill(module: nn.Module, state1d: str, spectral: dict[str, np.ndarray], prefix: str = "") -> nn.Module:
    """Give a module from the meta device its weights by the rule, in eval mode."""
    packed = vectors(state1d)
    parts = np.split(packed["flat"], np.cumsum(packed["sizes"])[:-1])
    state = {str(k): torch.from_numpy(v.copy()) for k, v in zip(packed["keys"], parts, strict=True)}
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    for key, shape in shapes.items():
        if key.endswith(("weight_u", "weight_v")):
            shape = "x".join(map(str, shapes[key[:-1] + "orig"]))
            state[key] = torch.from_numpy(spectral[f"{prefix}{key}|{shape}"])
        elif key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(1)
        elif len(shape) > 1:
            state[key] = rule_weight(key, shape)
    module.load_state_dict(state, assign=True)
    return module.eval()


@cache
def _spectral() -> dict[str, np.ndarray]:
    return vectors("spectral_uv")


@lru_cache(maxsize=1)  # each keeps its normalised weights, 0.3 GB, after a pass
def rule_generator(name: str, n_shot: int) -> UpstreamGenerator:
    """The generator of a configuration of the manifest, with the rule's weights."""
    flags = manifest()["configs"][name.removesuffix("_256_n8")]["flags"] | {"n_shot": n_shot}
    with torch.device("meta"):
        net = build_generator(config_of(flags))
    return fill(net, f"state1d_{name}", _spectral())


def read_input(found: dict[str, np.ndarray]) -> UpstreamInput:
    """The inputs among vectors, from bytes to the ranges that the networks take."""
    tensors = {}
    for entry, value in found.items():
        if entry.startswith("in_"):
            name, x = entry[3:-3], torch.from_numpy(value).float() / 255
            tensors[name] = (x.movedim(-1, -3) - 0.5) / 0.5 if "img" in name else x.unsqueeze(-3)
    return UpstreamInput(**tensors)


def made_input(config: UpstreamConfig, n_refs: int = 2, seed: int = 0) -> UpstreamInput:
    """Random input of one sample, 32 x 64, for a small network."""
    random, step = torch.Generator().manual_seed(seed), 2**config.n_downsample
    shape = (step, 2 * step)
    rgb = [torch.rand((1, *lead, 3, *shape), generator=random) * 2 - 1 for lead in ((n_refs,), (), ())]
    lmark = [torch.rand((1, *lead, 1, *shape), generator=random) for lead in ((n_refs,), (), (), ())]
    ani = (rgb[2], lmark[3]) if config.warp_ani else (None, None)
    return UpstreamInput(lmark[1], lmark[0], rgb[0], rgb[1], lmark[2], *ani)


def small_generator(config: UpstreamConfig) -> UpstreamGenerator:
    """A network with random weights, in eval mode, whose spectral norms have seen a few passes.

    Without these they divide by about nothing, and the results are NaN.
    """
    torch.manual_seed(0)
    net = build_generator(config)
    with torch.no_grad():
        for seed in range(3):
            net(made_input(config, config.n_shot or 2, seed))
    return net.eval()


def named(out: UpstreamOutput) -> dict[str, Tensor | None]:
    """Results by the vectors' names."""
    sources = {"flow": out.flow, "weight": out.weight, "warp": out.warped_image}
    found = {f"{kind}_{of}": getattr(value, of) for kind, value in sources.items() for of in ("ref", "ani")}
    whole = ("fake_image", "fake_raw_image", "attention", "ref_idx", "img_ani")
    return found | {name: getattr(out, name) for name in whole}
