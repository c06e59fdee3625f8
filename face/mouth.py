"""What is seen between the lips: two flat pictures in canonical face coordinates and a dark behind them.

The upper picture (teeth, palate) is fixed to the skull, the lower one (lower teeth, tongue) to the jaw. They come from
a reference frame whose mouth is open, or, where there is none, from a plain drawing of teeth and tongue.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from face.mesh import INNER_LIPS
from face.pose import Pose, apply_pose

OPEN_GAP = 0.055  # face units: a mouth open this far shows its inside
HALF_WIDTH, ABOVE, BELOW = 0.42, 0.2, 0.4  # extent of the pictures about the mouth line, face units
PIXELS = 128  # per face unit
INCISOR_SHOWS, TOOTH_WIDTH = 0.04, 0.088  # 3.6 and 8 mm at 90 mm between the outer eyes
SHADED_GAP = 0.06  # face units: less light falls between lips that are nearer than this
GUM_COLOUR = np.array([0.27, 0.13, 0.12], np.float32)  # the dark of an open mouth in full light


@dataclass(frozen=True)
class MouthInterior:
    """Pictures (4, h, w) RGBA in [0, 1] over canonical x and y, and the colour behind them (3,)."""

    upper: Tensor
    lower: Tensor
    dark: Tensor
    centre: tuple[float, float]  # canonical x, y of the reference's mouth line
    lower_lip: float  # canonical y of the lower inner lip that the lower picture belongs to

    def colours(
        self, canonical_xy: Tensor, across: Tensor, along: Tensor, lower_lip: Tensor, gap: Tensor
    ) -> Tensor:
        """Colours (N, 3) at canonical positions (N, 2) between the lips.

        across (N,): 0 at the upper lip, 1 at the lower; along (N,): -1 and 1 at the corners;
        lower_lip (N,): canonical y of the frame's lower inner lip; gap (N,): the frame's lip opening, face units.
        """
        drop = lower_lip - self.lower_lip
        upper = self._look_up(self.upper, canonical_xy)
        shifted = torch.stack([canonical_xy[:, 0], canonical_xy[:, 1] - drop], 1)
        lower = self._look_up(self.lower, shifted)
        colour = self.dark.expand(len(across), 3)
        colour = torch.lerp(colour, lower[:, :3], lower[:, 3:])
        colour = torch.lerp(colour, upper[:, :3], upper[:, 3:])
        # Lips shade what lies behind them, most of all the upper lip and the corners.
        shade = (0.6 + 0.4 * (across / 0.3).clamp(0, 1)) * (1 - 0.45 * along.abs().clamp(0, 1) ** 3)
        shade = shade * (0.5 + 0.5 * (gap / SHADED_GAP).clamp(0, 1))
        return colour * shade[:, None]

    def _look_up(self, picture: Tensor, xy: Tensor) -> Tensor:
        x = (xy[:, 0] - self.centre[0]) / HALF_WIDTH
        y = (xy[:, 1] - self.centre[1] + ABOVE) / (ABOVE + BELOW) * 2 - 1
        grid = torch.stack([x, y], 1)[None, None]
        return F.grid_sample(picture[None], grid, padding_mode="border", align_corners=True)[0, :, 0].T


def mouth_coordinates() -> np.ndarray:
    """(478, 2) across and along the mouth for the inner-lip points (0 elsewhere)."""
    coordinates = np.zeros((478, 2), np.float32)
    for side, edge in enumerate(INNER_LIPS):
        coordinates[edge, 0] = side
        coordinates[edge, 1] = np.linspace(-1, 1, len(edge))
    corners = INNER_LIPS[0][[0, -1]]
    coordinates[corners, 0] = 0.5
    return coordinates


def _plane(centre: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    w, h = round(2 * HALF_WIDTH * PIXELS), round((ABOVE + BELOW) * PIXELS)
    x = centre[0] + np.linspace(-HALF_WIDTH, HALF_WIDTH, w)
    y = centre[1] + np.linspace(-ABOVE, BELOW, h)
    return np.meshgrid(x.astype(np.float32), y.astype(np.float32))


def _mouth_centre(canonical: np.ndarray) -> tuple[float, float]:
    upper = canonical[INNER_LIPS[0]]
    return float(canonical[[78, 308], 0].mean()), float(upper[3:8, 1].mean())


def mouth_from_reference(
    image: np.ndarray, vertices: np.ndarray, canonical: np.ndarray, pose: Pose, device: str | torch.device
) -> MouthInterior:
    """Interior from an open-mouthed reference.

    image: (S, S, 3) float32 in [0, 1]; vertices, canonical: (478, 3) its mesh in pixels and in face units;
    pose: its pose (one frame).
    """
    centre = _mouth_centre(canonical)
    x, y = _plane(centre)
    depth = canonical[np.concatenate(INNER_LIPS), 2].mean()
    points = np.stack([x, y, np.full_like(x, depth)], -1).reshape(1, -1, 3)
    pixels = apply_pose(points, pose)[0, :, :2].reshape(*x.shape, 2)
    picture = cv2.remap(
        image, pixels[..., 0], pixels[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    outline = np.concatenate([canonical[INNER_LIPS[0], :2], canonical[INNER_LIPS[1][::-1], :2]])
    to_pixels = (outline - [centre[0] - HALF_WIDTH, centre[1] - ABOVE]) * PIXELS
    seen = np.zeros(x.shape, np.uint8)
    cv2.fillPoly(seen, [np.round(to_pixels * 8).astype(np.int32)], 255, shift=3)
    seen = cv2.erode(seen, np.ones((3, 3), np.uint8), iterations=2)
    bytes_ = (picture * 255).round().astype(np.uint8)
    near = cv2.dilate(seen, np.ones((3, 3), np.uint8), iterations=14)
    filled = cv2.inpaint(
        bytes_, np.where((seen == 0) & (near > 0), 255, 0).astype(np.uint8), 3, cv2.INPAINT_TELEA
    )
    filled = filled.astype(np.float32) / 255
    drawn = drawn_mouth(image, vertices, canonical, device)
    edge = _teeth_edge(filled, seen, y, _skin_light(image, vertices))
    if edge is None:
        return drawn
    alpha = np.clip((edge - y) / 0.02 + 0.5, 0, 1)
    upper = np.concatenate([filled, alpha[..., None]], -1)
    # What a mouth opened further shows below the reference's teeth is drawn.
    picture_below = drawn.lower.permute(1, 2, 0).cpu().numpy()
    dark = drawn.dark.cpu().numpy()
    return _interior(upper, picture_below, dark, centre, drawn.lower_lip, device)


def _teeth_edge(picture: np.ndarray, seen: np.ndarray, y: np.ndarray, light: float) -> float | None:
    """Canonical y down to which the reference's opening shows teeth, or None where it shows none.

    Teeth are pale: all three channels are bright against the skin's light, where lips and tongue are red.
    """
    columns = slice(int(seen.shape[1] * 0.4), int(seen.shape[1] * 0.6))
    visible = seen[:, columns] > 0
    rows = np.flatnonzero(visible.mean(1) > 0.3)
    pale = np.array([picture[r, columns][visible[r]].min(-1).mean() for r in rows])
    teeth = rows[pale > 0.55 * light] if len(rows) else rows
    return float(y[teeth[-1], 0] + 1 / PIXELS) if len(teeth) else None


def drawn_mouth(
    image: np.ndarray, vertices: np.ndarray, canonical: np.ndarray, device: str | torch.device
) -> MouthInterior:
    """Interior drawn for a reference whose mouth is closed: a band of upper teeth, lower teeth and tongue.

    image: (S, S, 3) float32 in [0, 1]; vertices: (478, 3) pixels; canonical: (478, 3) face units.
    """
    centre = _mouth_centre(canonical)
    x, y = _plane(centre)
    light = _skin_light(image, vertices)
    x, y = x - centre[0], y - centre[1]
    shape = np.exp(-((x / 0.25) ** 4))
    tooth = np.cos(np.pi * (x / TOOTH_WIDTH - np.round(x / TOOTH_WIDTH))) ** 0.35  # dips between teeth
    enamel = np.array([0.80, 0.73, 0.67], np.float32) * light
    edge = INCISOR_SHOWS - 0.55 * x**2 - 0.006 * (1 - tooth)
    upper_alpha = np.clip((edge - y) / 0.03 + 0.5, 0, 1) * shape
    upper = enamel * ((0.82 + 0.18 * tooth) * (0.75 + 0.25 * np.clip((y + 0.09) / 0.1, 0, 1)))[..., None]
    lower_tooth = np.cos(np.pi * (x / 0.06 - np.round(x / 0.06) - 0.5)) ** 2
    low_edge = -0.012 + 0.5 * x**2
    teeth_alpha = np.clip((y - low_edge) / 0.03 + 0.5, 0, 1) * np.exp(-((x / 0.17) ** 4))
    tongue = np.array([0.62, 0.30, 0.29], np.float32) * light * 0.75
    tongue_alpha = 0.85 * np.exp(-((x / 0.2) ** 4)) * np.clip((y + 0.085) / 0.07, 0, 1)
    lower = tongue * (1 - 0.8 * teeth_alpha[..., None])
    lower = lower + 0.8 * teeth_alpha[..., None] * enamel * 0.72 * (0.9 + 0.1 * lower_tooth[..., None])
    lower_alpha = np.maximum(tongue_alpha, 0.9 * teeth_alpha)
    dark = GUM_COLOUR * light
    return _interior(
        np.concatenate([upper, upper_alpha[..., None]], -1),
        np.concatenate([lower, lower_alpha[..., None]], -1),
        dark,
        centre,
        centre[1],
        device,
    )


def _skin_light(image: np.ndarray, vertices: np.ndarray) -> float:
    """How bright the skin about the mouth is, 0 to 1: teeth are not brighter than the light allows."""
    around = vertices[[205, 425, 199, 200, 164, 2, 57, 287], :2].round().astype(int)
    around = np.clip(around, 0, np.array(image.shape[1::-1]) - 1)
    return float(np.clip(image[around[:, 1], around[:, 0]].max(1).mean() * 1.02, 0.15, 0.95))


def _interior(
    upper: np.ndarray,
    lower: np.ndarray,
    dark: np.ndarray,
    centre: tuple[float, float],
    lip_y: float,
    device: str | torch.device,
) -> MouthInterior:
    def picture(array: np.ndarray) -> Tensor:
        return torch.tensor(array, dtype=torch.float32, device=device).permute(2, 0, 1).contiguous()

    dark_colour = torch.tensor(np.asarray(dark), dtype=torch.float32, device=device)
    return MouthInterior(picture(upper), picture(lower), dark_colour, centre, lip_y)
