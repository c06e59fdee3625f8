"""Made-up raw clips for tests of preparation: the embedded portrait, moving, with a voice; and spoilt files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from data.contract import RawClip
from tests.faces import portrait
from util.types import SAMPLE_RATE, Voice
from util.video import VideoWriter

N_FRAMES, SIDE = 24, 400


def raw_clip(
    video: Path, id_: str = "align/s1/a", dataset: str = "grid", audio: Path | None = None
) -> RawClip:
    """The clip of a video file as a layout would find it."""
    return RawClip(id_, video, audio, f"audio/s1/{id_.rpartition('/')[2]}.wav", dataset, "s1", "train")


def babble(seconds: float) -> Voice:
    """A buzz that comes and goes as syllables do."""
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    buzz = sum(np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 12))
    return Voice((0.15 * buzz * (0.55 + 0.45 * np.sin(2 * np.pi * 3 * t))).astype(np.float32))


def faces(n: int = N_FRAMES, side: int = SIDE) -> list[np.ndarray]:
    """Frames (side, side, 3) of the portrait, which drifts and tilts a little."""
    picture = cv2.resize(portrait(), (side, side), interpolation=cv2.INTER_AREA)
    frames = []
    for k in range(n):
        phase = 2 * np.pi * k / 24
        turn = cv2.getRotationMatrix2D((side / 2, side / 2), 4 * np.sin(phase), 1 + 0.03 * np.cos(phase))
        turn[:, 2] += 4 * np.sin(phase), 3 * np.cos(phase)
        frames.append(cv2.warpAffine(picture, turn, (side, side), borderMode=cv2.BORDER_REPLICATE))
    return frames


def write_raw(
    path: Path, frames: Iterable[np.ndarray] | None = None, voice: Voice | None = None, sound: bool = True
) -> Path:
    """Write frames of one size, by default `faces()`, with a voice, by default `babble`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = list(faces() if frames is None else frames)
    voice = (voice or babble(len(frames) / 25)) if sound else None
    with VideoWriter(path, frames[0].shape[1], frames[0].shape[0], voice=voice) as video:
        for frame in frames:
            video.write(frame)
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its name there."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def spoilt(folder: Path, good: bytes, kinds: Sequence[str]) -> dict[str, Path]:
    """Files that are no usable videos, made of a good one's bytes."""
    half, middle = len(good) // 2, len(good) // 3
    contents = {
        "empty": b"",
        "cut off": good[:half],
        "text": b"this is no video\n" * 50,
        "noise": np.random.default_rng(0).integers(0, 256, 20000, np.uint8).tobytes(),
        "zeros inside": good[:middle] + bytes(half) + good[middle + half :],
        "head only": good[:200],
        "picture": cv2.imencode(".png", portrait())[1].tobytes(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = {kind: folder / f"{kind}.mp4" for kind in kinds}
    for kind, path in paths.items():
        path.write_bytes(contents[kind])
    return paths
