"""models/upstream/discriminator.py against the public discriminator."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.upstream import DiscriminatorConfig, UpstreamDiscriminator
from models.upstream.discriminator import discriminator_losses, generator_losses
from tests.upstream_parity import TOLERANCE, fill, manifest, needs_parity, vectors
from util.errors import UserError


@needs_parity
def test_names_shapes_and_count_are_the_public_ones() -> None:
    needed = manifest()["netD"]
    with torch.device("meta"):
        net = UpstreamDiscriminator(DiscriminatorConfig())
    state = net.state_dict()
    found = [
        [key, list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in state.items()
    ]
    assert found == needed["keys"]
    assert sum(p.numel() for p in net.parameters()) == needed["params"]
    assert DiscriminatorConfig.detect({key: value.shape for key, value in state.items()}) == net.config


@needs_parity
def test_features_and_losses_are_the_public_ones() -> None:
    needed = vectors("vec_netD")
    with torch.device("meta"):
        net = UpstreamDiscriminator(DiscriminatorConfig())
    fill(net, "state1d_netD", needed, prefix="uv:")
    with torch.no_grad():
        found = net(torch.from_numpy(needed["input"]))
    for i, feature in enumerate(found):
        assert np.abs(feature.numpy() - needed[f"D0_feat{i}"]).max() <= TOLERANCE, f"layer {i}"
    fake, real = [f[:1] for f in found], [f[1:] for f in found]
    losses = discriminator_losses(real, fake) | generator_losses(real, fake)
    for name, value in losses.items():
        assert value.item() == pytest.approx(float(needed[f"loss_{name}"]), abs=TOLERANCE), name


def test_real_images_get_no_gradient_from_feature_matching() -> None:
    real = [torch.rand(1, 2, 3, 3, requires_grad=True) for _ in range(3)]
    fake = [torch.rand(1, 2, 3, 3, requires_grad=True) for _ in range(3)]
    sum(generator_losses(real, fake).values()).backward()
    assert all(layer.grad is None for layer in real)
    assert all(layer.grad.abs().sum() > 0 for layer in fake)


def test_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="ndf 0: needs 1 to 512"):
        DiscriminatorConfig(ndf=0)
