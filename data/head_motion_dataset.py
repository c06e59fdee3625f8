"""Head motion of the pack's curated clips: pose deviations and, where it is this face's own, the voice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.pack import PackRow
from data.talking_clips import talking_clips
from data.tracks import clip_tracks
from face.pose import fit_pose
from util.audio import read_voice
from util.types import FPS, Voice

_MIN_SECONDS = 2.4
# Beyond these the person leans about or the camera moves: standard deviations of x, y, log scale.
_MAX_SHIFT, _MAX_LOG_SCALE = 0.25, 0.06


@dataclass(frozen=True)
class HeadMotionClip:
    """Pose of one clip at 25 fps, as a deviation from the person's rest pose."""

    name: str
    poses: np.ndarray  # (T, 6) float32: yaw, pitch, roll in degrees; x, y in face units; log scale
    voice: Voice | None  # None where the sound is not this face's speech
    weight: float  # share in training, relative


def pose_deviation(vertices: np.ndarray, template: np.ndarray) -> np.ndarray:
    """Tracked meshes (T, 478, 3) in pixels to (T, 6) deviations from the clip's median pose."""
    pose = fit_pose(vertices, template)
    scale = np.median(pose.scale)
    angles = np.degrees(np.unwrap(np.radians(pose.angles_deg), axis=0))
    shift = pose.translation[:, :2] / scale
    motion = np.concatenate([angles, shift, np.log(pose.scale / scale)[:, None]], 1)
    return (motion - np.median(motion, 0)).astype(np.float32)


def head_motion_clips(
    root: str | Path, cache: str | Path, template: np.ndarray, split: str, flag: str = "--dataroot"
) -> list[HeadMotionClip]:
    """The clips of one split that show how heads move, of the pack or the prepared data set in `root`.

    cache: for the face tracks of the pack.

    Left out: 1.2 s segments (too short), GRID (heads held still on request), clips below 2.4 s or with a
    moving camera. Weights: the square root of the length, so that one long clip does not rule; shared by
    equal footage.
    """
    rows = [r for r in talking_clips(root, split, flag) if _shows_head_motion(r)]
    footage = Counter(r.footage for r in rows if r.footage)
    clips = []
    for row, track in clip_tracks(rows, cache):
        poses = pose_deviation(track.vertices, template)
        spread = poses.std(0)
        if len(poses) < _MIN_SECONDS * FPS or spread[3:5].max() > _MAX_SHIFT or spread[5] > _MAX_LOG_SCALE:
            continue
        voice = read_voice(row.path, "clip") if row.talks_in_sync else None
        weight = float(np.sqrt(len(poses) / FPS) / footage.get(row.footage, 1))
        clips.append(HeadMotionClip(row.id, poses, voice, weight))
    return clips


def _shows_head_motion(row: PackRow) -> bool:
    return not (row.is_segment or row.identity.startswith("grid"))


def seconds_of(clips: Iterable[HeadMotionClip]) -> float:
    """Length of all clips together."""
    return sum(len(c.poses) for c in clips) / FPS
