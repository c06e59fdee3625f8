"""Renderer: an exact z-buffer, back faces dropped, no holes and no doubles, exact texture and flow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from face.mesh import FaceTopology
from face.pose import Pose, apply_pose, rotation_from_angles
from face.renderer import (
    Fragments,
    backward_flow,
    interpolate,
    rasterize,
    render_texture,
    sample_pixels,
)
from tests.faces import basis, reference

H, W = 24, 32


def _oriented(vertices: Tensor, triangles: Tensor) -> Tensor:
    """The triangles, turned towards the viewer on `vertices` (V, 3)."""
    a, b, c = (vertices[triangles[:, i], :2] for i in range(3))
    cross = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    return torch.where(cross[:, None] < 0, triangles[:, [0, 2, 1]], triangles)


def _soup(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """n triangles that cross one another and the picture's border."""
    rng = np.random.default_rng(seed)
    vertices = torch.tensor(rng.uniform((-8, -8, -5), (W + 8, H + 8, 5), (3 * n, 3)), dtype=torch.float32)
    return vertices, _oriented(vertices, torch.arange(3 * n).view(n, 3))


def _brute_force(vertices: Tensor, triangles: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Depth (F, H, W) of each triangle, inf where it isn't, in double precision; and the distance from its edges."""
    v = vertices.double().numpy()
    y, x = np.mgrid[:H, :W].astype(np.float64)
    depth, margin = [], []
    for a, b, c in v[triangles.numpy()]:
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        w1 = ((x - a[0]) * (c[1] - a[1]) - (y - a[1]) * (c[0] - a[0])) / area
        w2 = ((b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])) / area
        least = np.minimum(np.minimum(w1, w2), 1 - w1 - w2)
        z = (1 - w1 - w2) * a[2] + w1 * b[2] + w2 * c[2]
        depth.append(np.where((least >= 0) & (area > 1e-3), z, np.inf))
        margin.append(np.abs(least))
    return np.stack(depth), np.stack(margin).min(0)


def _seen(fragments: Fragments, batch: int = 1) -> Tensor:
    """(B, H, W) number of the triangle in each pixel, -1 for none."""
    image = torch.full((batch * H * W,), -1)
    image[fragments.pixel] = fragments.triangle
    return image.view(batch, H, W)


@pytest.mark.parametrize(("n", "seed"), [(2, 0), (2, 1), (12, 2), (60, 3)])
def test_z_buffer_is_exact(n: int, seed: int) -> None:
    """Per pixel the nearest of crossing triangles, against brute force."""
    vertices, triangles = _soup(n, seed)
    seen = _seen(rasterize(vertices[None], triangles, H, W))[0].numpy()
    depth, margin = _brute_force(vertices, triangles)
    ordered = np.sort(depth, 0)
    expected = np.where(np.isfinite(ordered[0]), depth.argmin(0), -1)
    with np.errstate(invalid="ignore"):
        tie = ordered[1] - ordered[0] < 1e-4
    clear = (margin > 1e-4) & ~tie
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(seen[clear], expected[clear])


def test_two_planes_cross_along_a_line() -> None:
    """Two rectangles tilted against each other share the picture at x = 16."""
    corners = torch.tensor([[0.0, 0], [31, 0], [31, 23], [0, 23]])
    rising, falling = corners[:, :1] - 16.25, 16.25 - corners[:, :1]
    vertices = torch.cat([torch.cat([corners, rising], 1), torch.cat([corners, falling], 1)])
    triangles = torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    seen = _seen(rasterize(vertices[None], triangles, H, W))[0] // 2
    assert (seen[:, :17] == 0).all()
    assert (seen[:, 17:] == 1).all()


def test_back_faces_are_dropped() -> None:
    vertices, triangles = _soup(20, 4)
    assert len(rasterize(vertices[None], triangles[:, [0, 2, 1]], H, W).pixel) == 0
    front = rasterize(vertices[None], triangles, H, W)
    mixed = rasterize(vertices[None], torch.cat([triangles[:, [1, 0, 2]], triangles]), H, W)
    assert torch.equal(mixed.pixel, front.pixel)
    assert torch.equal(mixed.triangle - 20, front.triangle)


