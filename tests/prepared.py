"""Prepared clips for tests: the portrait by our own preparation, and made-up ones as the public code writes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from conftest import ClipSpec, level_of, write_clip

from data.contract import INDEX, ClipRecord, RawClip, clip_paths
from data.preprocessing.prepare_clip import ClipSettings, ClipTools, prepare_clip
from data.training_clips import MILD_GATES
from face.contract_pose import frontalise, standard_face
from models.ani_frames import clip_tools
from tests.clips import moving_portrait
from util.video_writer import VideoWriter

SIZE = 128
__all__ = ["SIZE", "level_of", "prepare_portrait", "public_clip", "write_index"]


def prepare_portrait(root: Path, size: int = SIZE, n_frames: int = 32) -> ClipRecord:
    """Prepare the moving portrait under `root`/out as clips/ann/a, with its index."""
    video = moving_portrait(root / "raw" / "ann" / "a.mp4", n_frames)
    clip = RawClip("clips/ann/a", video, None, "audio/ann/a.wav", "folder", "ann", "train")
    settings = ClipSettings(size=size, gates=MILD_GATES)
    record = prepare_clip(clip, root / "out", root / "raw", settings, ClipTools(**clip_tools()))
    assert isinstance(record, ClipRecord), record
    write_index(root / "out", [record])
    return record


def write_index(out: Path, records: list[ClipRecord]) -> None:
    (out / INDEX).write_text("".join(r.line() + "\n" for r in sorted(records, key=lambda r: r.id)))


def copy_of(root: Path, record: ClipRecord, id_: str, speaker: str) -> ClipRecord:
    """Another clip with the same files."""
    paths = zip(*(vars(clip_paths(root, i, record.dataset)).values() for i in (record.id, id_)), strict=True)
    for old, new in paths:
        new.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(old.read_bytes())
    return replace(record, id=id_, speaker=speaker)


def public_clip(root: Path, id_: str, dataset: str, n_frames: int = 40, ani: bool = True) -> Path:
    """A clip by the public code's names: H.264 of one key frame, frame k of the level that `level_of` tells.

    The face turns from left to right and opens its mouth more and more; `ani` shows a grey square. Returns the video.
    """
    paths = clip_paths(root, id_, dataset)
    paths.video.parent.mkdir(parents=True, exist_ok=True)
    write_clip(paths.video, ClipSpec(n_frames=n_frames, width=256, height=256))
    landmarks = public_landmarks(n_frames)
    front, rt = frontalise(landmarks, standard_face())
    for path, array in ((paths.landmarks, landmarks), (paths.rt, rt), (paths.front, front)):
        np.save(path, array)
    if ani:
        with VideoWriter(paths.ani, 256, 256) as video:
            for k in range(n_frames):
                picture = np.zeros((256, 256, 3), np.uint8)
                picture[80:180, 80:180] = 100 + k
                video.write(picture)
    return paths.video


def public_landmarks(n_frames: int) -> np.ndarray:
    """(T, 68, 3) float32 pixels."""
    face = standard_face().astype(np.float64)
    lower = [65, 66, 67]
    frames = []
    for k, angle in enumerate(np.linspace(-0.4, 0.4, n_frames)):
        points = face.copy()
        points[lower, 1] += 0.3 * k
        centre = points.mean(0)
        turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
        frames.append((points - centre) @ turn.T + [128, 128, 0])
    return np.array(frames, np.float32)
