"""The reference's face as a puppet: what it looks like when it says, feels or copies something."""

from __future__ import annotations

import numpy as np

from face.expression_basis import ExpressionBasis
from face.mesh import INNER_LIPS, LEFT_EYE, RIGHT_EYE
from face.slit import Slit
from util.curves import smoothstep

LIP_CENTRE = np.array([2, 4, 6])  # the pairs of inner-lip points that lip_gap() measures
LIPS_TOUCH = 0.004  # face units; less would let the seam between the lips vanish
# How much of the reference's own expression goes when it starts to speak: the mouth's nearly all, the brows' nothing.
OWN_MOUTH_FADES = 0.8
UPPER_FACE_FOLLOWS = 0.5  # of what the voice says about brows and eyes


class FaceRig:
    """Turns expressions into canonical meshes of one reference face."""

    def __init__(
        self,
        canonical: np.ndarray,
        blendshapes: np.ndarray,
        basis: ExpressionBasis,
        neutral: np.ndarray | None = None,
    ) -> None:
        """canonical (478, 3) and blendshapes (52,) of the reference; neutral (478, 3) if more frames than it tell."""
        self.basis, self.canonical = basis, canonical
        own = basis.neutral(canonical[None], blendshapes[None])
        self.neutral = own if neutral is None else neutral
        self._own_expression = canonical - own
        template = basis.template
        self._lower_face = _lower_face(template)[:, None]  # (478, 1)
        self._mouth = Slit(template, INNER_LIPS, reach_up=0.22, reach_down=0.5, lower_share=0.7)
        self._eyes = [
            Slit(template, e, reach_up=0.17, reach_down=0.08, lower_share=0.1) for e in (LEFT_EYE, RIGHT_EYE)
        ]

    def speak(
        self, coefficients: np.ndarray, lip_gap: np.ndarray, emotion: np.ndarray, emotion_strength: np.ndarray
    ) -> np.ndarray:
        """Meshes (B, 478, 3) of the face saying something with an emotion.

        coefficients (B, K) from neutral; lip_gap (B,) wanted lip opening, face units; emotion (478, 3) offset at
        intensity 1; emotion_strength (B,).
        """
        share = UPPER_FACE_FOLLOWS + (1 - UPPER_FACE_FOLLOWS) * self._lower_face
        faded = self._own_expression * (OWN_MOUTH_FADES * self._lower_face)
        meshes = self.canonical - faded + self.basis.offsets(coefficients) * share
        meshes = meshes + emotion_strength[:, None, None] * emotion
        return self.set_lips(meshes, lip_gap)

    def imitate(self, offsets: np.ndarray) -> np.ndarray:
        """Meshes (B, 478, 3) of the face with another's offsets (B, 478, 3) from that one's neutral face."""
        return self.neutral + offsets

    def replace_mouth(self, meshes: np.ndarray, spoken: np.ndarray) -> np.ndarray:
        """Meshes with the lower face of `spoken` and the rest of `meshes`, both (B, 478, 3)."""
        return meshes + (spoken - meshes) * self._lower_face

    def set_lips(self, meshes: np.ndarray, lip_gap: np.ndarray) -> np.ndarray:
        """Meshes whose inner lips are `lip_gap` (B,) face units apart; 0 closes them, less presses them together."""
        return self._mouth.open_to(meshes, lip_gap, LIP_CENTRE, LIPS_TOUCH)

    def blink(self, meshes: np.ndarray, closure: np.ndarray) -> np.ndarray:
        """Meshes with the lids closed by `closure` (B, 2): left and right eye, 0 as they are, 1 shut."""
        for eye, slit in enumerate(self._eyes):
            meshes = slit.close(meshes, closure[:, eye])
        return meshes


def _lower_face(template: np.ndarray) -> np.ndarray:
    """(478,) 1 from the upper lip down, 0 from the middle of the nose up."""
    top, bottom = template[[5, 50, 280], 1].mean(), template[[164, 205, 425], 1].mean()
    return smoothstep((template[:, 1] - top) / (bottom - top)).astype(np.float32)
