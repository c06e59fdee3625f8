"""Batched triangle renderer with an exact z-buffer, in PyTorch: the same code on CPU and GPU, no compiled extension.

Every triangle writes the pixels of its bounding box whose centres it covers; back faces are dropped, and of several
triangles on one pixel the nearest (smallest z) stays. Pixel (column i, row j) has its centre at (i, j).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Fragments:
    """The visible surface: N covered pixels of B frames."""

    pixel: Tensor  # (N,) int64: (frame * H + row) * W + column, each at most once
    triangle: Tensor  # (N,) int64: number of the triangle seen there
    weights: Tensor  # (N, 3) float32: barycentric weights of its corners, sum 1


def rasterize(
    vertices: Tensor, triangles: Tensor, height: int, width: int, min_area: float = 1e-3
) -> Fragments:
    """Find what is seen in each pixel.

    vertices: (B, V, 3) pixels; smaller z is nearer. triangles: (F, 3), facing the viewer where the cross product of
    their first two edges is positive in the picture; `min_area` (twice the area, square pixels) drops the others.
    """
    p = vertices[:, triangles].reshape(-1, 3, 3)  # (B * F, corner, xyz)
    a, ab, ac = p[:, 0, :2], p[:, 1, :2] - p[:, 0, :2], p[:, 2, :2] - p[:, 0, :2]
    area = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    low = p[..., :2].amin(1).ceil()
    high = p[..., :2].amax(1).floor()
    size = p.new_tensor([width - 1, height - 1])
    low, high = low.clamp_min(0), torch.minimum(high, size)
    extent = (high - low + 1).clamp_min(0) * (area > min_area)[:, None]
    extent = extent.long()
    count = extent[:, 0] * extent[:, 1]
    keep = count.nonzero()[:, 0]
    count, extent = count[keep], extent[keep]
    # One row for each pixel of each bounding box.
    owner = torch.repeat_interleave(torch.arange(len(keep), device=keep.device), count)
    within = torch.arange(len(owner), device=keep.device) - (count.cumsum(0) - count)[owner]
    row = within // extent[owner, 0]
    column = within - row * extent[owner, 0]
    # Barycentric weights are affine in the pixel: w1 = (q x ac) / area, w2 = (ab x q) / area, q = pixel - a.
    inverse = 1 / area[keep]
    q0 = low[keep] - a[keep]
    w1_x, w1_y = ac[keep, 1] * inverse, -ac[keep, 0] * inverse
    w2_x, w2_y = -ab[keep, 1] * inverse, ab[keep, 0] * inverse
    z, z1, z2 = p[keep, 0, 2], p[keep, 1, 2] - p[keep, 0, 2], p[keep, 2, 2] - p[keep, 0, 2]
    base1, base2 = q0[:, 0] * w1_x + q0[:, 1] * w1_y, q0[:, 0] * w2_x + q0[:, 1] * w2_y
    coefficients = torch.stack([base1, w1_x, w1_y, base2, w2_x, w2_y], 1)[owner]
    x, y = column.to(p.dtype), row.to(p.dtype)
    w1 = coefficients[:, 0] + x * coefficients[:, 1] + y * coefficients[:, 2]
    w2 = coefficients[:, 3] + x * coefficients[:, 4] + y * coefficients[:, 5]
    inside = ((w1 >= -1e-5) & (w2 >= -1e-5) & (w1 + w2 <= 1 + 1e-5)).nonzero()[:, 0]
    owner, w1, w2 = owner[inside], w1[inside], w2[inside]
    frame = keep[owner] // len(triangles)
    column = column[inside] + low[keep[owner], 0].long()
    row = row[inside] + low[keep[owner], 1].long()
    pixel = (frame * height + row) * width + column
    depth = z[owner] + w1 * z1[owner] + w2 * z2[owner]
    return _nearest(pixel, depth, keep[owner] % len(triangles), w1, w2, len(vertices) * height * width)


def _nearest(
    pixel: Tensor, depth: Tensor, triangle: Tensor, w1: Tensor, w2: Tensor, n_pixels: int
) -> Fragments:
    nearest = depth.new_full((n_pixels,), torch.inf).scatter_reduce_(0, pixel, depth, "amin")
    winner = (depth <= nearest[pixel]).nonzero()[:, 0]
    # Two triangles that share an edge tie on it: the later one stays.
    seen = torch.full((n_pixels,), -1, dtype=torch.long, device=pixel.device)
    seen.scatter_reduce_(0, pixel[winner], winner, "amax")  # the same on every device, unlike plain indexing
    pixel = (seen >= 0).nonzero()[:, 0]
    index = seen[pixel]
    w1, w2 = w1[index], w2[index]
    return Fragments(pixel, triangle[index], torch.stack([1 - w1 - w2, w1, w2], 1))


def interpolate(fragments: Fragments, triangles: Tensor, attributes: Tensor, pixels_per_frame: int) -> Tensor:
    """Attributes at the vertices, (V, C) for all frames or (B, V, C), to (N, C) at the covered pixels."""
    corners = triangles[fragments.triangle]  # (N, 3)
    if attributes.ndim == 2:
        values = attributes[corners]
    else:
        frame = fragments.pixel // pixels_per_frame
        values = attributes.flatten(0, 1)[corners + (frame * attributes.shape[1])[:, None]]
    return (values * fragments.weights[..., None]).sum(1)


def to_image(fragments: Fragments, values: Tensor, batch: int, height: int, width: int) -> Tensor:
    """(N, C) values at the covered pixels to (B, C, H, W) pictures, 0 elsewhere."""
    image = values.new_zeros(batch * height * width, values.shape[1])
    image[fragments.pixel] = values
    return image.view(batch, height, width, -1).permute(0, 3, 1, 2)


def sample_pixels(image: Tensor, xy: Tensor, mode: str = "bilinear") -> Tensor:
    """Look up (N, 2) or (B, H, W, 2) pixel positions in one picture (C, H, W); the border is continued outside."""
    height, width = image.shape[-2:]
    grid = xy * xy.new_tensor([2 / (width - 1), 2 / (height - 1)]) - 1
    flat = grid.reshape(1, 1, -1, 2)
    out = F.grid_sample(image[None], flat, mode=mode, padding_mode="border", align_corners=True)[0, :, 0]
    if xy.ndim == 2:
        return out.T  # (N, C)
    return out.reshape(len(image), *xy.shape[:-1]).movedim(0, 1)  # (B, C, H, W)


def render_texture(
    vertices: Tensor, triangles: Tensor, texture: Tensor, texture_xy: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Render a textured mesh (the 3D projection image, 'ani').

    vertices (B, V, 3); texture (C, h, w) with its vertices' pixel positions texture_xy (V, 2).
    Returns pictures (B, C, H, W), black elsewhere, and the mask (B, 1, H, W) in {0, 1}.
    """
    fragments = rasterize(vertices, triangles, height, width)
    xy = interpolate(fragments, triangles, texture_xy, height * width)
    values = torch.cat([sample_pixels(texture, xy), torch.ones_like(xy[:, :1])], 1)
    image = to_image(fragments, values, len(vertices), height, width)
    return image[:, :-1], image[:, -1:]


def backward_flow(
    vertices: Tensor, triangles: Tensor, source_xy: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Exact flow from each pixel of the target to its place in the source, inside the mesh.

    Returns flow (B, 2, H, W) in pixels, source position minus own position, 0 outside; and the mask (B, 1, H, W).
    """
    fragments = rasterize(vertices, triangles, height, width)
    xy = interpolate(fragments, triangles, source_xy, height * width)
    within = fragments.pixel % (height * width)
    own = torch.stack([within % width, torch.div(within, width, rounding_mode="floor")], 1).to(xy.dtype)
    values = torch.cat([xy - own, torch.ones_like(xy[:, :1])], 1)
    flow = to_image(fragments, values, len(vertices), height, width)
    return flow[:, :2], flow[:, 2:]
