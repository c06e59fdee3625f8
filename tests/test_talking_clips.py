"""A prepared data set teaches the learners of motion what its raw clips would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from data.contract import INDEX, ClipRecord, clip_paths
from data.head_motion_dataset import head_motion_clips, pose_deviation
from data.motion_dataset import load_motion_clips
from data.talking_clips import talking_clips
from data.tracks import clip_track
from face.expression_basis import load_basis
from face.reference import HALF_PIXEL
from tests.test_head_motion_dataset import moving_face
from util.audio import write_wav
from util.errors import UserError
from util.types import SAMPLE_RATE, Voice

N = 80
BOX = np.array([[30.5, 12.25, 205.0]], np.float32)  # left, top, side in source pixels


def prepared_clip(
    root: Path, dataset: str, id_: str, speaker: str, split: str, sound: bool = True
) -> np.ndarray:
    """Track, voice and record of one clip; returns its meshes in source pixels. The crop moves by a pixel a frame."""
    vertices, _ = moving_face(N, seed=len(id_))
    box = np.repeat(BOX, N, 0)
    box[:, 0] += np.arange(N)
    inside = vertices.copy()
    inside[..., :2] -= box[:, None, :2]
    inside = inside * (256 / BOX[0, 2]) - HALF_PIXEL
    path = clip_paths(root, id_, dataset).track
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        "vertices": np.round(inside * 64).astype(np.int16),
        "blendshapes": np.full((N, 52), 51, np.uint8),
        "seen": np.ones(N, bool),
        "crop": box,
    }
    save_file(arrays, path, {"version": "1", "size": "256"})
    audio = f"audio/{id_}.wav" if sound else ""
    if sound:
        (root / audio).parent.mkdir(parents=True, exist_ok=True)
        write_wav(root / audio, Voice(np.full(N * SAMPLE_RATE // 25, 0.1, np.float32)))
    record = ClipRecord(id_, dataset, speaker, split, N, N, 0, audio, f"{id_}.mp4", 1, 25.0)
    with (root / INDEX).open("a") as index:
        index.write(record.line() + "\n")
    return vertices


@pytest.fixture
def root(tmp_path: Path) -> Path:
    prepared_clip(tmp_path, "crema", "VideoFlash/1001_IEO_HAP_LO", "1001", "train")
    prepared_clip(tmp_path, "crema", "VideoFlash/1001_IEO_MUTE", "1001", "train", sound=False)
    prepared_clip(tmp_path, "crema", "VideoFlash/1080_IEO_HAP_LO", "1080", "test")
    prepared_clip(tmp_path, "grid", "align/s3/bbaf2n", "s3", "train")
    return tmp_path


def test_the_track_is_the_one_in_source_pixels(tmp_path: Path) -> None:
    vertices = prepared_clip(tmp_path, "vox", "unzip/dev_video/id1/a/00001", "id1", "train")
    track = clip_track(talking_clips(tmp_path, "train")[0], tmp_path / "cache")
    np.testing.assert_allclose(track.vertices, vertices, atol=0.01)
    np.testing.assert_allclose(track.blendshapes, 0.2)
    assert track.seen.all()
    assert not (tmp_path / "cache").exists()


def test_expression_learns_from_clips_with_sound(root: Path) -> None:
    clips = load_motion_clips(root, "train", root / "cache")
    assert [c.identity for c in clips] == ["crema_1001", "grid_s3"]
    assert all(c.n_frames == N and len(c.voice.samples) == N * 640 for c in clips)
    assert [c.identity for c in load_motion_clips(root, "dev", root / "cache")] == ["crema_1080"]


def test_head_motion_learns_from_silent_clips_too_but_not_from_grid(root: Path) -> None:
    template = load_basis().template
    clips = head_motion_clips(root, root / "cache", template, "train")
    assert [(c.name[-6:], c.voice is not None) for c in clips] == [("HAP_LO", True), ("O_MUTE", False)]
    vertices, _ = moving_face(N, seed=len("VideoFlash/1001_IEO_HAP_LO"))
    np.testing.assert_allclose(clips[0].poses, pose_deviation(vertices, template), atol=0.05)


def test_a_damaged_track_is_left_out(root: Path, capsys: pytest.CaptureFixture) -> None:
    clip_paths(root, "align/s3/bbaf2n", "grid").track.write_bytes(b"\0" * 40)
    assert [c.identity for c in load_motion_clips(root, "train", root / "cache")] == ["crema_1001"]
    assert "1 clips left out" in capsys.readouterr().err


def test_nothing_to_train_on_is_one_line(tmp_path: Path) -> None:
    prepared_clip(tmp_path, "crema", "VideoFlash/1080_IEO_HAP_LO", "1080", "test")
    with pytest.raises(UserError, match="no talking clip"):
        load_motion_clips(tmp_path, "train", tmp_path / "cache")
