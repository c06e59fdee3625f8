"""FlowNet2 (Ilg et al., CVPR 2017) and its smaller relatives, with the public checkpoints' parameter names.

All take a pair [B, 3, 2, H, W] (colour RGB, then first and second image; H and W multiples of 64) in 0..rgb_max and
return the flow [B, 2, H, W] in pixels, x first: pixel p of the first image is seen at p + flow in the second.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from third_party.flownet2.flownet_c import FlowNetC
from third_party.flownet2.flownet_s import FlowNetS
from third_party.flownet2.flownet_sd import FlowNetSD
from third_party.flownet2.fusion import FlowNetFusion
from third_party.flownet2.ops import channel_norm, resample2d
from util.errors import ShapeError

DIV_FLOW = 20.0  # the networks answer in this many pixels
SIZE_STEP = 64  # the coarsest level is 1/64


def normalise(pair: Tensor, rgb_max: float) -> Tensor:
    """[B, 3, 2, H, W] to [B, 6, H, W]: first image, second image, less each sample's mean colour, over rgb_max.

    Raises ShapeError unless there are two RGB images with sides that are multiples of 64.
    """
    if pair.ndim != 5 or pair.shape[1:3] != (3, 2) or any(not s or s % SIZE_STEP for s in pair.shape[3:]):
        raise ShapeError("image pair", f"[B, 3, 2, H, W], H and W multiples of {SIZE_STEP}", pair.shape)
    mean = pair.mean((2, 3, 4), keepdim=True)
    return ((pair - mean) / rgb_max).transpose(1, 2).flatten(1, 2)


def _up4(flow: Tensor, mode: str = "bilinear") -> Tensor:
    return F.interpolate(flow, scale_factor=4, mode=mode)


class _OfPair(nn.Module):
    """One network by itself. In training it returns its raw flows of 1/4 to 1/64, in units of 20 pixels."""

    def __init__(self, rgb_max: float = 1.0) -> None:
        super().__init__()
        self.rgb_max = rgb_max

    def forward(self, pair: Tensor) -> Tensor | tuple[Tensor, ...]:
        flows = super().forward(normalise(pair, self.rgb_max))
        return flows if self.training else _up4(flows[0] * DIV_FLOW)


class FlowNet2C(_OfPair, FlowNetC):
    """FlowNetC by itself."""


class FlowNet2S(_OfPair, FlowNetS):
    """FlowNetS by itself."""


class FlowNet2SD(_OfPair, FlowNetSD):
    """FlowNetSD by itself."""


class FlowNet2CS(nn.Module):
    """FlowNetC, refined by one FlowNetS."""

    def __init__(self, rgb_max: float = 1.0) -> None:
        super().__init__()
        self.rgb_max = rgb_max
        self.flownetc = FlowNetC()
        self.flownets_1 = FlowNetS(12)

    def forward(self, pair: Tensor) -> Tensor:
        return self._stack(normalise(pair, self.rgb_max))

    def _stack(self, x: Tensor) -> Tensor:
        flow = _up4(self.flownetc(x)[0] * DIV_FLOW)
        return _up4(self.flownets_1(self._with_warp(x, flow))[0] * DIV_FLOW)

    @staticmethod
    def _with_warp(x: Tensor, flow: Tensor) -> Tensor:
        """Both images, the second as the flow brings it onto the first, the flow, and the error left: 12 channels."""
        warped = resample2d(x[:, 3:], flow)
        return torch.cat((x, warped, flow / DIV_FLOW, channel_norm(x[:, :3] - warped)), 1)


class FlowNet2CSS(FlowNet2CS):
    """FlowNetC, refined by two FlowNetS."""

    def __init__(self, rgb_max: float = 1.0) -> None:
        super().__init__(rgb_max)
        self.flownets_2 = FlowNetS(12)

    def _stack(self, x: Tensor) -> Tensor:
        flow = super()._stack(x)
        return _up4(self.flownets_2(self._with_warp(x, flow))[0] * DIV_FLOW, "nearest")


class FlowNet2(FlowNet2CSS):
    """The whole: CSS for large motion and SD for small, fused."""

    def __init__(self, rgb_max: float = 1.0) -> None:
        super().__init__(rgb_max)
        self.flownets_d = FlowNetSD()
        self.flownetfusion = FlowNetFusion()

    def forward(self, pair: Tensor) -> Tensor:
        x = normalise(pair, self.rgb_max)
        first, second = x[:, :3], x[:, 3:]
        large = self._stack(x)
        small = _up4(self.flownets_d(x)[0] / DIV_FLOW, "nearest")  # divided: so it was trained
        lengths = [channel_norm(flow) for flow in (small, large)]
        errors = [channel_norm(first - resample2d(second, flow)) for flow in (small, large)]
        return self.flownetfusion(torch.cat((first, small, large, *lengths, *errors), 1))


MODELS: dict[str, type[nn.Module]] = {
    model.__name__: model for model in (FlowNet2, FlowNet2C, FlowNet2S, FlowNet2SD, FlowNet2CS, FlowNet2CSS)
}
