"""Emotions as offsets in the expression basis (beyond the paper)."""

from __future__ import annotations

import numpy as np

from face.expression_basis import ExpressionBasis
from util.curves import smoothstep
from util.types import EMOTIONS, FPS

EASE_SECONDS = 0.6  # a face doesn't jump into an emotion

# MediaPipe blendshape scores at intensity 1, for left and right alike; set so that the same scores, measured on the
# rendered faces, rise well above neutral's (python benchmarks/quality.py emotions).
RECIPES: dict[str, dict[str, float]] = {
    "neutral": {},
    "happy": {"mouthSmile": 0.9, "eyeSquint": 0.35, "browOuterUp": 0.1},
    "sad": {
        "browInnerUp": 2.2,
        "browDown": -0.3,
        "mouthFrown": 1.3,
        "mouthShrugLower": 0.6,
        "eyeLookDown": 0.3,
    },
    "angry": {"browDown": 2.0, "eyeSquint": 0.4, "mouthPress": 0.3, "mouthFrown": 0.2},
    "fear": {"browInnerUp": 0.8, "browOuterUp": 0.3, "eyeWide": 0.6, "mouthStretch": 0.5},
    "disgust": {"browDown": 0.6, "mouthUpperUp": 0.5, "eyeSquint": 0.4, "mouthFrown": 0.4},
    "surprise": {"browInnerUp": 0.7, "browOuterUp": 0.9, "eyeWide": 0.8, "jawOpen": 0.15},
}
assert tuple(RECIPES) == EMOTIONS, "every emotion has its recipe"
# What blendshapes say too weakly: eyes opened by this part of their opening, lips by this part of theirs.
EYES_WIDER = {"surprise": 0.45, "fear": 0.25}
LIPS_WIDER = {"surprise": 1.3, "fear": 0.3}
_UNPAIRED = {"browInnerUp", "mouthShrugLower", "jawOpen"}


def emotion_offset(basis: ExpressionBasis, emotion: str) -> np.ndarray:
    """(478, 3) offset of an emotion at intensity 1, face units."""
    scores = {}
    for name, score in RECIPES[emotion].items():
        for side in ("",) if name in _UNPAIRED else ("Left", "Right"):
            scores[name + side] = score
    return basis.from_blendshapes(**scores)


def emotion_envelope(n_frames: int, intensity: float, first: int = 0) -> np.ndarray:
    """(n_frames,) strength over time from frame `first` on: eased in at the start, then held."""
    return (intensity * smoothstep((np.arange(first, first + n_frames) + 1) / (EASE_SECONDS * FPS))).astype(
        np.float32
    )


def emotional_lips(lip_gap: np.ndarray, emotion: str, strength: np.ndarray) -> np.ndarray:
    """(B,) lip opening in face units with the emotion's strength (B,) in it; closed lips stay closed."""
    wider = LIPS_WIDER.get(emotion, 0.0) * strength * np.maximum(lip_gap, 0)
    return (lip_gap + wider).astype(np.float32)


def emotional_eyes(closure: np.ndarray, emotion: str, strength: np.ndarray) -> np.ndarray:
    """(B, 2) closure of the eyes, below 0 where they open wider than they are; blinks still shut them."""
    wider = EYES_WIDER.get(emotion, 0.0) * strength[:, None]
    return (closure - wider * (1 - closure)).astype(np.float32)
