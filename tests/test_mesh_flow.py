"""The flow to the previous frame, out of two frames' mesh flows."""

from __future__ import annotations

import torch

from models.mesh_flow import previous_flow

SIZE = 48


def shift(x: float, y: float) -> torch.Tensor:
    """A picture shifted as a whole: everything is seen in the reference at p + (x, y)."""
    return torch.tensor([x, y]).view(1, 2, 1, 1).expand(1, 2, SIZE, SIZE).clone()


def test_rigid_shifts_are_exact() -> None:
    flow = previous_flow(shift(3.25, -2), shift(1, 0.5))
    torch.testing.assert_close(flow, shift(2.25, -2.5))


def test_a_still_face_has_no_flow() -> None:
    smooth = torch.nn.functional.interpolate(torch.randn(2, 2, 4, 4), SIZE, mode="bicubic") * 2
    assert previous_flow(smooth, smooth).abs().max() < 1e-4


def test_both_ways_lead_to_the_same_place_in_the_reference() -> None:
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    grid, centre, angle = torch.stack([x, y]).float(), (SIZE - 1) / 2, 0.08

    def turned(by: float) -> torch.Tensor:
        c, s = torch.cos(torch.tensor(by)), torch.sin(torch.tensor(by))
        at = torch.einsum(
            "ij,jhw->ihw", torch.stack([torch.stack([c, -s]), torch.stack([s, c])]), grid - centre
        )
        return (at + centre - grid)[None]

    found = previous_flow(turned(angle), turned(-angle))[:, :, 8:-8, 8:-8]
    torch.testing.assert_close(found, turned(2 * angle)[:, :, 8:-8, 8:-8], atol=0.02, rtol=0)
