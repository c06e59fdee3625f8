"""Linear expression basis of the canonical mesh: what a face does, apart from whose it is.

C = C_neutral + sum_k c_k B_k. Learnt from the pack's tracked clips: MediaPipe's 52 blendshape scores explain the
offsets from each clip's own neutral face by ridge regression with a fixed effect per clip, which makes 'neutral'
mean the same for every person; the principal components of those offsets are the basis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from face.pose import fit_pose, to_canonical
from face.tracker import N_BLENDSHAPES, N_VERTICES, FaceTrack
from util.checkpoints import checkpoint_path, load_tensors

BASIS_FILE = "expression_basis.safetensors"
N_COMPONENTS = 32
# Inner-lip pairs (upper, lower): dlib's 61-67, 62-66, 63-65, whose mean distance is the lip opening.
UPPER_LIP, LOWER_LIP = np.array([81, 13, 311]), np.array([178, 14, 402])
MOUTH = np.array(
    [61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87]
    + [81, 311, 402, 178, 80, 310, 88, 318, 191, 415, 95, 324, 185, 40, 270, 409, 146, 91, 321, 375]
)
BLENDSHAPE_NAMES = (
    "_neutral browDownLeft browDownRight browInnerUp browOuterUpLeft browOuterUpRight cheekPuff cheekSquintLeft "
    "cheekSquintRight eyeBlinkLeft eyeBlinkRight eyeLookDownLeft eyeLookDownRight eyeLookInLeft eyeLookInRight "
    "eyeLookOutLeft eyeLookOutRight eyeLookUpLeft eyeLookUpRight eyeSquintLeft eyeSquintRight eyeWideLeft "
    "eyeWideRight jawForward jawLeft jawOpen jawRight mouthClose mouthDimpleLeft mouthDimpleRight mouthFrownLeft "
    "mouthFrownRight mouthFunnel mouthLeft mouthLowerDownLeft mouthLowerDownRight mouthPressLeft mouthPressRight "
    "mouthPucker mouthRight mouthRollLower mouthRollUpper mouthShrugLower mouthShrugUpper mouthSmileLeft "
    "mouthSmileRight mouthStretchLeft mouthStretchRight mouthUpperUpLeft mouthUpperUpRight noseSneerLeft "
    "noseSneerRight"
).split()


@dataclass(frozen=True)
class ExpressionBasis:
    """The basis and the template face it stands on; all in face units (outer-eye distance 1)."""

    template: np.ndarray  # (478, 3) mean frontal face
    components: np.ndarray  # (K, 478, 3) orthogonal, each for one standard deviation of its coefficient
    blendshape_offsets: np.ndarray  # (52, 478, 3) offset per unit of each blendshape score
    projector: np.ndarray  # (478 * 3, K) weighted least-squares projection of an offset on the components

    @property
    def n_components(self) -> int:
        return len(self.components)

    def offsets(self, coefficients: np.ndarray) -> np.ndarray:
        """(T, K) coefficients to (T, 478, 3) offsets from the neutral face."""
        return np.tensordot(coefficients, self.components, 1).astype(np.float32)

    def coefficients(self, offsets: np.ndarray) -> np.ndarray:
        """(T, 478, 3) offsets from the neutral face to (T, K) coefficients."""
        return (offsets.reshape(len(offsets), -1) @ self.projector).astype(np.float32)

    def neutral(self, canonical: np.ndarray, blendshapes: np.ndarray) -> np.ndarray:
        """The person's neutral face (478, 3) from T canonical meshes and their blendshape scores (T, 52)."""
        expression = np.tensordot(blendshapes, self.blendshape_offsets, 1)
        return (canonical - expression).mean(0).astype(np.float32)

    def from_blendshapes(self, **scores: float) -> np.ndarray:
        """(478, 3) offset of named blendshapes, e.g. from_blendshapes(jawOpen=0.5)."""
        weights = np.zeros(len(BLENDSHAPE_NAMES), np.float32)
        for name, score in scores.items():
            weights[BLENDSHAPE_NAMES.index(name)] = score
        return np.tensordot(weights, self.blendshape_offsets, 1).astype(np.float32)


def lip_gap(canonical: np.ndarray) -> np.ndarray:
    """(..., 478, 3) meshes or offsets to (...) the mean vertical distance of the inner lips, face units."""
    return (canonical[..., LOWER_LIP, 1] - canonical[..., UPPER_LIP, 1]).mean(-1)


def point_weights() -> np.ndarray:
    """(478,) weights of the points in the principal components: lips count most, irises do not count."""
    weights = np.ones(478, np.float32)
    weights[MOUTH] = 4.0
    weights[468:] = 0.0
    return weights


@cache
def load_basis() -> ExpressionBasis:
    """The shipped basis. Raises UserError where its file is missing or damaged."""
    n, c, k = N_VERTICES, 3, N_COMPONENTS
    shapes = {"template": (n, c), "components": (k, n, c), "projector": (n * c, k)}
    shapes["blendshape_offsets"] = (N_BLENDSHAPES, n, c)
    tensors, _ = load_tensors(checkpoint_path(BASIS_FILE), "expression basis", shapes)
    return ExpressionBasis(**{name: value.numpy() for name, value in tensors.items()})


def learn_basis(
    tracks: Sequence[FaceTrack], template: np.ndarray, n_components: int = N_COMPONENTS, ridge: float = 0.3
) -> tuple[ExpressionBasis, dict[str, float]]:
    """Learn the basis from tracked clips (one clip: one person). Returns it and the variance it explains.

    ridge: penalty on the blendshape regression, in units of the mean variance of a score times the frame count.
    """
    offsets, scores = [], []
    for track in tracks:
        canonical = to_canonical(track.vertices, fit_pose(track.vertices, template))
        offsets.append(canonical - canonical.mean(0))
        scores.append(track.blendshapes - track.blendshapes.mean(0))
    x, b = np.concatenate(offsets), np.concatenate(scores).astype(np.float64)
    n = len(x)
    gram = b.T @ b + ridge * n * b.var(0).mean() * np.eye(b.shape[1])
    weights = np.linalg.solve(gram, b.T @ x.reshape(n, -1)).astype(np.float32)
    explained = 1 - ((x.reshape(n, -1) - b @ weights) ** 2).sum() / (x**2).sum()
    # Offsets from neutral, not from the clip's mean: the mean expression of a smiling clip belongs to the basis.
    mean_scores = np.concatenate([np.repeat(t.blendshapes.mean(0)[None], len(t), 0) for t in tracks])
    full = x.reshape(n, -1) + mean_scores @ weights
    w = np.repeat(np.sqrt(point_weights()), 3)
    covariance = (full * w).T @ (full * w) / n
    variance, vectors = np.linalg.eigh(covariance)
    variance, vectors = variance[::-1][:n_components], vectors[:, ::-1][:, :n_components]
    std = np.sqrt(variance)
    safe = np.where(w > 0, w, 1)
    # Points without weight (irises) follow by regression on the coefficients.
    coefficients = (full * w) @ vectors / std
    components = np.where(w[:, None] > 0, vectors * std / safe[:, None], 0).T
    iris = np.flatnonzero(w == 0)
    components[:, iris] = coefficients.T @ full[:, iris] / n
    projector = (w[:, None] * vectors) / std
    basis = ExpressionBasis(
        template.astype(np.float32),
        components.reshape(n_components, 478, 3).astype(np.float32),
        weights.reshape(-1, 478, 3),
        projector.astype(np.float32),
    )
    return basis, {
        "frames": n,
        "blendshape_explained": float(explained),
        "pca_explained": float(variance.sum() / np.trace(covariance)),
    }
