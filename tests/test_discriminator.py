"""models/discriminator.py: shapes, the public network's numbers, crops, windows, and that critics learn."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.discriminator import (
    FRAME_CHANNELS,
    CropDiscriminator,
    MultiscaleDiscriminator,
    PatchDiscriminator,
    TemporalDiscriminator,
    build_discriminators,
    crop_box,
)
from options.groups import DiscriminatorFlags

PARITY = Path(__file__).resolve().parents[2] / "shared" / "parity" / "rhm"
needs_parity = pytest.mark.skipif(not PARITY.is_dir(), reason="needs ../shared/parity")


def test_shapes_of_netd() -> None:
    net = PatchDiscriminator(FRAME_CHANNELS, ndf=32, n_layers=4)
    shapes = [tuple(m.shape) for m in net(torch.zeros(2, 8, 64, 64))]
    assert shapes == [
        (2, 32, 33, 33),
        (2, 64, 17, 17),
        (2, 128, 9, 9),
        (2, 256, 5, 5),
        (2, 512, 6, 6),
        (2, 1, 7, 7),
    ]
    assert sum(p.numel() for p in net.parameters()) == 2_797_601


@needs_parity
def test_keys_match_the_manifest() -> None:
    keys = json.loads((PARITY / "manifest.json").read_text())["netD"]["keys"]
    sizes = [tuple(shape) for key, shape, _ in keys if key.endswith(("weight", "bias", "weight_orig"))]
    net = PatchDiscriminator(FRAME_CHANNELS)
    # parametrised weights come after the bias in PyTorch's order, and netD's have none
    found = sorted(tuple(p.shape) for p in net.parameters())
    assert found == sorted(sizes)


def test_channels_are_capped() -> None:
    maps = PatchDiscriminator(1, ndf=256, n_layers=3)(torch.zeros(1, 1, 32, 32))
    assert [m.shape[1] for m in maps] == [256, 512, 512, 512, 1]


def test_spectral_norm_bounds_the_weights() -> None:
    net = PatchDiscriminator(4, ndf=4, n_layers=2)
    for _ in range(20):
        net(torch.randn(1, 4, 32, 32))
    for layer in net.layers[1:-1]:
        assert torch.linalg.matrix_norm(layer[0].weight.flatten(1), 2).item() == pytest.approx(1, abs=0.05)


def test_scales_are_halved() -> None:
    net = MultiscaleDiscriminator(3, ndf=4, n_layers=2, n_scales=3)
    maps = net(torch.randn(1, 3, 64, 64))
    assert [scale[0].shape[-1] for scale in maps] == [33, 17, 9]
    seen = []
    net.scales[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    net(torch.ones(1, 3, 64, 64))
    assert torch.equal(seen[0], torch.ones(1, 3, 32, 32)), "borders must not darken"


@pytest.mark.parametrize("size", [16, 24])
def test_whole_picture_is_cropped_to_itself(size: int) -> None:
    x = torch.rand(2, 3, size, size)
    box = torch.tensor([[0, 0, size, size]]).repeat(2, 1)
    assert torch.allclose(crop_box(x, box, size), x, atol=1e-6)


def test_crop_takes_whole_pixels_exactly() -> None:
    x = torch.rand(2, 3, 20, 30)
    found = crop_box(x, torch.tensor([[4, 2, 12, 10], [20, 12, 28, 20]]), 8)
    assert torch.allclose(found[0], x[0, :, 2:10, 4:12], atol=1e-5)
    assert torch.allclose(found[1], x[1, :, 12:20, 20:28], atol=1e-5)


def test_crop_is_linear_in_position_and_repeats_the_border() -> None:
    x = torch.arange(32.0).expand(1, 1, 8, 32)
    found = crop_box(x, torch.tensor([[10.0, 0, 14, 4]]), 8)
    assert torch.allclose(found[0, 0, 0], 9.75 + 0.5 * torch.arange(8), atol=1e-4)
    assert crop_box(x, torch.tensor([[-20.0, -20, -10, -10]]), 4).abs().max() == 0


def test_gradient_of_a_crop_stays_in_the_box() -> None:
    x = torch.rand(1, 1, 20, 20, requires_grad=True)
    crop_box(x, torch.tensor([[4, 6, 12, 14]]), 8).sum().backward()
    inside = torch.zeros(20, 20)
    inside[6:14, 4:12] = 1
    assert torch.allclose(x.grad[0, 0], inside, atol=1e-5)


def test_crop_critic_takes_any_picture_size() -> None:
    net = CropDiscriminator(32, ndf=4, n_layers=2).eval()
    x, box = torch.rand(2, 4, 40, 56), torch.tensor([[4.0, 4, 30, 30], [10, 8, 50, 38]])
    (maps,) = net(x, box)
    assert maps[-1].shape[:2] == (2, 1)
    outside = x.clone()
    outside[..., 40:, :] = 0
    outside[0, :, :, 32:] = 0
    assert torch.allclose(net(outside, box)[0][-1], maps[-1]), "what is outside the box must not matter"


def test_windows_are_sample_by_sample() -> None:
    net = TemporalDiscriminator(2, ndf=4, n_layers=2).eval()
    images, sketches = torch.rand(2, 4, 3, 32, 32), torch.rand(2, 4, 1, 32, 32)
    (maps,) = net(images, sketches)
    assert len(maps[-1]) == 2 * 3
    for b, start in ((0, 1), (1, 2)):
        one = net(images[b : b + 1, start : start + 2], sketches[b : b + 1, start : start + 2])[0][-1]
        assert torch.allclose(one[0], maps[-1][b * 3 + start], atol=1e-6)


def test_short_slice_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="slice"):
        TemporalDiscriminator(3, ndf=4)(torch.zeros(1, 2, 3, 32, 32), torch.zeros(1, 2, 1, 32, 32))


def test_factory() -> None:
    assert list(build_discriminators(DiscriminatorFlags())) == ["frame"]
    flags = DiscriminatorFlags(ndf=4, n_layers_D=2, num_D=2, add_face_D=True, add_mouth_D=True)
    critics = build_discriminators(flags, temporal=True, n_frames=3)
    assert list(critics) == ["frame", "face", "mouth", "temporal"]
    assert len(critics["frame"].scales) == 2
    assert critics["temporal"].n_frames == 3


def _hinge_step(
    net: PatchDiscriminator, optimiser: torch.optim.Optimizer, real: Tensor, fake: Tensor
) -> float:
    loss = torch.relu(1 - net(real)[-1]).mean() + torch.relu(1 + net(fake)[-1]).mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.item()


def test_critic_learns_to_tell_smooth_from_noisy() -> None:
    torch.manual_seed(0)
    net = PatchDiscriminator(3, ndf=8, n_layers=2)
    optimiser = torch.optim.Adam(net.parameters(), 8e-4, betas=(0.0, 0.999))
    real = torch.randn(4, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    fake = torch.randn(4, 3, 32, 32)
    losses = [_hinge_step(net, optimiser, real, fake) for _ in range(30)]
    assert losses[0] == pytest.approx(2, abs=0.1)
    assert losses[-1] < 1
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def _rule_weight(key: str, shape: torch.Size) -> Tensor:
    """../shared/parity/README.md, "The weight rule"."""
    z = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(tuple(shape))
    return torch.tensor(np.float32(z * (1.4 / np.sqrt(np.prod(shape[1:])))))


@needs_parity
def test_vectors_of_the_public_network() -> None:
    """Weights by the rule, stored singular vectors: the stored feature maps and losses come out."""
    state1d, vectors = np.load(PARITY / "state1d_netD.npz"), np.load(PARITY / "vec_netD.npz")
    bias = dict(zip((0, 5), np.split(state1d["flat"], [32]), strict=True))
    uv = {key.split("|")[0][3:]: torch.tensor(vectors[key]) for key in vectors.files if key.startswith("uv:")}
    net = PatchDiscriminator(FRAME_CHANNELS).eval()
    state = net.state_dict()
    for i in range(6):
        plain, layer = i in bias, f"discriminator_0.model{i}.0"
        ours = {0: "layers.0.0", 5: "layers.5"}.get(i, f"layers.{i}.0.parametrizations.weight")
        weight = f"{ours}.weight" if plain else f"{ours}.original"
        state[weight] = _rule_weight(
            f"{layer}.weight" if plain else f"{layer}.0.weight_orig", state[weight].shape
        )
        if plain:
            state[f"{ours}.bias"] = torch.tensor(bias[i])
        else:
            state[f"{ours}.0._u"], state[f"{ours}.0._v"] = (
                uv[f"{layer}.0.weight_u"],
                uv[f"{layer}.0.weight_v"],
            )
    net.load_state_dict(state)
    maps = net(torch.tensor(vectors["input"]))
    for i, found in enumerate(maps):
        assert torch.allclose(found, torch.tensor(vectors[f"D0_feat{i}"]), atol=1e-4)
    fake, real = maps[-1]
    assert -fake.mean().item() == pytest.approx(float(vectors["loss_G_GAN"]), abs=1e-4)
    assert torch.relu(1 - real).mean().item() == pytest.approx(float(vectors["loss_D_real"]), abs=1e-4)
    assert torch.relu(1 + fake).mean().item() == pytest.approx(float(vectors["loss_D_fake"]), abs=1e-4)
    matching = sum((m[0] - m[1]).abs().mean() for m in maps[:-1])
    assert 10 * matching.item() == pytest.approx(float(vectors["loss_G_GAN_Feat"]), rel=1e-4)
