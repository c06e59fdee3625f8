"""The geometric generator (`--netG geometric`): frames without a learnt network.

The reference picture is warped by the extended head flow; the 3D projection image of the face ('ani') lies over it
through a soft mask; between the lips is the mouth interior. Baseline and starting point of every learnt generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from face.expression_basis import LOWER_LIP, UPPER_LIP, ExpressionBasis, lip_gap
from face.head_field import HeadField
from face.mesh import FACE_OVAL, IRISES, LEFT_EYE, RIGHT_EYE, FaceTopology
from face.mouth import OPEN_GAP, MouthInterior, drawn_mouth, mouth_coordinates, mouth_from_reference
from face.pose import Pose, apply_pose
from face.reference import ReferenceFace
from face.renderer import interpolate, rasterize, sample_pixels, to_image
from util.curves import smoothstep

# A mesh tracked in one frontal frame is too flat: turned by 20 degrees its picture is tracked at 15. Measured on five
# photos, this depth gives 19 to 21.
DEPTH = 1.35
# Sharpening that makes up for two resamplings and the codec, and more where a large picture was reduced by averaging:
# (for a reference that was not reduced, for one reduced by half). It costs 0.1 dB against a clip's own frames.
CRISPNESS = (0.2, 0.9)
_BINOMIAL = [(dy, dx, (2 - abs(dy)) * (2 - abs(dx)) / 16) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]


@dataclass(frozen=True)
class FaceMotion:
    """The target face of B frames."""

    canonical: np.ndarray  # (B, 478, 3) face units
    pose: Pose  # B frames, crop pixels
    gaze: np.ndarray  # (B, 2) shift of the irises in face units, right and down


@dataclass(frozen=True)
class Projection:
    """The 3D projection image, and where the reference shows what each target pixel does."""

    ani: Tensor  # (B, 3, S, S) RGB in [0, 1], black outside the face
    opacity: Tensor  # (B, 1, S, S) soft, in [0, 1]
    head: Tensor  # (B, S, S, 2) positions in the reference by the head's flow
    mesh: Tensor  # (B, 2, S, S) the same by the mesh, inside the face

    @cached_property
    def position(self) -> Tensor:
        """(B, S, S, 2) the same by both: the head's flow knows only the oval's depth and would tear along the nose."""
        return torch.lerp(self.head, self.mesh.permute(0, 2, 3, 1), self.opacity.movedim(1, 3))

    @cached_property
    def flow(self) -> Tensor:
        """(B, 2, S, S) pixels, x before y: target pixel p is seen in the reference at p + flow."""
        axis = torch.arange(self.head.shape[1], dtype=self.head.dtype, device=self.head.device)
        return torch.stack([self.position[..., 0] - axis, self.position[..., 1] - axis[:, None]], 1)


@dataclass(frozen=True)
class GeometricFrames:
    """What the generator made, RGB in [0, 1]. Synthesis needs `image` alone; the rest is worked out when asked for."""

    image: Tensor  # (B, 3, S, S) the frame
    projection: Projection
    picture: Tensor  # (3, S, S) the reference

    @property
    def ani(self) -> Tensor:
        """(B, 3, S, S) the 3D projection image, black outside the face."""
        return self.projection.ani

    @property
    def ani_mask(self) -> Tensor:
        """(B, 1, S, S) its soft opacity over the warped reference, in [0, 1]."""
        return self.projection.opacity

    @property
    def flow(self) -> Tensor:
        """(B, 2, S, S) backward, pixels, x before y: target pixel p is seen in the reference at p + flow."""
        return self.projection.flow

    @cached_property
    def warped(self) -> Tensor:
        """(B, 3, S, S) the whole reference warped by `flow`."""
        return sample_pixels(self.picture, self.projection.position)


class GeometricGenerator:
    """Holds what depends on the reference alone; `__call__` makes frames."""

    def __init__(
        self,
        reference: ReferenceFace,
        basis: ExpressionBasis,
        open_mouth: ReferenceFace | None = None,
        device: str | torch.device = "cpu",
        depth: float = DEPTH,
        crispness: float | None = None,
    ) -> None:
        """open_mouth: the reference frame (same person) whose mouth interior is used; by default `reference`.

        depth: factor on the mesh's depth as the reference's camera sees it; 1 where target meshes were tracked in
        this very clip and so need no turning by guess. crispness: amount of sharpening, by default
        what suits the reference's reduction.
        """
        self.reference, self._device = reference, torch.device(device)
        turn = reference.pose.rotation[0]
        # On canonical points; leaves the picture of the reference as it is.
        self._deepen = turn.T @ np.diag([1, 1, depth]) @ turn
        topology = FaceTopology(basis.template)
        self._size = reference.image.shape[0]
        self._n_skin, self._n_solid = topology.n_skin, topology.n_skin_and_eyes
        self._triangles = torch.tensor(topology.triangles, device=self._device)
        image = reference.image.astype(np.float32) / 255
        if crispness is None:
            crispness = float(np.interp(reference.box.side / self._size, (1, 2), CRISPNESS))
        crisp = np.clip(image + crispness * (image - cv2.GaussianBlur(image, (0, 0), 1.0)), 0, 1)
        self._picture = self._tensor(crisp).permute(2, 0, 1).contiguous()
        pose = reference.pose
        self._field = HeadField(reference.vertices, pose, self._deepen, self._size, device)
        self._mouth = mouth_interior(open_mouth or reference, self._device)
        self._attributes = self._tensor(self._vertex_attributes())
        self._gaze_map = self._tensor(self._gaze_weights())[None]

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.tensor(np.ascontiguousarray(array), dtype=torch.float32, device=self._device)

    def _vertex_attributes(self) -> np.ndarray:
        """(478, 5): position in the reference, opacity over the warped reference, place across and along the mouth."""
        opacity = np.ones((478, 1), np.float32)
        opacity[FACE_OVAL] = 0
        return np.concatenate([self.reference.vertices[:, :2], opacity, mouth_coordinates()], 1)

    def _gaze_weights(self) -> np.ndarray:
        """(S, S) how far the iris carries a pixel of the reference along: 1 at its centre, 0 at the lids."""
        v = self.reference.vertices
        y, x = np.mgrid[: self._size, : self._size].astype(np.float32)
        weights = np.zeros((self._size, self._size), np.float32)
        for iris, upper in zip(IRISES, (RIGHT_EYE[0], LEFT_EYE[0]), strict=True):
            width = np.linalg.norm(v[upper[0], :2] - v[upper[-1], :2]) / 2
            radius = np.linalg.norm(v[iris + 1 : iris + 5, :2] - v[iris, :2], axis=1).mean()
            distance = np.hypot(x - v[iris, 0], y - v[iris, 1])
            weights = np.maximum(weights, smoothstep((width - distance) / max(width - radius, 1)))
        return weights

    @torch.inference_mode()
    def __call__(self, motion: FaceMotion) -> GeometricFrames:
        """Frames of B target faces; B frames at a time bound the memory."""
        made = self.project(motion)
        # Where the flow's two parts blend, the projection image lies over the head's own.
        image = torch.lerp(sample_pixels(self._picture, made.head), made.ani, made.opacity)
        return GeometricFrames(image, made, self._picture)

    @torch.inference_mode()
    def project(self, motion: FaceMotion) -> Projection:
        """Everything about B target faces but the frames themselves."""
        own = self.reference.canonical[None].repeat(len(motion.pose), 0)
        vertices = self._tensor(self.target_vertices(motion))
        rigid = self._tensor(apply_pose(own @ self._deepen.T, motion.pose))
        pose = motion.pose
        rotation, scale, translation = (
            self._tensor(a) for a in (pose.rotation, pose.scale, pose.translation)
        )
        source = self._field.backward_flow(rotation, scale, translation, vertices, rigid)
        return self._project(vertices, motion, source)

    def target_vertices(self, motion: FaceMotion) -> np.ndarray:
        """(B, 478, 3) the target meshes, pixels of the crop."""
        return apply_pose(motion.canonical @ self._deepen.T, motion.pose)

    def _project(self, vertices: Tensor, motion: FaceMotion, source: Tensor) -> Projection:
        """Draw the posed mesh; `source`: positions by the head's flow."""
        batch, size = len(vertices), self._size
        canonical = self._tensor(motion.canonical)
        fragments = rasterize(vertices, self._triangles, size, size)
        attributes = torch.cat([self._attributes.expand(batch, -1, -1), canonical[..., :2]], 2)
        values = interpolate(fragments, self._triangles, attributes, size * size)
        frame = torch.div(fragments.pixel, size * size, rounding_mode="floor")
        xy = self._look(values[:, :2], fragments.triangle, frame, motion.gaze)
        colour = sample_pixels(self._picture, xy, mode="bicubic").clamp(0, 1)
        mouth = (fragments.triangle >= self._n_solid).nonzero()[:, 0]
        if len(mouth):
            lower_lip = canonical[:, LOWER_LIP, 1].mean(1)
            gap = lower_lip - canonical[:, UPPER_LIP, 1].mean(1)
            inside, of = values[mouth], frame[mouth]
            colour[mouth] = self._mouth.colours(
                inside[:, 5:7], inside[:, 3], inside[:, 4], lower_lip[of], gap[of]
            )
        ones = torch.ones_like(colour[:, :1])
        opacity = (values[:, 2:3] * 2.5).clamp(0, 1)
        is_mouth = (fragments.triangle >= self._n_solid).to(colour.dtype)[:, None]
        image = to_image(fragments, torch.cat([colour, ones, opacity, is_mouth, xy], 1), batch, size, size)
        ani, mask, opacity = _smooth_edge(image[:, :3], image[:, 5:6]), image[:, 3:4], image[:, 4:5]
        # The mask's stairs are smoothed on the inside: outside of it there is no colour to show.
        soft = _mean_of_neighbours(mask)
        opacity = opacity * ((soft - 0.5) * 2).clamp(0, 1)
        return Projection(ani * mask, opacity, source, image[:, 6:])

    def _look(self, xy: Tensor, triangle: Tensor, frame: Tensor, gaze: np.ndarray) -> Tensor:
        """Shift what the eye openings show by the gaze."""
        eyes = ((triangle >= self._n_skin) & (triangle < self._n_solid)).nonzero()[:, 0]
        shift = self._tensor(gaze * float(self.reference.pose.scale[0]))[frame[eyes]]
        xy = xy.clone()
        xy[eyes] -= shift * sample_pixels(self._gaze_map, xy[eyes])
        return xy