def test_near_hides_far_in_any_order() -> None:
    vertices, triangles = _soup(40, 5)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    one = _seen(rasterize(vertices[None], triangles, H, W))
    other = _seen(rasterize(vertices[None], triangles[order], H, W))
    assert torch.equal(torch.where(other >= 0, order[other], -1), one)


def test_shared_edges_leave_no_hole_and_no_double() -> None:
    """A jittered net over the picture covers every pixel, each once; edges through pixel centres too."""
    rng = np.random.default_rng(6)
    n = 9
    x, y = np.meshgrid(np.linspace(-1, W, n), np.linspace(-1, H, n))
    for jitter in (0.0, 0.8):
        xy = np.stack([x, y], -1) + rng.uniform(-jitter, jitter, (n, n, 2))
        xy = np.concatenate([xy, rng.uniform(-1, 1, (n, n, 1))], -1).reshape(-1, 3)
        k = np.arange(n * n).reshape(n, n)
        a, b, c, d = (k[i : n - 1 + i, j : n - 1 + j].ravel() for i, j in ((0, 0), (0, 1), (1, 1), (1, 0)))
        triangles = torch.tensor(np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)]))
        fragments = rasterize(torch.tensor(xy, dtype=torch.float32)[None], triangles, H, W)
        assert torch.equal(fragments.pixel, torch.arange(H * W))


def test_no_hole_in_the_face_at_large_sizes() -> None:
    """The mesh covers a connected region without a gap at 700 pixels, where rounding is coarsest."""
    import cv2

    vertices = basis().template * 300 + np.float32([350, 330, 0])
    triangles = torch.tensor(FaceTopology(basis().template).triangles)
    fragments = rasterize(torch.tensor(vertices, dtype=torch.float32)[None], triangles, 700, 700)
    mask = np.zeros(700 * 700, np.uint8)
    mask[fragments.pixel.numpy()] = 1
    contours, _ = cv2.findContours(mask.reshape(700, 700), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    assert len(contours) == 1  # an outline and no hole
    assert len(fragments.pixel.unique()) == len(fragments.pixel)


def test_batch_of_two_is_two_of_one() -> None:
    first, triangles = _soup(30, 7)
    second = first.flip(0) + torch.tensor([2.0, -1, 0])
    both = rasterize(torch.stack([first, second]), triangles, H, W)
    for k, vertices in enumerate((first, second)):
        one = rasterize(vertices[None], triangles, H, W)
        mine = torch.div(both.pixel, H * W, rounding_mode="floor") == k
        assert torch.equal(both.pixel[mine] - k * H * W, one.pixel)
        assert torch.equal(both.triangle[mine], one.triangle)
        torch.testing.assert_close(both.weights[mine], one.weights, atol=1e-6, rtol=0)
        own = interpolate(one, triangles, vertices, H * W)
        torch.testing.assert_close(
            interpolate(both, triangles, torch.stack([first, second]), H * W)[mine], own
        )


def test_weights_give_the_pixel_back() -> None:
    vertices, triangles = _soup(50, 8)
    fragments = rasterize(vertices[None], triangles, H, W)
    xy = interpolate(fragments, triangles, vertices[:, :2], H * W)
    own = torch.stack([fragments.pixel % W, torch.div(fragments.pixel, W, rounding_mode="floor")], 1)
    torch.testing.assert_close(xy, own.float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(fragments.weights.sum(1), torch.ones(len(own)))
    assert fragments.weights.min() >= -1e-4


def test_outside_and_partly_outside() -> None:
    far = torch.tensor(
        [[-50.0, -50, 0], [-40, -50, 0], [-45, -40, 0], [W + 5, 3, 0], [W + 9, 3, 0], [W + 7, 9, 0]]
    )
    triangles = _oriented(far, torch.tensor([[0, 1, 2], [3, 4, 5]]))
    assert len(rasterize(far[None], triangles, H, W).pixel) == 0
    huge = torch.tensor([[-100.0, -100, 0], [200, -100, 0], [-100, 200, 0]])
    assert len(rasterize(huge[None], torch.tensor([[0, 1, 2]]), H, W).pixel) == H * W
    corner = torch.tensor([[-5.0, -5, 0], [5, -5, 0], [-5, 5, 0]])
    only = rasterize(corner[None], torch.tensor([[0, 1, 2]]), H, W).pixel
    assert only.tolist() == [0]
    right = torch.tensor([[W - 1.5, 5.0, 0], [W + 30, 5, 0], [W - 1.5, 40, 0]])
    columns = rasterize(right[None], torch.tensor([[0, 1, 2]]), H, W).pixel % W
    assert set(columns.tolist()) == {W - 1}


def test_no_area_and_no_mesh() -> None:
    vertices = torch.tensor([[2.0, 2, 0], [9, 9, 0], [16, 16, 0], [5, 5, 0]])
    flat = torch.tensor([[0, 1, 2], [3, 3, 3], [0, 0, 1]])
    assert len(rasterize(vertices[None], flat, H, W).pixel) == 0
    none = torch.zeros((0, 3), dtype=torch.long)
    image, mask = render_texture(vertices[None], none, torch.ones(3, 8, 8), vertices[:, :2], H, W)
    assert image.shape == (1, 3, H, W)
    assert not image.any()
    assert not mask.any()


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 1e9])
def test_a_broken_point_spoils_only_its_own_triangles(broken: float) -> None:
    vertices, triangles = _soup(20, 10)
    vertices[0] = broken
    fragments = rasterize(vertices[None], triangles, H, W)
    rest = rasterize(vertices[None], triangles[1:], H, W)
    assert torch.isfinite(fragments.weights).all()
    assert len(fragments.pixel) >= len(rest.pixel) > 0


