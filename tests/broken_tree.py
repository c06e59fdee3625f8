"""A tree of small clips of which every fifth is broken in one of seven ways, for the folder layout.

    python tests/broken_tree.py /tmp/tree 100 && python scripts/preprocess.py --dataset_name folder \\
        --dataroot /tmp/tree --out /tmp/tree_out
"""

from __future__ import annotations

import os
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

REPO = Path(__file__).resolve().parents[1]
N_FRAMES, SIDE, RATE = 20, 256, 16000  # no more frames than a clip must have
REASONS = {  # kind to the reason that is to be found
    "empty": "unreadable",
    "header": "unreadable",
    "half": "unreadable",
    "noise": "unreadable",
    "text": "unreadable",
    "nobody": "no_face",
    "silent": "audio_missing",
}


def make_tree(root: Path, n_clips: int) -> dict[str, str]:
    """Write the tree; good clips are one file under many names. Returns clip to its kind, "good" or a REASONS key."""
    root.mkdir(parents=True)
    made = root.parent / f"{root.name}_made"
    made.mkdir()
    good = write_clip(made / "good.mp4", face=True, sound=True).read_bytes()
    contents = {
        "good": good,
        "empty": b"",
        "header": good[:200],
        "half": good[: len(good) // 2],
        "noise": np.random.default_rng(0).bytes(50_000),
        "text": b"this is no video\n" * 500,
        "nobody": write_clip(made / "nobody.mp4", face=False, sound=True).read_bytes(),
        "silent": write_clip(made / "silent.mp4", face=True, sound=False).read_bytes(),
    }
    kinds, tree = list(REASONS), {}
    for i in range(n_clips):
        kind = kinds[i // 5 % len(kinds)] if i % 5 == 2 else "good"
        name = f"person{i % 4}/clip{i:03d}"
        path = root / f"{name}.mp4"
        path.parent.mkdir(exist_ok=True)
        if kind == "good":
            os.link(made / "good.mp4", path)
        else:
            path.write_bytes(contents[kind])
        tree[name] = kind
    return tree


def write_clip(path: Path, face: bool, sound: bool) -> Path:
    """The embedded portrait, swaying, or a coloured wall; with the embedded voice or without sound."""
    portrait = cv2.imread(str(REPO / "demo" / "portrait.png"))
    with av.open(str(path), "w") as box:
        stream = box.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        track = box.add_stream("aac", rate=RATE, layout="mono") if sound else None
        for i in range(N_FRAMES):
            left = round(99 + 3 * np.sin(i / 4))
            image = portrait[:SIDE, left : left + SIDE].copy()
            if not face:
                image[:] = np.linspace(60, 180, SIDE, dtype=np.uint8)[:, None, None]
            box.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        box.mux(stream.encode(None))
        if track is not None:
            box.mux(track.encode(_voice()))
            box.mux(track.encode(None))
    return path


def _voice() -> av.AudioFrame:
    with av.open(str(REPO / "demo" / "voice.flac")) as box:
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=RATE)
        pieces = [f.to_ndarray() for frame in box.decode(audio=0) for f in resampler.resample(frame)]
    samples = np.concatenate(pieces, 1)[:, RATE // 2 :][:, : RATE * N_FRAMES // 25]
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
    return frame


if __name__ == "__main__":
    made = make_tree(Path(sys.argv[1]), int(sys.argv[2]))
    print({kind: list(made.values()).count(kind) for kind in ("good", *REASONS)})
