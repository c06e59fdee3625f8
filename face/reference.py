"""The reference: whose face is shown. One picture, or K frames of a clip, tracked and cropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from face.crop import CropBox, extract, photo_crop, to_crop
from face.expression_basis import ExpressionBasis
from face.landmarks68 import to_landmarks68
from face.pose import Pose, fit_pose, to_canonical
from face.tracker import detect_face, detect_faces
from util.errors import UserError, remark
from util.image import is_image, read_image
from util.video import probe, read_frames

MAX_SOURCE_PX = 1920  # a larger picture is reduced to this longest side: no more of it can be seen
N_NEUTRAL_FRAMES = 12  # frames of a clip that tell what the face looks like at rest
NEUTRAL_WINDOW = 250  # ... taken from this many first frames


HALF_PIXEL = np.array(
    [0.5, 0.5, 0], np.float32
)  # the tracker counts from pixel corners, the renderer from centres


@dataclass(frozen=True)
class ReferenceFace:
    """One reference frame: the square crop and the face in it."""

    image: np.ndarray  # (S, S, 3) uint8
    vertices: np.ndarray  # (478, 3) float32, pixels of the crop
    canonical: np.ndarray  # (478, 3) float32, face units
    pose: Pose  # one frame, crop pixels
    blendshapes: np.ndarray  # (52,) float32
    box: CropBox  # where the crop lies in the source frame
    seen_angles: (
        np.ndarray
    )  # (3,) yaw, pitch, roll in degrees that MediaPipe gives; up to 2 beside `pose`'s own


@dataclass(frozen=True)
class Reference:
    """Whose face is shown."""

    faces: tuple[ReferenceFace, ...]  # K reference frames
    ani: ReferenceFace  # the one that gives texture and 3D shape
    source: np.ndarray  # (H, W, 3) uint8: the uncropped frame of `ani`
    neutral: np.ndarray  # (478, 3) float32: the face at rest, face units


def load_reference(
    path: Path, frames: Sequence[int], ani_frame: int | None, size: int, basis: ExpressionBasis
) -> Reference:
    """Read, track and crop the reference frames of a picture or clip (--ref_video_path).

    frames: K frame numbers (--ref_img_id); ani_frame: --ref_ani_id, by default the most frontal of them.
    Raises UserError for a frame that the clip doesn't have, no face, or a face too small.
    """
    flag = "--ref_video_path"
    wanted = sorted({*frames, *(() if ani_frame is None else (ani_frame,))})
    if is_image(path):
        if wanted != [0]:
            raise UserError(f"{_name(wanted[-1], ani_frame)}: {path} is one picture; only frame 0 is there")
        pictures = {0: _bounded(read_image(path, flag))}
    else:
        pictures = _clip_frames(path, flag, wanted, ani_frame)
    found = {k: _nearest_face(k, pictures, f"{flag} {path}, frame", size, basis) for k in wanted}
    if ani_frame is None:
        ani_frame = min(frames, key=lambda k: float(np.abs(found[k][1].pose.angles_deg).sum()))
    shown, ani = found[ani_frame]
    faces = tuple(found[k][1] for k in frames)
    rest = [picture for k, picture in pictures.items() if k not in wanted]
    return Reference(faces, ani, pictures[shown], _neutral([f for _, f in found.values()], rest, basis))


def _name(frame: int, ani_frame: int | None) -> str:
    """The flag that asked for a frame, with the frame."""
    return f"--ref_ani_id {frame}" if frame == ani_frame else f"--ref_img_id {frame}"


def _clip_frames(path: Path, flag: str, wanted: list[int], ani_frame: int | None) -> dict[int, np.ndarray]:
    """The wanted frames, and some others that tell what the face looks like at rest."""
    n_frames = probe(path, flag).n_frames
    if wanted[-1] >= n_frames:
        name = _name(wanted[-1], ani_frame)
        raise UserError(f"{name}: {path} has {n_frames} frames; choose 0 to {n_frames - 1}")
    sample = np.linspace(0, min(n_frames, NEUTRAL_WINDOW) - 1, N_NEUTRAL_FRAMES).astype(int)
    needed = {*wanted, *sample.tolist()}
    pictures = {}
    for k, frame in enumerate(read_frames(path, flag)):
        if k in needed:
            pictures[k] = _bounded(frame)
        if k >= max(needed):
            break
    if missing := set(wanted) - set(pictures):
        raise UserError(f"--ref_img_id {min(missing)}: {path} is damaged there; choose another frame")
    return pictures


def _nearest_face(
    frame: int, pictures: dict[int, np.ndarray], source: str, size: int, basis: ExpressionBasis
) -> tuple[int, ReferenceFace]:
    """The face of a frame, or, where it shows none, of the nearest other picture that does; and which it is."""
    try:
        return frame, _reference_face(pictures[frame], f"{source} {frame}", size, basis)
    except UserError:
        for other in sorted(pictures.keys() - {frame}, key=lambda k: abs(k - frame)):
            if detect_faces(pictures[other], n_faces=1):
                remark(f"{source} {frame}: shows no usable face; frame {other} is taken instead")
                return other, _reference_face(pictures[other], f"{source} {other}", size, basis)
        raise


def _bounded(image: np.ndarray) -> np.ndarray:
    shrink = MAX_SOURCE_PX / max(image.shape[:2])
    if shrink >= 1:
        return image
    return cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)


def _reference_face(image: np.ndarray, source: str, size: int, basis: ExpressionBasis) -> ReferenceFace:
    seen = detect_face(image, source)
    box = photo_crop(to_landmarks68(seen.vertices), image.shape[1], image.shape[0])
    vertices = to_crop(seen.vertices, box, size) - HALF_PIXEL
    pose = fit_pose(vertices[None], basis.template)
    canonical = to_canonical(vertices[None], pose)[0]
    yaw = abs(float(pose.angles_deg[0, 0]))
    if yaw > 35:
        remark(f"{source}: the face is turned by {yaw:.0f} degrees; a frontal one gives a better video")
    picture = extract(image, box, size)
    # MediaPipe's angles depend on the place in the picture: those that count are the crop's.
    again = detect_faces(picture, n_faces=1) or [seen]
    return ReferenceFace(picture, vertices, canonical, pose, seen.blendshapes, box, again[0].angles_deg)


def _neutral(faces: Sequence[ReferenceFace], others: list[np.ndarray], basis: ExpressionBasis) -> np.ndarray:
    meshes = [f.canonical for f in faces]
    scores = [f.blendshapes for f in faces]
    for image in others:
        for seen in detect_faces(image)[:1]:
            vertices = seen.vertices[None]
            meshes.append(to_canonical(vertices, fit_pose(vertices, basis.template))[0])
            scores.append(seen.blendshapes)
    return basis.neutral(np.stack(meshes), np.stack(scores))
