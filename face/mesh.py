"""Topology of the 478-point mesh: triangles, eye and mouth openings, the face's outline.

Triangles come from MediaPipe's FACE_LANDMARKS_TESSELATION (852, three edges each, in order). It leaves the eyes and
the mouth open; strips between their lids and lips close them, so that each can be shown with what belongs there.
"""

from __future__ import annotations

from functools import cache

import numpy as np

FACE_OVAL = np.array(
    [10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377]
    + [152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109]
)
# Each opening from one corner to the other: (upper edge, lower edge), corners in both.
RIGHT_EYE = (
    np.array([33, 246, 161, 160, 159, 158, 157, 173, 133]),
    np.array([33, 7, 163, 144, 145, 153, 154, 155, 133]),
)
LEFT_EYE = (
    np.array([263, 466, 388, 387, 386, 385, 384, 398, 362]),
    np.array([263, 249, 390, 373, 374, 380, 381, 382, 362]),
)
INNER_LIPS = (
    np.array([78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308]),
    np.array([78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308]),
)
IRISES = (468, 473)  # centres; the four points after each lie on the iris' rim


def _strip(edges: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    upper, lower = edges
    quads = zip(upper[:-1], upper[1:], lower[:-1], lower[1:], strict=True)
    faces = [t for a, b, c, d in quads for t in ((a, b, d), (a, d, c))]
    return np.array([f for f in faces if len(set(f)) == 3])


def _facing_viewer(faces: np.ndarray, template: np.ndarray) -> np.ndarray:
    """Turn every triangle so that its cross product in the picture is positive on the template."""
    a, b, c = (template[faces[:, i], :2] for i in range(3))
    cross = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    return np.where(cross[:, None] < 0, faces[:, [0, 2, 1]], faces)


@cache
def skin_triangles() -> np.ndarray:
    """(852, 3) vertex numbers of the face's skin, MediaPipe's order."""
    from mediapipe.tasks.python.vision.face_landmarker import FaceLandmarksConnections  # slow import

    edges = FaceLandmarksConnections.FACE_LANDMARKS_TESSELATION
    return np.array(
        [(edges[i].start, edges[i + 1].start, edges[i + 2].start) for i in range(0, len(edges), 3)]
    )


class FaceTopology:
    """Triangles of skin, eyes and mouth in one list, oriented towards the viewer."""

    def __init__(self, template: np.ndarray) -> None:
        """template: (478, 3) a frontal face, which says what 'towards the viewer' is."""
        parts = [skin_triangles(), np.concatenate([_strip(RIGHT_EYE), _strip(LEFT_EYE)]), _strip(INNER_LIPS)]
        self.triangles = np.concatenate([_facing_viewer(p, template) for p in parts])  # (F, 3)
        self.n_skin = len(parts[0])
        self.n_skin_and_eyes = self.n_skin + len(parts[1])
