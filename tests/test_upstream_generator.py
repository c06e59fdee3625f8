"""models/upstream against the public generator: names, shapes, numbers and gradients."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.upstream import UpstreamConfig, build_generator
from models.warp import resample, warp
from tests.upstream_parity import (
    PARITY,
    TOLERANCE,
    config_of,
    made_input,
    manifest,
    named,
    needs_parity,
    read_input,
    rule_generator,
    small_generator,
    vectors,
)
from util.errors import ShapeError, UserError

GRADIENT_TOLERANCE = 5e-3  # of a gradient's norm
TINY = {"ngf": 4, "nff": 4, "n_blocks_flow": 2}
BASE = {
    "adaptive_spade": True,
    "warp_ref": True,
    "warp_ani": True,
    "spade_combine": True,
    "add_raw_loss": True,
    "use_new": True,
    "no_atten": False,
    "no_warp": False,
    "n_shot": 2,
}
CHANGES = {
    "i_default": {},
    "ii_linear": {"spade_combine": False},
    "iii_no_use_new": {"use_new": False},
    "iv_no_atten": {"use_new": False, "no_atten": True},
    "v_no_warp": {"no_warp": True},
    "vi_no_warp_ani": {"warp_ani": False},
    "vii_one_shot": {"n_shot": 1},
    "viii_linear_no_use_new": {"use_new": False, "spade_combine": False},
}


def close(found: Tensor, needed: np.ndarray, what: str, tolerance: float = TOLERANCE) -> None:
    assert tuple(found.shape) == needed.shape, what
    worst = float(np.abs(found.detach().numpy().astype(np.float64) - needed).max())
    assert worst <= tolerance, f"{what} is off by {worst}"


def tiny(name: str, **others: object) -> UpstreamConfig:
    return config_of(BASE | CHANGES[name], **TINY, **others)


@needs_parity
@pytest.mark.parametrize("name", CHANGES)
def test_names_shapes_types_and_counts_are_the_public_ones(name: str) -> None:
    needed = manifest()["configs"][name]
    with torch.device("meta"):
        net = build_generator(config_of(needed["flags"]))
    state = net.state_dict()
    found = [
        [key, list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in state.items()
    ]
    assert found == needed["netG_keys"]
    assert sum(p.numel() for p in net.parameters()) == needed["netG_params"]
    assert type(net).__name__ == needed["top_module"].replace("CombineModule", "Combiner")
    told = UpstreamConfig.detect({key: value.shape for key, value in state.items()})
    hidden = {"n_shot": None} if not needed["flags"]["use_new"] else {}
    assert told == replace(net.config, warped=True, add_raw_loss=True, **hidden)


@needs_parity
@pytest.mark.parametrize(
    "name", [n for n in CHANGES if n not in ("iv_no_atten", "v_no_warp", "viii_linear_no_use_new")]
)
def test_results_are_the_public_ones(name: str) -> None:
    needed = vectors(f"vec_{name}")
    given = read_input(needed)
    with torch.no_grad():
        out = rule_generator(name, given.ref_imgs.shape[1])(given)
    found = named(out)
    for entry, value in needed.items():
        if not entry.startswith(("in_", "tap_")):
            close(found[entry], value, entry)
    assert all(value is None for entry, value in found.items() if entry not in needed)
    rows = torch.arange(len(out.ref_idx))
    assert torch.equal(out.ref_image, given.ref_imgs[rows, out.ref_idx])
    assert torch.equal(out.ref_label, given.ref_lmarks[rows, out.ref_idx])


@needs_parity
def test_intermediate_results_are_the_public_ones() -> None:
    needed = vectors("vec_i_default")
    net = rule_generator("i_default", 2).netG
    with torch.no_grad():
        code = net.embed(read_input(needed))
    close(code.x, needed["tap_x"], "x")
    for i in range(2, 6):
        close(code.maps[i], needed[f"tap_encoded_label_{i}"], f"map {i}")
    finest = code.weights[0]
    close(finest.embed.weight.mT[..., None, None], needed["tap_embed_w0"], "embed weight")
    close(finest.embed.bias, needed["tap_embed_b0"][:, :32], "embed bias")
    for part in ("bn_0", "bn_1", "bn_s"):
        for kind in ("gamma", "beta"):
            weight = getattr(getattr(finest.block, part), kind)
            close(weight[..., None, None], needed[f"tap_norm_{part}_{kind}_w_up0"], f"{part} {kind}")


@needs_parity
def test_results_at_full_size_are_the_public_ones() -> None:
    needed = vectors("vec_i_default_256_n8")
    with torch.no_grad():
        found = named(rule_generator("i_default_256_n8", 8)(read_input(needed)))
    attention = found.pop("attention")
    close(
        attention.sum(2), needed["attention_sum_over_pixels"], "attention", tolerance=1e-3
    )  # of 4096 values
    close(attention[:, :, :64], needed["attention_first64px"], "attention")
    for entry, value in found.items():
        if value is not None:
            whole = entry in ("fake_image", "ref_idx")
            close(value if whole else value[:, :, ::2, ::2], needed[entry], entry)


@needs_parity
def test_gradients_are_the_public_ones() -> None:
    needed = json.loads((PARITY / "grad_i_default.json").read_text())
    net = rule_generator("i_default", 2)
    found = named(net(read_input(vectors("vec_i_default"))))
    draw = np.random.default_rng(99)
    parts = [
        (found[entry] * torch.from_numpy(draw.standard_normal(found[entry].shape).astype(np.float32))).mean()
        for entry in needed["order"]
    ]
    loss = sum(parts)
    assert loss.item() == pytest.approx(needed["loss"], abs=1e-6)
    loss.backward()
    assert {name for name, _ in net.named_parameters()} == set(needed["grads"])
    for name, parameter in net.named_parameters():
        expected, gradient = needed["grads"][name], parameter.grad
        parameter.grad = None
        assert (gradient is None) == (expected is None), name
        if gradient is not None:
            flat = gradient.double().flatten()
            norm, total, *entries = expected
            # Rounding moves some activations across the kinks of leaky ReLU and of the bilinear cells, which turns
            # the gradient by up to 0.4 % (0.1 % in float64); a sum of n entries turns by up to sqrt(n) times that.
            near = GRADIENT_TOLERANCE * norm + 1e-7
            assert float(flat.norm()) == pytest.approx(norm, abs=near), name
            assert float(flat.sum()) == pytest.approx(total, abs=near * len(flat) ** 0.5), name
            assert flat[:2].tolist() == pytest.approx(entries[: len(flat)], abs=near), name


@needs_parity
def test_warp_and_its_gradients_are_the_public_ones() -> None:
    needed = vectors("vec_resample")
    image, flow = (torch.from_numpy(needed[k]).requires_grad_() for k in ("img", "flow"))
    out = warp(image, flow)
    out.backward(torch.from_numpy(needed["grad_out"]))
    close(out, needed["out"], "out")
    close(image.grad, needed["grad_img"], "gradient of the image")
    close(flow.grad, needed["grad_flow"], "gradient of the flow")
    close(warp(image, flow, align_corners=True), needed["out_if_align_corners_true"], "old torch")


@pytest.mark.parametrize(("height", "width", "tolerance"), [(32, 64, 0.0), (9, 13, 1e-5)])
def test_resample_without_flow_is_the_identity(height: int, width: int, tolerance: float) -> None:
    image = torch.rand(2, 3, height, width)
    assert (resample(image, torch.zeros(2, 2, height, width)) - image).abs().max() <= tolerance


def test_resample_takes_pixel_p_from_p_plus_flow_and_repeats_the_border() -> None:
    image = torch.rand(1, 1, 8, 16)
    flow = torch.tensor([3.0, -2.0])[None, :, None, None].expand(1, 2, 8, 16)
    rows, columns = (torch.arange(8) - 2).clamp(min=0), (torch.arange(16) + 3).clamp(max=15)
    assert torch.equal(resample(image, flow), image[:, :, rows][..., columns])


@pytest.mark.parametrize("name", CHANGES)
def test_every_configuration_runs_and_trains(name: str) -> None:
    config = tiny(name)
    net = small_generator(config)
    given = made_input(config, n_refs=config.n_shot)
    out = net(given)
    assert out.fake_image.shape == (1, 3, 32, 64)
    assert out.fake_image.abs().max() <= 1
    assert (out.attention is None) == (out.ref_idx is None) == (not config.attention)
    assert (out.flow.ani is None) == (not config.warp_ani)
    assert (out.img_ani is None) == config.spade_combine
    unwarped = torch.equal(out.warped_image.ref, given.warp_ref_img)
    assert unwarped == (not config.warped)
    out.fake_image.mean().backward()
    assert net.netG.conv_img.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("change", [{"adaptive_spade": False}, {"warp_ref": False}, {"add_raw_loss": False}])
def test_other_switches_run_and_are_told_from_the_keys(change: dict[str, bool]) -> None:
    config = tiny("i_default", **change)
    net = build_generator(config).eval()
    with torch.no_grad():
        out = net(made_input(config))
    assert (out.fake_raw_image is None) == (not config.add_raw_loss)
    assert (out.flow.ref is None) == (not config.warp_ref)
    told = UpstreamConfig.detect({key: value.shape for key, value in net.state_dict().items()})
    assert replace(told, add_raw_loss=config.add_raw_loss, n_adaptive=config.n_adaptive) == config


def test_linear_composition_without_warp_changes_only_what_is_returned() -> None:
    net = small_generator(tiny("ii_linear"))
    given = made_input(net.config)
    with torch.no_grad():
        warped = net(given)
        net.config = replace(net.config, warped=False)
        unwarped = net(given)
    assert torch.equal(warped.fake_image, unwarped.fake_image)
    assert not torch.equal(warped.warped_image.ref, unwarped.warped_image.ref)


def test_one_reference_is_not_fused() -> None:
    eight = small_generator(tiny("i_default"))
    one = build_generator(tiny("vii_one_shot")).eval()
    state = one.state_dict()
    one.load_state_dict({key: value for key, value in eight.state_dict().items() if key in state})
    given = made_input(one.config, n_refs=1)
    with torch.no_grad():
        assert torch.equal(one(given).fake_image, eight(given).fake_image)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"ref_imgs": torch.zeros(1, 3, 3, 32, 64)},
            r"ref_imgs: shape \(1, 3, 3, 32, 64\), needed \(B, 1 or 2",
        ),
        ({"tgt_lmark": torch.zeros(1, 1, 30, 64)}, r"tgt_lmark: .* multiples of 32"),
        ({"ani_img": None}, "ani_img: this network needs it"),
        ({"warp_ref_img": torch.zeros(1, 1, 32, 64)}, r"warp_ref_img: .* needed \(1, 3, 32, 64\)"),
    ],
)
def test_input_that_does_not_fit_is_refused(change: dict[str, Tensor | None], message: str) -> None:
    net = build_generator(tiny("i_default")).eval()
    with pytest.raises(UserError, match=message):
        net(replace(made_input(net.config), **change))


def test_several_references_need_the_layers_that_fuse_them() -> None:
    net = build_generator(tiny("vii_one_shot")).eval()
    with pytest.raises(ShapeError, match=r"needed \(B, 1, 3, H, W\)"):
        net(made_input(net.config, n_refs=2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": False}, "no_atten: the joint encoder"),
        ({"n_shot": None}, "n_shot: the joint encoder"),
        ({"ngf": 0}, "ngf 0: needs 1 to 512"),
        ({"n_downsample": 40}, "n_downsample 40"),
    ],
)
def test_configuration_that_cannot_be_built_is_refused(change: dict[str, int | None], message: str) -> None:
    with pytest.raises(UserError, match=message):
        UpstreamConfig(**change)
