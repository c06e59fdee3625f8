"""Discriminators: patch critics of the frame, of face and mouth, and of successive frames."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from options.groups import DiscriminatorFlags

MAX_CHANNELS = 512
FACE_SIZE, MOUTH_SIZE = 128, 64  # sides in pixels to which the crops are resampled
FRAME_CHANNELS = 8  # warp reference's sketch 1 and image 3, target sketch 1, image 3
CROP_CHANNELS = 4  # target sketch 1, image 3
_MOUTH_LAYERS = 3  # a patch of 70 pixels: with a fourth layer it would outgrow the crop

Features = list[list[Tensor]]  # by scale, then by layer; the last layer is the prediction


class PatchDiscriminator(nn.Module):
    """PatchGAN of spectral, instance-normed 4 x 4 convolutions (parity notes, section 3, netD)."""

    def __init__(self, in_channels: int, ndf: int = 32, n_layers: int = 4) -> None:
        """n_layers: layers of stride 2; one of stride 1 and the prediction follow."""
        super().__init__()
        widths = [min(ndf * 2**i, MAX_CHANNELS) for i in range(n_layers + 1)]
        layers = [nn.Sequential(_conv(in_channels, widths[0], 2), nn.LeakyReLU(0.2))]
        for i in range(1, n_layers + 1):
            conv = spectral_norm(_conv(widths[i - 1], widths[i], 2 if i < n_layers else 1, bias=False))
            layers.append(nn.Sequential(conv, nn.InstanceNorm2d(widths[i]), nn.LeakyReLU(0.2)))
        self.layers = nn.ModuleList([*layers, _conv(widths[-1], 1, 1)])

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, in_channels, H, W) -> every layer's output; the last is the prediction (N, 1, h, w), > 0 for real."""
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps


class MultiscaleDiscriminator(nn.Module):
    """The same kind of critic at full size, half size, and so on."""

    def __init__(self, in_channels: int, ndf: int = 32, n_layers: int = 4, n_scales: int = 1) -> None:
        super().__init__()
        self.scales = nn.ModuleList(PatchDiscriminator(in_channels, ndf, n_layers) for _ in range(n_scales))

    def forward(self, x: Tensor) -> Features:
        """(N, in_channels, H, W) -> feature maps of each scale, the finest first."""
        maps = []
        for i, critic in enumerate(self.scales):
            if i:
                # the padding is not counted, so that borders don't darken
                x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
            maps.append(critic(x))
        return maps


class CropDiscriminator(MultiscaleDiscriminator):
    """A critic of one part of the picture, resampled to a fixed size."""

    def __init__(self, size: int, ndf: int = 32, n_layers: int = 4) -> None:
        super().__init__(CROP_CHANNELS, ndf, n_layers)
        self.size = size

    def forward(self, x: Tensor, box: Tensor) -> Features:  # type: ignore[override]
        """x: (N, 4, H, W) target sketch and image; box: (N, 4) as in `crop_box`."""
        return super().forward(crop_box(x, box, self.size))


class TemporalDiscriminator(MultiscaleDiscriminator):
    """A critic of n successive frames, their sketches, and what changes from one to the next."""

    def __init__(self, n_frames: int, ndf: int = 32, n_layers: int = 4) -> None:
        super().__init__(n_frames * 4 + (n_frames - 1) * 3, ndf, n_layers)
        self.n_frames = n_frames

    def forward(self, images: Tensor, sketches: Tensor) -> Features:  # type: ignore[override]
        """(N, T, 3, H, W) and (N, T, 1, H, W), T >= n -> maps of each sample's T - n + 1 windows."""
        n, last = self.n_frames, images.shape[1] - self.n_frames
        assert last >= 0, "the slice must be as long as the critic's window"
        parts = (images, sketches, images.diff(dim=1))
        widths = (n, n, n - 1)
        windows = [
            torch.cat([p[:, s : s + w].flatten(1, 2) for p, w in zip(parts, widths, strict=True)], 1)
            for s in range(last + 1)
        ]
        return super().forward(torch.stack(windows, 1).flatten(0, 1))


def crop_box(x: Tensor, box: Tensor, size: int) -> Tensor:
    """Cut a box out of each picture and resample it bilinearly; differentiable in x.

    x: (N, C, H, W). box: (N, 4) x0, y0, x1, y1 in pixels; pixel i covers i to i + 1, so (0, 0, W, H) is the
    whole picture. Returns (N, C, size, size). Beyond the picture its border is repeated.
    """
    height, width = x.shape[-2:]
    steps = (torch.arange(size, device=x.device, dtype=torch.float32) + 0.5) / size
    low, high = box.float()[:, :2, None], box.float()[:, 2:, None]
    extent = box.new_tensor([width, height], dtype=torch.float32)[:, None]
    at = (low + (high - low) * steps) / extent * 2 - 1  # (N, 2, size) x and y of the samples, -1 to 1
    grid = torch.stack([at[:, 0, None, :].expand(-1, size, -1), at[:, 1, :, None].expand(-1, -1, size)], -1)
    return F.grid_sample(x, grid.to(x.dtype), mode="bilinear", padding_mode="border", align_corners=False)


def build_discriminators(
    flags: DiscriminatorFlags, temporal: bool = False, n_frames: int = 1
) -> nn.ModuleDict:
    """The critics that the flags ask for: "frame", and "face", "mouth", "temporal".

    temporal: with a critic of `n_frames` successive frames (at least 2).
    Call them as frame(x), face(x, box), mouth(x, box), temporal(images, sketches); each returns `Features`.
    """
    ndf, n_layers = flags.ndf, flags.n_layers_D
    critics = nn.ModuleDict({"frame": MultiscaleDiscriminator(FRAME_CHANNELS, ndf, n_layers, flags.num_D)})
    if flags.add_face_D:
        critics["face"] = CropDiscriminator(FACE_SIZE, ndf, n_layers)
    if flags.add_mouth_D:
        critics["mouth"] = CropDiscriminator(MOUTH_SIZE, ndf, min(n_layers, _MOUTH_LAYERS))
    if temporal:
        critics["temporal"] = TemporalDiscriminator(max(n_frames, 2), ndf, n_layers)
    return critics


def _conv(inputs: int, outputs: int, stride: int, bias: bool = True) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 4, stride, 2, bias=bias)
    nn.init.xavier_normal_(conv.weight, 0.02)  # parity notes, section 6
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
