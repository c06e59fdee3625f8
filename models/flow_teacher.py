"""Where the true flow for the flow networks' loss comes from: FlowNet2, OpenCV's DIS, or the posed mesh itself."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from third_party.flownet2.convert import load_network
from third_party.flownet2.flownet2 import SIZE_STEP
from third_party.flownet2.ops import resample2d
from util.checkpoints import checkpoint_path
from util.errors import ShapeError, UserError, remark

NAMES = ("auto", "flownet2", "dis", "mesh", "none")
CHECKPOINT = "flownet2.safetensors"
DOWNLOAD = "python scripts/download_flownet2.py"
MAX_SQUARED_ERROR = 0.02  # over RGB in [-1, 1], of a pixel whose flow is believed
MIN_DIS_SIDE = 16  # pixels: into less DIS cannot fit its patches


class FlowTeacher(Protocol):
    """Tells the flow between two images."""

    def __call__(
        self,
        target: Tensor,
        source: Tensor,
        mesh_flow: Tensor | None = None,
        mesh_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """target, source: [B, 3, H, W] in [-1, 1]. No gradient flows back.

        mesh_flow [B, 2, H, W], pixels, and mesh_mask [B, 1, H, W], 1 where it is known: only "mesh" reads them.
        Returns the flow [B, 2, H, W], pixels, x first: target pixel p is seen at p + flow(p) in the source; and
        the confidence [B, 1, H, W], 1 where the source, so warped, looks like the target, else 0.
        Raises ShapeError unless both images have one shape.
        """
        ...


def make_flow_teacher(name: str, device: torch.device | str = "cpu") -> FlowTeacher | None:
    """The teacher of a --flow_teacher name (see NAMES); "auto" is FlowNet2 if its weights are there, else DIS.

    Raises UserError for an unknown name, and for "flownet2" without its weights.
    """
    path = checkpoint_path(CHECKPOINT)
    if name == "auto":
        name = "flownet2" if path.exists() else "dis"
        why = f"{path} is there" if path.exists() else f"without {path}; for FlowNet2 run {DOWNLOAD}"
        remark(f"--flow_teacher auto: {name} ({why})")
    if name == "flownet2":
        return FlowNet2Teacher.load(path, device)
    if name == "dis":
        return DisTeacher()
    if name == "mesh":
        return MeshTeacher()
    if name == "none":
        return None
    raise UserError(f"--flow_teacher {name}: unknown; choose one of {', '.join(NAMES)}")


def squared_error(target: Tensor, source: Tensor, flow: Tensor) -> Tensor:
    """Sum over colours of (target - warped source)^2: [B, 1, H, W]."""
    return (target - resample2d(source, flow)).square().sum(1, keepdim=True)


def confidence(target: Tensor, source: Tensor, flow: Tensor) -> Tensor:
    """1 where the warped source looks like the target, else 0: [B, 1, H, W]."""
    return (squared_error(target, source, flow) < MAX_SQUARED_ERROR).to(target.dtype)


class FlowNet2Teacher:
    """FlowNet2 as this method's public code calls it: images in [-1, 1] and rgb_max 1."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    @classmethod
    def load(cls, path: Path, device: torch.device | str) -> FlowNet2Teacher:
        if not path.exists():
            raise UserError(
                f"--flow_teacher flownet2: no {path}; its weights are needed; run {DOWNLOAD}, or choose dis"
            )
        return cls(load_network(path, flag="--flow_teacher flownet2").to(device))

    @torch.no_grad()
    def __call__(
        self,
        target: Tensor,
        source: Tensor,
        mesh_flow: Tensor | None = None,
        mesh_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See FlowTeacher. Sides that are no multiples of 64 are resized, and the flow scaled back, each by itself.

        The public code scales both components by the ratio of the heights.
        """
        _check(target, source)
        with torch.autocast(target.device.type, enabled=False):
            target, source = target.float(), source.float()
            sides = target.shape[2:]
            fitting = [max(SIZE_STEP, side // SIZE_STEP * SIZE_STEP) for side in sides]
            pair = torch.stack([_resize(x, fitting) for x in (target, source)], 2)
            flow = _resize(self.net(pair), sides)
            scale = flow.new_tensor([sides[1] / fitting[1], sides[0] / fitting[0]])
            flow = flow * scale[:, None, None]
            return flow, confidence(target, source, flow)


def _resize(x: Tensor, sides: torch.Size | list[int]) -> Tensor:
    if list(x.shape[2:]) == list(sides):
        return x
    return F.interpolate(x, tuple(sides), mode="bilinear", align_corners=False)


class DisTeacher:
    """OpenCV's dense inverse search on grey images, on the CPU: no weights, about 50 frames of 256 x 256 a second."""

    def __init__(self) -> None:
        self.search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    @torch.no_grad()
    def __call__(
        self,
        target: Tensor,
        source: Tensor,
        mesh_flow: Tensor | None = None,
        mesh_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See FlowTeacher. Raises ShapeError for sides below 16 pixels, too."""
        _check(target, source)
        if min(target.shape[2:]) < MIN_DIS_SIDE:
            needed = f"sides of {MIN_DIS_SIDE} or more for --flow_teacher dis"
            raise ShapeError("images of the flow teacher", needed, target.shape)
        target, source = target.float(), source.float()
        pairs = zip(_grey(target), _grey(source), strict=True)
        flows = [self.search.calc(a, b, None) for a, b in pairs]
        flow = torch.from_numpy(np.stack(flows)).permute(0, 3, 1, 2).contiguous().to(target.device)
        return flow, confidence(target, source, flow)


def _grey(images: Tensor) -> np.ndarray:
    """[B, 3, H, W] in [-1, 1] to (B, H, W) uint8."""
    weights = images.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    grey = ((images * weights).sum(1) * 127.5 + 127.5).round().clamp(0, 255)
    return grey.to(torch.uint8).cpu().numpy()


class MeshTeacher:
    """The exact flow of the posed mesh, which the caller has."""

    @torch.no_grad()
    def __call__(
        self,
        target: Tensor,
        source: Tensor,
        mesh_flow: Tensor | None = None,
        mesh_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See FlowTeacher. Confident only inside the mask, if there is one."""
        _check(target, source)
        assert mesh_flow is not None, "the mesh teacher is called without mesh_flow"
        sure = confidence(target, source, mesh_flow)
        if mesh_mask is not None:
            if mesh_mask.shape != sure.shape:
                raise ShapeError("mesh_mask", str(tuple(sure.shape)), mesh_mask.shape)
            sure = sure * (mesh_mask > 0)
        return mesh_flow, sure


def _check(target: Tensor, source: Tensor) -> None:
    if target.ndim != 4 or target.shape[1] != 3 or target.shape != source.shape:
        raise ShapeError(
            "images of the flow teacher", f"[B, 3, H, W] like {tuple(target.shape)}", source.shape
        )