def _face_mesh() -> tuple[Tensor, Tensor, Tensor]:
    """The portrait's crop (3, S, S), its mesh (478, 3) and triangles."""
    ani = reference().ani
    texture = torch.tensor(ani.image.copy()).permute(2, 0, 1).float() / 255
    return texture, torch.tensor(ani.vertices), torch.tensor(FaceTopology(basis().template).triangles)


def test_texture_identity() -> None:
    """The reference's own mesh shows the reference, to less than one grey level."""
    texture, vertices, triangles = _face_mesh()
    size = texture.shape[1]
    image, mask = render_texture(vertices[None], triangles, texture, vertices[:, :2], size, size)
    assert 0.1 < mask.mean() < 0.6
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert ((image[0] - texture).abs() * mask[0]).max() < 1 / 255
    assert not (image * (1 - mask)).any()


def test_flow_is_zero_for_the_same_pose() -> None:
    _, vertices, triangles = _face_mesh()
    flow, mask = backward_flow(vertices[None], triangles, vertices[:, :2], 256, 256)
    assert flow.shape == (1, 2, 256, 256)
    assert flow.abs().max() < 2e-3
    assert mask.any()


def test_flow_of_a_turned_plane_is_the_analytic_one() -> None:
    """A square seen frontally and then turned by 25, -15 and 10 degrees: the flow inverts the 2 x 2 projection."""
    n = 6
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, n), np.linspace(-1, 1, n)), -1).reshape(-1, 2)
    plane = np.concatenate([grid, np.zeros((n * n, 1))], 1).astype(np.float32)
    k = np.arange(n * n).reshape(n, n)
    a, b, c, d = (k[i : n - 1 + i, j : n - 1 + j].ravel() for i, j in ((0, 0), (0, 1), (1, 1), (1, 0)))
    triangles = torch.tensor(np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)]))
    source = grid.astype(np.float32) * 20 + 32
    rotation = rotation_from_angles(np.array([[25.0, -15, 10]]))
    pose = Pose(rotation, np.float32([22]), np.float32([[33, 30, 0]]))
    vertices = torch.tensor(apply_pose(plane[None], pose))
    flow, mask = backward_flow(vertices, triangles, torch.tensor(source), 64, 64)
    y, x = np.mgrid[:64, :64].astype(np.float64)
    projection = 22 * rotation[0, :2, :2].astype(np.float64)
    local = np.linalg.solve(projection, np.stack([x - 33, y - 30]).reshape(2, -1)).reshape(2, 64, 64)
    expected = local * 20 + 32 - np.stack([x, y])
    inside = mask[0, 0].numpy() > 0
    assert inside.sum() > 1000
    np.testing.assert_allclose(flow[0].numpy()[:, inside], expected[:, inside], atol=2e-3)
    np.testing.assert_array_equal(inside[np.abs(local).max(0) < 0.999], True)
    np.testing.assert_array_equal(inside[np.abs(local).max(0) > 1.001], False)


