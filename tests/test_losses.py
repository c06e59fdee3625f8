"""models/losses.py: values by hand, what is in and what is left out, where gradients go, halves of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models.discriminator import build_discriminators
from models.losses import discriminator_losses, generator_losses, mouth_crop, temporal_losses
from options.groups import DiscriminatorFlags, LossFlags
from util.batch import FaceBatch, Synthesis

SIZE = 32
ALL_CRITICS = DiscriminatorFlags(ndf=4, n_layers_D=2, num_D=2, add_face_D=True, add_mouth_D=True)
NOTHING = LossFlags(
    lambda_gan=0, lambda_feat=0, lambda_vgg=0, lambda_flow=0, lambda_warp=0, lambda_mouth_vgg=0
)


class Pixels(nn.Module):
    """Stands in for the perceptual network: the picture itself, and twice its mean over colours."""

    weights = (1.0, 0.5)

    def forward(self, images: Tensor) -> list[Tensor]:
        self.sizes = [*getattr(self, "sizes", []), len(images)]
        return [images, 2 * images.mean(1, keepdim=True)]


class Constant(nn.Module):
    """A critic whose features and prediction are the mean of what it sees in the image."""

    def forward(self, x: Tensor, *_: Tensor) -> list[list[Tensor]]:
        image = x[:, -3:].mean((1, 2, 3), keepdim=True)
        return [[3 * image, image]]


def make_batch(n: int = 2, frames: int = 2) -> FaceBatch:
    rand = lambda channels: torch.rand(n, frames, channels, SIZE, SIZE)  # noqa: E731
    template = torch.zeros(n, frames, 1, SIZE, SIZE)
    template[:, :, :, 20:28, 10:24] = 1
    template[0, :, :, 4:9, 4:9] = 1  # areas differ from sample to sample
    box = torch.tensor([8.0, 18, 26, 30]).expand(n, frames, 4).clone()
    box[0] += 1
    return FaceBatch(
        tgt_image=rand(3) * 2 - 1,
        tgt_sketch=rand(1),
        ref_image=rand(3) * 2 - 1,
        ref_sketch=rand(1),
        warp_image=rand(3) * 2 - 1,
        warp_sketch=rand(1),
        face_box=torch.tensor([2.0, 2, 30, 30]).expand(n, frames, 4).clone(),
        mouth_box=box,
        template=template,
        ani_mask=rand(1),
    )


def make_syn(n: int = 2, grad: bool = False) -> Synthesis:
    rand = lambda channels: (torch.rand(n, channels, SIZE, SIZE) * 2 - 1).requires_grad_(grad)  # noqa: E731
    sources = ("ref", "ani", "prev")
    return Synthesis(
        image=rand(3),
        raw=rand(3),
        ani_composed=rand(3),
        warped={s: rand(3) for s in sources},
        flow={s: rand(2) for s in sources},
        weight={s: torch.rand(n, 1, SIZE, SIZE).requires_grad_(grad) for s in sources},
    )


def make_flows(n: int = 2) -> dict[str, tuple[Tensor, Tensor]]:
    return {s: (torch.randn(n, 2, SIZE, SIZE), torch.rand(n, 1, SIZE, SIZE)) for s in ("ref", "ani")}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def critics() -> nn.ModuleDict:
    return build_discriminators(ALL_CRITICS, temporal=True, n_frames=2).eval()


FULL = LossFlags(add_raw_loss=True, use_weight_loss=True, face_l1=1.0, mask_l1=1.0)


def test_all_terms(critics: nn.ModuleDict) -> None:
    terms = generator_losses(make_syn(), make_batch(), 0, critics, Pixels(), make_flows(), FULL)
    names = [f"{a}{b}" for a in ("gan", "feat") for b in ("", "_raw", "_ani", "_face", "_mouth")]
    names += ["vgg", "vgg_raw", "vgg_ani", "vgg_mouth", "flow_ref", "flow_ani", "l1", "l1_mask"]
    names += [f"{a}_{b}" for a in ("warp", "weight") for b in ("ref", "ani", "prev")]
    assert set(terms) == set(names)
    assert all(v.ndim == 0 and v.isfinite() for v in terms.values())


def test_weight_of_zero_leaves_out(critics: nn.ModuleDict) -> None:
    assert generator_losses(make_syn(), make_batch(), 0, critics, Pixels(), make_flows(), NOTHING) == {}
    assert temporal_losses([make_syn()] * 2, make_batch(), critics, NOTHING) == {}
    off = LossFlags(no_ganFeat_loss=True, no_vgg_loss=True)
    terms = generator_losses(make_syn(), make_batch(), 0, critics, Pixels(), None, off)
    assert not [name for name in terms if name.startswith(("feat", "vgg", "flow", "weight", "l1"))]
    assert "gan_raw" not in terms, "only with --add_raw_loss"


def test_without_critics_and_network() -> None:
    terms = generator_losses(Synthesis(image=make_syn().image), make_batch(), 0, None, None, None, FULL)
    assert set(terms) == {"l1", "l1_mask"}
    assert temporal_losses([make_syn()] * 2, make_batch(), None, FULL) == {}


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_weights_multiply(critics: nn.ModuleDict, factor: float) -> None:
    names = [n for n in LossFlags.__dataclass_fields__ if n.startswith("lambda_") or n.endswith("_l1")]
    shared = {
        "lambda_face",
        "lambda_mouth",
        "lambda_temp",
    }  # they multiply terms that have another weight too
    flags = replace(FULL, **{n: getattr(FULL, n) * factor for n in names if n not in shared})
    syn, batch, flows = make_syn(), make_batch(), make_flows()
    one = generator_losses(syn, batch, 0, critics, Pixels(), flows, FULL)
    two = generator_losses(syn, batch, 0, critics, Pixels(), flows, flags)
    for name, value in one.items():
        assert two[name].item() == pytest.approx(factor * value.item(), rel=1e-5), name


def test_adversarial_terms_by_hand() -> None:
    batch, image = make_batch(), make_syn().image
    flags = replace(NOTHING, lambda_gan=2.0, lambda_feat=5.0)
    terms = generator_losses(
        Synthesis(image=image), batch, 1, nn.ModuleDict({"frame": Constant()}), None, None, flags
    )
    fake, real = image.mean((1, 2, 3)), batch.tgt_image[:, 1].mean((1, 2, 3))
    assert terms["gan"].item() == pytest.approx(-2 * fake.mean().item(), abs=1e-6)
    assert terms["feat"].item() == pytest.approx(5 * 3 * (fake - real).abs().mean().item(), abs=1e-6)


def test_real_features_are_computed_once() -> None:
    net = Pixels()
    generator_losses(make_syn(), make_batch(), 0, None, net, None, FULL)
    assert net.sizes == [2, 6], "the target, then frame, raw and ani in one go"


def test_perceptual_terms_by_hand(critics: nn.ModuleDict) -> None:
    batch, syn = make_batch(), make_syn()
    terms = generator_losses(syn, batch, 1, critics, Pixels(), None, LossFlags(lambda_mouth_vgg=3.0))
    error = syn.ani_composed - batch.tgt_image[:, 1]
    expected = error.abs().mean() + 0.5 * 2 * error.mean(1).abs().mean()
    assert terms["vgg_ani"].item() == pytest.approx(10 * expected.item(), rel=1e-5)
    mouth = mouth_crop(syn.image - batch.tgt_image[:, 1], batch, 1)
    expected = mouth.abs().mean() + 0.5 * 2 * mouth.mean(1).abs().mean()
    assert terms["vgg_mouth"].item() == pytest.approx(3 * expected.item(), rel=1e-4)


def test_flow_terms_by_hand() -> None:
    syn, (flow, confidence) = make_syn(), (torch.randn(2, 2, SIZE, SIZE), torch.rand(2, 1, SIZE, SIZE))
    terms = generator_losses(syn, make_batch(), 0, None, None, {"ref": (flow, confidence)}, LossFlags())
    total = sum((confidence[:, 0] * (syn.flow["ref"][:, c] - flow[:, c]).abs()).sum() for c in (0, 1))
    assert terms["flow_ref"].item() == pytest.approx(10 * total.item() / flow.numel(), rel=1e-5)
    assert "flow_ani" not in terms
    sure = generator_losses(syn, make_batch(), 0, None, None, {"ref": (flow, 0 * confidence)}, LossFlags())
    assert sure["flow_ref"] == 0


def test_warp_terms_by_hand() -> None:
    batch, syn = make_batch(), make_syn()
    terms = generator_losses(syn, batch, 1, None, None, None, LossFlags())
    target, mask = batch.tgt_image[:, 1], batch.ani_mask[:, 1]
    for source, seen in {"ref": target, "prev": target, "ani": target * mask + (mask - 1)}.items():
        expected = 10 * (syn.warped[source] - seen).abs().mean()
        assert terms[f"warp_{source}"].item() == pytest.approx(expected.item(), rel=1e-5)
    plain = generator_losses(syn, replace(batch, ani_mask=None), 1, None, None, None, LossFlags())
    expected = 10 * (syn.warped["ani"] - target).abs().mean()
    assert plain["warp_ani"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_weight_terms_by_hand() -> None:
    batch = make_batch(n=1)
    target = batch.tgt_image[:, 0]
    weight = torch.full((1, 1, SIZE, SIZE), 0.25, requires_grad=True)
    flags = replace(NOTHING, use_weight_loss=True)
    for error, expected in ((0.0, 0.25), (0.5, 0.75), (0.1, 0.7 * 0.25 + 0.3 * 0.75)):  # of each colour
        warped = (target + error).requires_grad_()
        syn = Synthesis(image=target, warped={"ref": warped}, weight={"ref": weight})
        term = generator_losses(syn, batch, 0, None, None, None, flags)["weight_ref"]
        assert term.item() == pytest.approx(10 * expected, rel=1e-4)
        term.backward()
        assert warped.grad is None, "a flow must not please by warping worse"
    assert weight.grad is not None


def test_pixel_terms_by_hand() -> None:
    batch = make_batch()
    image = batch.tgt_image[:, 0] + 0.5 * batch.template[:, 0]
    terms = generator_losses(
        Synthesis(image=image), batch, 0, None, None, None, LossFlags(face_l1=2, mask_l1=3)
    )
    assert terms["l1_mask"].item() == pytest.approx(3 * 0.5, rel=1e-5), "by the mask's area"
    assert terms["l1"].item() == pytest.approx(2 * 0.5 * batch.template[:, 0].mean().item(), rel=1e-5)
    empty = replace(batch, template=torch.zeros_like(batch.template))
    assert (
        generator_losses(Synthesis(image=image), empty, 0, None, None, None, LossFlags(mask_l1=3))["l1_mask"]
        == 0
    )


def test_gradients_reach_every_output(critics: nn.ModuleDict) -> None:
    critics.requires_grad_(False)
    syn = make_syn(grad=True)
    sum(generator_losses(syn, make_batch(), 0, critics, Pixels(), make_flows(), FULL).values()).backward()
    outputs = {"image": syn.image, "raw": syn.raw, "ani_composed": syn.ani_composed}
    outputs |= {f"warped {s}": v for s, v in syn.warped.items()} | {
        f"weight {s}": v for s, v in syn.weight.items()
    }
    outputs |= {f"flow {s}": syn.flow[s] for s in ("ref", "ani")}
    for name, value in outputs.items():
        assert value.grad is not None, name
        assert value.grad.isfinite().all(), name
        assert value.grad.abs().sum() > 0, name
    assert all(p.grad is None for p in critics.parameters())


def test_temporal_terms(critics: nn.ModuleDict) -> None:
    batch, flags = make_batch(frames=3), replace(NOTHING, lambda_gan=1.0, lambda_feat=10.0)
    syns = [make_syn(grad=True) for _ in range(3)]
    terms = temporal_losses(syns, batch, critics.requires_grad_(False), flags)
    assert set(terms) == {"gan_temp", "feat_temp"}
    sum(terms.values()).backward()
    assert all(s.image.grad.abs().sum() > 0 for s in syns)
    doubled = temporal_losses(syns, batch, critics, replace(flags, lambda_temp=2 * flags.lambda_temp))
    assert doubled["gan_temp"].item() == pytest.approx(2 * terms["gan_temp"].item(), rel=1e-5)
    truth = [Synthesis(image=batch.tgt_image[:, t]) for t in range(3)]
    assert temporal_losses(truth, batch, critics, flags)["feat_temp"].item() == pytest.approx(0, abs=1e-5)
    assert temporal_losses(syns[:1], batch, critics, flags) == {}, "shorter than the critic's window"


def test_discriminator_terms_by_hand() -> None:
    batch, syn = make_batch(), make_syn()
    critics, flags = nn.ModuleDict({"frame": Constant(), "face": Constant()}), LossFlags(add_raw_loss=True)
    terms = discriminator_losses([syn, syn], batch, critics, flags)
    assert set(terms) == {"d_frame_real", "d_frame_fake", "d_face_real", "d_face_fake"}
    real = [torch.relu(1 - batch.tgt_image[:, t].mean((1, 2, 3))).mean().item() for t in (0, 1)]
    fake = [torch.relu(1 + i.mean((1, 2, 3))).mean().item() for i in (syn.image, syn.raw, syn.ani_composed)]
    assert terms["d_frame_real"].item() == pytest.approx(3 * sum(real) / 2, rel=1e-5)
    assert terms["d_frame_fake"].item() == pytest.approx(sum(fake), rel=1e-5)
    assert terms["d_face_real"].item() == pytest.approx(sum(real) / 2, rel=1e-5)
    assert terms["d_face_fake"].item() == pytest.approx(fake[0], rel=1e-5)


def test_discriminator_step_lowers_the_loss_and_spares_the_generator() -> None:
    critics = build_discriminators(ALL_CRITICS, temporal=True, n_frames=2)
    batch, syns = make_batch(), [make_syn(grad=True) for _ in range(2)]
    optimiser = torch.optim.Adam(critics.parameters(), 8e-4, betas=(0.0, 0.999))
    history = []
    for _ in range(5):
        terms = discriminator_losses(syns, batch, critics, LossFlags())
        optimiser.zero_grad()
        sum(terms.values()).backward()
        optimiser.step()
        history.append({k: v.item() for k, v in terms.items()})
    assert {"d_temporal_real", "d_temporal_fake"} <= set(history[0])
    for name in ("frame", "face", "mouth", "temporal"):
        first, last = (h[f"d_{name}_real"] + h[f"d_{name}_fake"] for h in (history[0], history[-1]))
        assert last < first, name
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in critics.parameters())
    assert all(s.image.grad is None for s in syns)


def _halves(batch: FaceBatch, syn: Synthesis, flows: dict) -> list[tuple[FaceBatch, Synthesis, dict]]:
    def part(cut: Callable[[Tensor], Tensor]) -> tuple[FaceBatch, Synthesis, dict]:
        tables = {
            name: {k: cut(v) for k, v in getattr(syn, name).items()} for name in ("warped", "flow", "weight")
        }
        images = {name: cut(getattr(syn, name)) for name in ("image", "raw", "ani_composed")}
        return (
            batch.map(cut),
            Synthesis(**images, **tables),
            {k: (cut(f), cut(c)) for k, (f, c) in flows.items()},
        )

    return [part(lambda x: x[:2]), part(lambda x: x[2:])]


def test_halves_of_a_batch_average_to_the_whole(critics: nn.ModuleDict) -> None:
    batch, syn, flows = make_batch(n=4), make_syn(n=4), make_flows(n=4)

    def terms(b: FaceBatch, s: Synthesis, f: dict) -> dict[str, Tensor]:
        return (
            generator_losses(s, b, 0, critics, Pixels(), f, FULL)
            | temporal_losses([s, s], b, critics, FULL)
            | discriminator_losses([s, s], b, critics, FULL)
        )

    whole = terms(batch, syn, flows)
    first, second = (terms(*half) for half in _halves(batch, syn, flows))
    assert whole.keys() == first.keys()
    for name, value in whole.items():
        half = (first[name] + second[name]).item() / 2
        assert value.item() == pytest.approx(half, rel=1e-4, abs=1e-5), name