def mouth_interior(source: ReferenceFace, device: str | torch.device = "cpu") -> MouthInterior:
    """What is seen between the lips: the face's own where its mouth is open, else a drawing."""
    image = source.image.astype(np.float32) / 255
    if lip_gap(source.canonical) > OPEN_GAP:
        return mouth_from_reference(image, source.vertices, source.canonical, source.pose, device)
    return drawn_mouth(image, source.vertices, source.canonical, device)


def _mean_of_neighbours(image: Tensor) -> Tensor:
    """Mean of each pixel and its eight neighbours (avg_pool2d takes ten times as long on a CPU)."""
    x = F.pad(image, (1, 1, 1, 1), mode="replicate")
    x = x[..., :-2] + x[..., 1:-1] + x[..., 2:]
    return (x[..., :-2, :] + x[..., 1:-1, :] + x[..., 2:, :]) / 9


def _smooth_edge(image: Tensor, region: Tensor) -> Tensor:
    """Soften the stairs that the renderer leaves along the border of a region (B, 1, H, W) in {0, 1}."""
    share = _mean_of_neighbours(region)[:, 0]
    frame, row, column = ((share > 0.01) & (share < 0.99)).nonzero(as_tuple=True)
    mean = torch.zeros_like(image[frame, :, row, column])
    for dy, dx, weight in _BINOMIAL:
        near = image[
            frame, :, (row + dy).clamp(0, image.shape[2] - 1), (column + dx).clamp(0, image.shape[3] - 1)
        ]
        mean += weight * near
    image = image.clone()
    image[frame, :, row, column] = mean
    return image
