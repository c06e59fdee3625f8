"""Clips of a face for tests: the embedded portrait, moved about, so that no pack is needed."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from tests.faces import portrait
from util.video import VideoWriter


def moving_portrait(path: Path, n_frames: int = 32, size: int = 256) -> Path:
    """Write a clip of the portrait that nods sideways, drifts and comes nearer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = cv2.resize(portrait(), (size, size), interpolation=cv2.INTER_AREA)
    with VideoWriter(path, size, size) as video:
        for k in range(n_frames):
            phase = 2 * np.pi * k / n_frames
            turn = cv2.getRotationMatrix2D((size / 2, size / 2), 8 * np.sin(phase), 1 + 0.06 * np.cos(phase))
            turn[:, 2] += 5 * np.sin(phase), 4 * np.cos(phase)
            video.write(cv2.warpAffine(picture, turn, (size, size), borderMode=cv2.BORDER_REPLICATE))
    return path
