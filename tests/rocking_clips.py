"""Prepared clips whose every figure is known: the portrait, rocking in its plane, opens its mouth as its voice does."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from safetensors.numpy import save_file

from data.contract import ClipPaths, ClipRecord, SkippedClip, clip_paths
from data.inspection.folder import Table
from data.inspection.measures import MEASURES, table_of
from face.contract_pose import frontalise, standard_face
from face.landmarks68 import VERTEX_OF_LANDMARK, to_landmarks68
from face.pose import fit_pose
from tests.faces import basis, reference
from util.audio import write_wav
from util.jpeg_video import JpegWriter, frame_bytes
from util.types import FPS, SAMPLE_RATE, Voice

HOSTILE = 'align/s2/"><img src=x onerror=alert(1)> $\\frac{<'
N = 20  # frames
ROLL_DEG = 9.0
QUALITY = {m.key: 10.0 for m in MEASURES} | {"lip_r": 0.6, "lip_r_0": 0.6, "lip_lag_ms": 0.0}


def opening(n: int = N) -> np.ndarray:
    """(n,) how far the mouth opens, pixels: three syllables."""
    return 4 * np.abs(np.sin(np.arange(n) / n * 3 * np.pi))


def write_clip(root: Path, record: ClipRecord) -> None:
    """Write all files of a clip under `root`."""
    paths, face = clip_paths(root, record.id, record.dataset), reference().ani
    paths.video.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(face.image.shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull(face.vertices[:, :2].astype(np.int32)), 255)
    mesh = np.repeat(face.vertices[None], N, 0)
    mesh[:, VERTEX_OF_LANDMARK[[*range(55, 60), *range(65, 68)]], 1] += opening()[:, None]
    with JpegWriter(paths.video, (256, 256)) as video, JpegWriter(paths.ani, (256, 256)) as ani:
        for k in range(N):
            turn = cv2.getRotationMatrix2D((128, 128), ROLL_DEG * k / (N - 1), 1)
            video.write(cv2.warpAffine(face.image, turn, (256, 256), borderMode=cv2.BORDER_REPLICATE))
            ani.write(cv2.warpAffine(face.image * (mask > 0)[..., None], turn, (256, 256)))
            mesh[k, :, :2] = mesh[k, :, :2] @ turn[:, :2].T + turn[:, 2]
    landmarks = to_landmarks68(mesh)
    _write_track(paths, mesh)
    front, rt = frontalise(landmarks, standard_face())
    for path, array in ((paths.landmarks, landmarks), (paths.rt, rt), (paths.front, front)):
        np.save(path, array.astype(np.float32))
    if record.audio:
        loud = np.repeat(0.02 + 0.1 * opening(), SAMPLE_RATE // FPS)
        (root / record.audio).parent.mkdir(parents=True, exist_ok=True)
        write_wav(root / record.audio, Voice((loud * np.sin(np.arange(len(loud)))).astype(np.float32)))


def _write_track(paths: ClipPaths, mesh: np.ndarray) -> None:
    pose = fit_pose(mesh, basis().template)
    tensors = {
        "vertices": (mesh * 64).round().astype(np.int16),
        "blendshapes": np.zeros((N, 52), np.uint8),
        "seen": np.ones(N, bool),
        "crop": np.zeros((N, 3), np.float32),
        "rotation": pose.rotation,
        "scale": pose.scale,
        "translation": pose.translation,
        "video_bytes": frame_bytes(paths.video),
        "ani_bytes": frame_bytes(paths.ani),
    }
    save_file(tensors, paths.track, {"version": "1", "size": "256"})


def record(id_: str, speaker: str, split: str = "train", **more: object) -> ClipRecord:
    fields = {"audio": f"audio/{id_}.wav", "quality": QUALITY, "key_frame": 0} | more
    return ClipRecord(
        id_, "grid", speaker, split, N, N, source="x.mpg", source_bytes=1, source_fps=25.0, **fields
    )


def write_index(root: Path, records: Sequence[ClipRecord], skipped: Sequence[SkippedClip] = ()) -> None:
    (root / "clips.jsonl").write_text("".join(r.line() + "\n" for r in records), encoding="utf-8")
    (root / "skipped.jsonl").write_text("".join(s.line() + "\n" for s in skipped), encoding="utf-8")


RECORDS = [
    record("align/s1/a", "s1", emotion="happy", text="place </style><script>alert(2)</script>"),
    record("align/s1/b", "s1", audio=""),
    record(HOSTILE, "<b>s2</b>", "test", audio="", quality=QUALITY | {"yaw": 44.0}),
]


def write_folder(root: Path) -> Path:
    """A prepared folder of RECORDS with one skipped clip."""
    for clip in RECORDS:
        write_clip(root, clip)
    write_index(root, RECORDS, [SkippedClip("align/s3/x", "x.mpg", 1, "too_dark", "luma <i>12</i>")])
    (root / "preprocess.json").write_text(json.dumps({"crop": "static <b>"}))
    return root


def table(n: int, quality: Callable[[int], dict] = lambda k: {}) -> Table:
    """Columns of n clips, each of its own speaker."""
    records = (record(f"c{k}", f"s{k}", quality=quality(k)) for k in range(n))
    return table_of(records)
