"""Head-motion clips of a made-up pack: what is taken, what is left out, and the poses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.head_motion_dataset import head_motion_clips, pose_deviation, seconds_of
from face.expression_basis import load_basis
from face.pose import Pose, apply_pose, rotation_from_angles
from util.audio import write_wav
from util.errors import UserError
from util.types import SAMPLE_RATE, Voice

COLUMNS = "id,kind,split,path,identity,category,sync_class,speaking,redistributable,overlap_group"


def moving_face(n: int, seed: int = 0, lean: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (n, 478, 3) in pixels and the deviations (n, 6) that they were made with."""
    rng, t = np.random.default_rng(seed), np.arange(n)[:, None] / 25
    waves = np.sin(2 * np.pi * (t * rng.uniform(0.2, 0.6, 6) + rng.uniform(0, 1, 6)))
    motion = waves * [6, 4, 3, lean, lean, 0.02]
    rotation = rotation_from_angles(motion[:, :3] + [4, -6, 1])
    shift = np.column_stack([motion[:, 3:5] * 90 + 128, np.zeros(n)])
    pose = Pose(rotation, (90 * np.exp(motion[:, 5])).astype(np.float32), shift.astype(np.float32))
    return apply_pose(np.repeat(load_basis().template[None], n, 0), pose), motion


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """Six clips with cached tracks; the 'clips' are sound files, since nothing looks at their pictures."""
    rows = [
        ("talk", "train", "clips", "ann", "A verified", 100, 0.02, "og"),
        ("same", "train", "clips", "ann", "A verified", 100, 0.02, "og"),
        ("mute", "train", "clips", "bob", "D silent", 400, 0.02, ""),
        ("short", "train", "clips", "cid", "A verified", 30, 0.02, ""),
        ("leans", "train", "clips", "dan", "A verified", 100, 0.6, ""),
        ("grid_s1_a", "train", "raw_grid", "grid_s1", "B in sync", 100, 0.02, ""),
        ("lrcar_1", "train", "clips_ar", "lrcar_f1", "A verified", 100, 0.02, ""),
        ("later", "dev", "clips", "eve", "B in sync", 100, 0.02, ""),
    ]
    lines = [COLUMNS]
    for i, (name, split, folder, identity, sync, n, lean, group) in enumerate(rows):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / "cache").mkdir(exist_ok=True)
        write_wav(tmp_path / folder / f"{name}.wav", Voice(np.full(n * SAMPLE_RATE // 25, 0.1, np.float32)))
        vertices, _ = moving_face(n, i, lean)
        np.savez(
            tmp_path / "cache" / f"{name}.npz",
            vertices=vertices,
            blendshapes=np.zeros((n, 52), np.float32),
            matrix=np.repeat(np.eye(4, dtype=np.float32)[None], n, 0),
            seen=np.ones(n, bool),
        )
        lines.append(f"{name},clip,{split},{folder}/{name}.wav,{identity},talk,{sync},yes,yes,{group}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_pose_deviation_recovers_the_motion():
    vertices, motion = moving_face(150)
    found = pose_deviation(vertices, load_basis().template)
    assert found.shape == (150, 6)
    assert found.dtype == np.float32
    assert np.abs(np.median(found, 0)).max() < 1e-3
    wanted = motion - np.median(motion, 0)
    assert np.abs(found - wanted)[:, :3].max() < 0.05
    assert np.abs(found - wanted)[:, 3:].max() < 0.01


def test_curated_clips_are_taken_and_the_others_left_out(pack):
    template = load_basis().template
    clips = head_motion_clips(pack, pack / "cache", template, "train")
    assert [c.name for c in clips] == ["mute", "same", "talk"]
    by_name = {c.name: c for c in clips}
    assert by_name["mute"].voice is None
    assert by_name["talk"].voice.n_frames == len(by_name["talk"].poses) == 100
    assert by_name["mute"].weight == pytest.approx(4.0)
    assert (
        by_name["talk"].weight == by_name["same"].weight == pytest.approx(1.0)
    )  # two clips share one footage
    assert seconds_of(clips) == pytest.approx(24.0)
    assert [c.name for c in head_motion_clips(pack, pack / "cache", template, "dev")] == ["later"]


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(UserError, match="--dataroot"):
        head_motion_clips(tmp_path, tmp_path, load_basis().template, "train")
