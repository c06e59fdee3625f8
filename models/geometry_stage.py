"""The geometric generator as a stage of training: what the 3D face knows about a sample's target frames."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np

from face.expression_basis import load_basis
from face.pose import Pose
from face.reference import ReferenceFace
from models.geometric import FaceMotion, GeometricGenerator, Projection


class GeometryStage:
    """Projects reference faces into target frames of their own clip, as `talking_head.animate` does.

    Making a generator takes several frames' time, so the last used ones are kept: about 2.8 MB each at 256 pixels, in
    each reader process.
    """

    def __init__(self, capacity: int = 1024) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[Hashable, GeometricGenerator] = OrderedDict()

    def __call__(
        self,
        key: Hashable,
        faces: Callable[[], tuple[ReferenceFace, ReferenceFace]],
        canonical: np.ndarray,
        pose: Pose,
    ) -> Projection:
        """The projection image, its opacity and the flow to the reference, for T target frames.

        key: names the reference; with the same key, `faces` must give the same. faces: called where the key is new,
        gives the reference and the face whose open mouth is shown. canonical (T, 478, 3) and pose: the target meshes,
        tracked in the reference's own clip and crop.
        """
        generator = self._kept.pop(key, None)
        if generator is None:
            reference, open_mouth = faces()
            # Nothing is guessed or beautified in a clip that is re-made from its own frame.
            generator = GeometricGenerator(reference, load_basis(), open_mouth, depth=1.0, crispness=0.0)
        self._kept[key] = generator
        if len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        # A copied clip's eyes look where the reference's do.
        return generator.project(FaceMotion(canonical, pose, np.zeros((len(pose), 2), np.float32)))