def test_far_cheek_is_hidden_at_40_degrees() -> None:
    """Turned to the picture's right, the face shows its left half; what lies behind the nose isn't seen."""
    template = basis().template
    topology = FaceTopology(template)
    triangles = torch.tensor(topology.triangles)
    centre = template[topology.triangles].mean(1)
    pose = Pose(rotation_from_angles(np.array([[40.0, 0, 0]])), np.float32([90]), np.float32([[128, 110, 0]]))
    vertices = torch.tensor(apply_pose(template[None], pose))
    fragments = rasterize(vertices, triangles, 256, 256)
    pixels = np.bincount(fragments.triangle.numpy(), minlength=len(triangles))
    near, far = centre[:, 0] < -0.55, centre[:, 0] > 0.55
    assert pixels[near].sum() > 10 * pixels[far].sum()
    # Nothing that shows lies behind a point of the mesh; the points that are hidden are all on the far side.
    depth = interpolate(fragments, triangles, vertices[..., 2:], 256 * 256)
    buffer = torch.full((256 * 256,), 1e3)
    buffer[fragments.pixel] = depth[:, 0]
    nearest = -torch.nn.functional.max_pool2d(-buffer.view(1, 1, 256, 256), 3, 1, 1)[0, 0]
    x, y = vertices[0, :468, :2].round().long().unbind(1)
    behind = nearest[y, x] - vertices[0, :468, 2]
    assert behind.max() < 2
    hidden = behind < -10
    assert hidden.sum() > 50
    assert (torch.tensor(template[:468, 0])[hidden] > 0).all()


def test_gradients() -> None:
    """The flow's gradient reaches the source points (weights sum to 1), the picture's the texture and the mesh."""
    vertices, triangles = _soup(10, 9)
    source = vertices[:, :2].clone().requires_grad_()
    flow, mask = backward_flow(vertices[None], triangles, source, H, W)
    flow.sum().backward()
    torch.testing.assert_close(source.grad.sum(0), mask.sum().expand(2), rtol=1e-4, atol=1e-2)
    texture = torch.rand(3, H, W, requires_grad=True)
    moving = vertices.clone().requires_grad_()
    image, _ = render_texture(moving[None], triangles, texture, vertices[:, :2].clamp(1, H - 2), H, W)
    image.square().sum().backward()
    assert texture.grad.abs().sum() > 0
    assert torch.isfinite(moving.grad).all()
    assert moving.grad.abs().sum() > 0


def test_gradient_of_the_mesh_is_that_of_differences() -> None:
    """Along x, the attribute's change in one pixel as a corner moves."""
    base = torch.tensor([[3.0, 2, 0], [25, 4, 1], [8, 20, 2]], dtype=torch.float64)
    triangle = torch.tensor([[0, 1, 2]])
    attribute = torch.tensor([[1.0], [5.0], [-2.0]], dtype=torch.float64)

    def middle(vertices: Tensor) -> Tensor:
        fragments = rasterize(vertices[None], triangle, H, W)
        return interpolate(fragments, triangle, attribute, H * W)[fragments.pixel == 8 * W + 11].sum()

    assert torch.autograd.gradcheck(middle, base.requires_grad_(), eps=1e-4, atol=1e-3)


def test_sampling_positions_and_border() -> None:
    image = torch.arange(12.0).view(1, 3, 4)  # value = 4 row + column
    xy = torch.tensor([[0.0, 0], [3, 2], [1.5, 0.5], [-4, 1], [9, 9]])
    torch.testing.assert_close(sample_pixels(image, xy), torch.tensor([[0.0], [11], [3.5], [4], [11]]))
    grid = xy[:4].view(1, 2, 2, 2).expand(3, -1, -1, -1)
    out = sample_pixels(image, grid)
    assert out.shape == (3, 1, 2, 2)
    torch.testing.assert_close(out[1, 0], torch.tensor([[0.0, 11], [3.5, 4]]))
