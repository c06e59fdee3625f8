"""Topology: every triangle faces the viewer, openings are closed, edges meet at most twice."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from face.mesh import FACE_OVAL, INNER_LIPS, IRISES, LEFT_EYE, RIGHT_EYE, FaceTopology, skin_triangles
from tests.faces import basis

OPENINGS = {"left eye": LEFT_EYE, "right eye": RIGHT_EYE, "mouth": INNER_LIPS}


@pytest.fixture(scope="module")
def topology() -> FaceTopology:
    return FaceTopology(basis().template)


def _edges(triangles: np.ndarray) -> Counter:
    pairs = triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    return Counter(map(tuple, np.sort(pairs, 1).tolist()))


def _cross(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    a, b, c = (vertices[triangles[:, i], :2] for i in range(3))
    return (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]


def test_counts(topology: FaceTopology) -> None:
    assert skin_triangles().shape == (852, 3)
    assert topology.n_skin == 852
    assert topology.n_skin_and_eyes == 852 + 2 * 14
    assert len(topology.triangles) == 852 + 2 * 14 + 18
    assert topology.triangles.min() == 0
    assert topology.triangles.max() == 467  # the irises are no part of the surface
    assert all(len(set(t)) == 3 for t in topology.triangles.tolist())


def test_all_face_the_viewer(topology: FaceTopology) -> None:
    assert (_cross(basis().template, topology.triangles) >= 0).all()


def test_orientation_does_not_depend_on_the_template_side(topology: FaceTopology) -> None:
    """Mirrored left to right the same triangles turn round."""
    mirrored = FaceTopology(basis().template * np.float32([-1, 1, 1]))
    assert (_cross(basis().template, mirrored.triangles) <= 0).all()


def test_surface_is_closed_but_for_the_oval(topology: FaceTopology) -> None:
    edges = _edges(topology.triangles)
    assert max(edges.values()) == 2
    rim = {edge for edge, n in edges.items() if n == 1}
    oval = np.sort(np.stack([FACE_OVAL, np.roll(FACE_OVAL, -1)], 1), 1)
    assert rim == set(map(tuple, oval.tolist()))


@pytest.mark.parametrize("name", OPENINGS)
def test_skin_leaves_the_openings_open(name: str) -> None:
    upper, lower = OPENINGS[name]
    assert upper[0] == lower[0]
    assert upper[-1] == lower[-1]
    edges = _edges(skin_triangles())
    for side in (upper, lower):
        border = [
            edges[tuple(sorted(pair))] for pair in zip(side[:-1].tolist(), side[1:].tolist(), strict=True)
        ]
        assert border == [1] * len(border)
    assert (basis().template[upper[1:-1], 1] <= basis().template[lower[1:-1], 1]).all()


def test_irises_lie_in_their_eyes() -> None:
    template = basis().template
    for iris, (upper, lower) in zip(IRISES, (RIGHT_EYE, LEFT_EYE), strict=True):
        x, y = template[iris, :2]
        assert template[upper, 0].min() < x < template[upper, 0].max()
        assert template[upper, 1].min() < y < template[lower, 1].max()
        rim = np.linalg.norm(template[iris + 1 : iris + 5, :2] - template[iris, :2], axis=1)
        assert np.ptp(rim) < 0.3 * rim.mean()
