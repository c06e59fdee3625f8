"""The generator: what must hold whatever its weights are, every ablation, and any number of references."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_generator import SIZE, TINY, TINY_LITE, frame_inputs, references, tiny_generator

from models.composition import linear, nonlinear
from models.generator import FewShotGenerator
from models.generator_config import LITE, GeneratorConfig, check_flags, check_same, config_from_flags
from models.warp import resample
from options.groups import GeneratorFlags
from util.batch import References
from util.errors import UserError

ABLATIONS = {
    "paper": {},
    "lite": {"stem": 2, "flow_stem": 4, "n_downsample": 2},
    "mean": {"embedding": "mean"},
    "fewshot": {"embedding": "fewshot"},
    "linear": {"composition": "linear"},
    "linear_fewshot": {"composition": "linear", "embedding": "fewshot"},
    "unwarped": {"warped": False},
    "no_ref": {"warp_ref": False},
    "no_ani": {"warp_ani": False},
    "no_sources": {"warp_ref": False, "warp_ani": False},
    "own_spade": {"adaptive_spade": False},
    "own_spade_fewshot": {"adaptive_spade": False, "embedding": "fewshot"},
    "free_flow": {"mesh_flow": False},
    "free_linear": {"mesh_flow": False, "composition": "linear"},
    "raw": {"add_raw": True},
    "same_flownet": {"same_flownet": True},
    "temporal": {"temporal": True},
    "temporal_linear": {"temporal": True, "composition": "linear"},
}


@pytest.mark.parametrize("changes", ABLATIONS.values(), ids=ABLATIONS)
def test_every_ablation_makes_frames_and_trains_every_parameter(changes: dict) -> None:
    generator = tiny_generator(**changes)
    made = generator(references(), frame_inputs(previous=bool(changes.get("temporal"))))
    assert made.image.shape == (2, 3, SIZE, SIZE)
    assert made.image.abs().max() <= 1
    assert set(made.warped) == set(made.flow) == set(made.weight) == set(generator.config.sources)
    assert all(w.min() >= 0 and w.max() <= 1 for w in made.weight.values())
    loss = made.image.square().mean() + sum(w.square().mean() for w in made.warped.values())
    loss = loss + sum(w.mean() for w in made.weight.values()) + sum(f.mean() for f in made.flow.values())
    if made.raw is not None:
        loss = loss + made.raw.square().mean()
    loss.backward()
    dead = [name for name, p in generator.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@pytest.mark.parametrize("changes", ABLATIONS.values(), ids=ABLATIONS)
@pytest.mark.parametrize("k", [1, 4, 8, 32])
def test_any_number_of_references_serves(changes: dict, k: int) -> None:
    generator = tiny_generator(**changes).eval()
    with torch.inference_mode():
        made = generator(references(k=k), frame_inputs())
    assert made.image.isfinite().all()
    assert made.attention.shape[1] == k


def test_attention_sums_to_one_and_depends_on_the_target() -> None:
    generator = tiny_generator().eval()
    identity = generator.encode(references(k=5))
    one, other = (generator.embedding(identity, frame_inputs(seed=s).sketch).attention for s in (2, 3))
    torch.testing.assert_close(one.sum(1), torch.ones_like(one[:, 0]))
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("embedding", ["attention", "mean", "fewshot"])
def test_the_order_of_the_references_does_not_matter(embedding: str) -> None:
    generator = tiny_generator(embedding=embedding).eval()
    given, order = references(k=4), torch.tensor([2, 0, 3, 1])
    shuffled = References(given.image[:, order], given.sketch[:, order])
    one, other = (generator(r, frame_inputs()).image for r in (given, shuffled))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_references_matter() -> None:
    generator = tiny_generator(mesh_flow=False).eval()
    one, other = (generator(references(seed=s), frame_inputs()).image for s in (1, 2))
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_of_two_is_two_batches_of_one(training: bool) -> None:
    generator = tiny_generator(add_raw=True).train(training)
    given, inputs = references(), frame_inputs()
    both = generator(given, inputs)
    for i in range(2):
        alone = generator(given.map(lambda t, i=i: t[i : i + 1]), inputs.map(lambda t, i=i: t[i : i + 1]))
        torch.testing.assert_close(alone.image, both.image[i : i + 1], atol=1e-5, rtol=0)


def test_the_kept_identity_serves_every_frame() -> None:
    generator = tiny_generator().eval()
    given, inputs = references(batch=1, k=3), frame_inputs(batch=4)
    identity = generator.encode(given)
    kept = generator.synthesise(identity, inputs).image
    again = generator(given.map(lambda t: t.expand(4, *t.shape[1:])), inputs).image
    torch.testing.assert_close(kept, again, atol=1e-5, rtol=0)


def test_zero_flow_is_the_identity() -> None:
    image = frame_inputs().warp_image
    assert torch.equal(resample(image, torch.zeros(2, 2, SIZE, SIZE)), image)


@pytest.mark.parametrize("composition", ["linear", "nonlinear"])
def test_composition_starts_near_the_geometric_frame(composition: str) -> None:
    """Before any training, with the mesh's start: the 3D image over the reference, as the mesh moves it."""
    generator, inputs = tiny_generator(composition=composition).eval(), frame_inputs()
    geometric = torch.lerp(resample(inputs.warp_image, inputs.warp_flow), inputs.ani_image, inputs.ani_mask)
    made = generator(references(), inputs).image
    free = tiny_generator(composition=composition, mesh_flow=False).eval()(references(), inputs).image
    assert (made - geometric).abs().mean() < 0.15 < (free - geometric).abs().mean()


