"""Faces for tests: the embedded portrait, detected and cropped once per session, and ways to pose it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from face.expression_basis import ExpressionBasis, load_basis
from face.pose import Pose, rotation_from_angles
from face.reference import Reference, ReferenceFace, load_reference
from face.rig import FaceRig
from face.tracker import FaceObservation, detect_face
from models.geometric import FaceMotion, GeometricGenerator
from util.image import read_image

REPO = Path(__file__).resolve().parents[1]
PORTRAIT = REPO / "demo" / "portrait.png"

torch.set_num_threads(
    1
)  # tests are small: on a busy machine, threads that wait for one another take six times as long


@cache
def portrait() -> np.ndarray:
    """The embedded portrait (512, 512, 3) uint8; a face about 110 px wide that smiles and shows its teeth."""
    picture = read_image(PORTRAIT, "--ref_video_path")
    picture.flags.writeable = False
    return picture


@cache
def portrait_face() -> FaceObservation:
    """The portrait's face, in its own pixels."""
    return detect_face(portrait(), "portrait")


@cache
def reference() -> Reference:
    """The portrait as the reference, cropped to 256 x 256."""
    return load_reference(PORTRAIT, (0,), None, 256, basis())


def basis() -> ExpressionBasis:
    """The shipped expression basis."""
    return load_basis()


@cache
def rig() -> FaceRig:
    """The portrait's face as a puppet."""
    ani = reference().ani
    return FaceRig(ani.canonical, ani.blendshapes, basis(), reference().neutral)


@cache
def closed_reference() -> ReferenceFace:
    """The portrait's face said to have its lips closed."""
    ani = reference().ani
    return replace(ani, canonical=rig().set_lips(ani.canonical[None], np.zeros(1, np.float32))[0])


@cache
def generator() -> GeometricGenerator:
    """The geometric generator of the portrait."""
    return GeometricGenerator(reference().ani, basis(), crispness=0)


def turned(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0, n: int = 1) -> Pose:
    """The portrait's pose with its angles changed by these degrees, n frames of it."""
    own = reference().ani.pose
    angles = own.angles_deg + np.array([[yaw, pitch, roll]], np.float32)
    same = yaw == pitch == roll == 0
    rotation = own.rotation if same else rotation_from_angles(angles)
    return Pose(rotation.repeat(n, 0), own.scale.repeat(n), own.translation.repeat(n, 0))


def motion(
    yaw: float = 0.0,
    pitch: float = 0.0,
    roll: float = 0.0,
    canonical: np.ndarray | None = None,
    gaze: tuple[float, float] = (0.0, 0.0),
) -> FaceMotion:
    """One frame of the portrait's face: its pose changed by these degrees; its own expression by default."""
    own = reference().ani.canonical if canonical is None else canonical
    return FaceMotion(own[None], turned(yaw, pitch, roll), np.array([gaze], np.float32))