def test_linear_composition_takes_by_weight() -> None:
    raw, ani, ref = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2), -torch.ones(1, 3, 2, 2)
    half, one = torch.full((1, 1, 2, 2), 0.5), torch.ones(1, 1, 2, 2)
    image, after = linear(raw, {"ani": ani, "ref": ref}, {"ani": half, "ref": one})
    assert torch.equal(image, 0.5 * ani)
    assert torch.equal(after, image)
    image, after = linear(raw, {"ref": ref}, {"ref": 0 * one})
    assert torch.equal(image, ref)
    assert after is None


def test_nonlinear_composition_without_the_mesh_is_the_image_made() -> None:
    made = frame_inputs().warp_image
    assert nonlinear(made, False, {"ref": -made}, {"ref": made[:, :1]}) is made


def test_nonlinear_composition_adds_to_the_warped_images() -> None:
    one, inside = torch.ones(1, 3, 2, 2), torch.tensor([[[[0.0, 1], [0, 1]]]])
    image = nonlinear(0.25 * one, True, {"ref": -0.5 * one, "ani": 0.5 * one}, {"ref": inside})
    assert torch.equal(image, (inside - 0.5 + 0.25).expand(1, 3, 2, 2))
    assert torch.equal(nonlinear(one, True, {"ref": 0.5 * one}, {"ref": inside}), one)  # clipped


def test_a_size_that_does_not_halve_is_refused() -> None:
    generator = tiny_generator()
    given = references().map(lambda t: t[..., :30])
    with pytest.raises(UserError, match="--resolution 30: this network needs a multiple of 8; choose 24"):
        generator(given, frame_inputs())


def test_an_image_that_the_data_lacks_is_named() -> None:
    with pytest.raises(UserError, match="--warp_ani"):
        tiny_generator()(references(), replace(frame_inputs(), ani_image=None))


def test_presets_are_what_the_flags_ask_for() -> None:
    flags = GeneratorFlags(
        netG="fewshot",
        preset="lite",
        adaptive_spade=True,
        warp_ref=True,
        warp_ani=True,
        spade_combine=True,
        use_new=True,
    )
    assert config_from_flags(flags) == LITE
    assert config_from_flags(replace(flags, preset="full"), add_raw=True) == GeneratorConfig(add_raw=True)
    assert config_from_flags(replace(flags, ngf=8)) == replace(LITE, ngf=8)
    assert GeneratorConfig.from_json_dict(LITE.to_json_dict()) == LITE
    with pytest.raises(UserError, match="--preset upstream: is for loading the public weights"):
        config_from_flags(replace(flags, preset="upstream"))
    check_flags(flags, LITE, "x")
    with pytest.raises(
        UserError, match="--use_new/--no_atten: asks for embedding mean, x was trained with att"
    ):
        check_flags(replace(flags, no_atten=True), LITE, "x")
    with pytest.raises(UserError, match="--ngf: asks for ngf 8, x was trained with 16"):
        check_same(replace(LITE, ngf=8), LITE, "x")
    with pytest.raises(UserError, match="--preset: x was trained with another preset"):
        check_same(replace(LITE, stem=1), LITE, "x")


def test_a_config_of_another_version_is_refused() -> None:
    assert GeneratorConfig.from_json_dict({"ngf": 8}) == GeneratorConfig(ngf=8)
    for saved in (None, {**LITE.to_json_dict(), "extra": 1}, {**LITE.to_json_dict(), "ngf": "16"}):
        with pytest.raises(UserError, match="not those of this version"):
            GeneratorConfig.from_json_dict(saved)


def test_lite_is_below_its_budget() -> None:
    """At most 15 GFLOP per 256 x 256 frame, once the references are encoded (two per multiply and add)."""
    from torch.utils.flop_counter import FlopCounterMode

    generator = FewShotGenerator(LITE).eval()
    grow = lambda t: torch.nn.functional.interpolate(t.flatten(0, -4), 256).unflatten(0, t.shape[:-3])  # noqa: E731
    inputs = frame_inputs(batch=1).map(grow)
    with torch.inference_mode():
        identity = generator.encode(references(batch=1, k=1).map(grow))
        with FlopCounterMode(display=False) as counter:
            generator.synthesise(identity, inputs)
    assert 1e9 < counter.get_total_flops() < 15e9


def test_sizes_are_of_the_presets() -> None:
    count = lambda config: sum(p.numel() for p in FewShotGenerator(config).parameters())  # noqa: E731
    with torch.device("meta"):
        assert 1e6 < count(LITE) < 5e6
        assert 60e6 < count(GeneratorConfig()) < 150e6
        assert count(TINY_LITE) < 1e5 > count(TINY)
