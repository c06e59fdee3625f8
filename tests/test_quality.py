"""The gates: each closes on a clip made for it, opens where its value allows, and measures what it says."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.contract import ClipRecord, SkippedClip
from data.preprocessing.prepare_clip import ClipSettings, ClipTools, prepare_clip
from data.preprocessing.quality import (
    BROKEN,
    REASONS,
    SYNC_FRAMES,
    ClosedGate,
    FrameWatch,
    check_lips,
    check_place,
    cut_scores,
    landmark_jitter,
    lip_correlations,
    longest_run,
    second_face_share,
)
from face.landmarks68 import to_landmarks68
from face.pose import Pose, apply_pose, fit_pose, rotation_from_angles
from face.tracker import FaceTrack
from models.ani_frames import clip_tools
from options.preprocess import QualityGates
from tests.faces import basis, portrait
from tests.raw_clips import N_FRAMES, babble, faces, raw_clip, write_raw
from util.audio import read_voice, write_wav
from util.errors import UserError
from util.types import SAMPLE_RATE, Voice

TOOLS = ClipTools(**clip_tools())
CUT = 12


def black_ani(face: object, canonical: np.ndarray, pose: Pose) -> np.ndarray:
    """Gates are tested without drawing."""
    return np.zeros((len(pose), 128, 128, 3), np.uint8)


def prepared(
    folder: Path, video: Path, audio: Path | None = None, **gates: float
) -> ClipRecord | SkippedClip:
    settings = ClipSettings(size=128, gates=QualityGates(**gates))
    return prepare_clip(
        raw_clip(video, audio=audio), folder / "out", folder, settings, replace(TOOLS, ani=black_ani)
    )


def _beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    picture = np.full((400, 800, 3), 128, np.uint8)
    picture[: left.shape[0], : left.shape[1]] = left
    picture[: right.shape[0], 400 : 400 + right.shape[1]] = right
    return picture


def _other_scene() -> list[np.ndarray]:
    """The portrait for some frames, then a mirrored, nearer and darker one."""
    near = cv2.resize(portrait()[40:400, 60:420, :][:, ::-1], (400, 400), interpolation=cv2.INTER_AREA)
    return [*faces()[:CUT], *[(near * 0.6).astype(np.uint8)] * (N_FRAMES - CUT)]


def _frames(kind: str) -> list[np.ndarray]:
    plain = faces()
    small = [cv2.resize(f, (250, 250), interpolation=cv2.INTER_AREA) for f in plain]
    return {
        "too_short": plain[:12],
        "no_face": [*plain[:16], *[np.full_like(plain[0], 90)] * 8],
        "too_small": small,
        "too_dark": [(f * 0.12).astype(np.uint8) for f in plain],
        "two_faces": [_beside(f, cv2.resize(plain[0], (320, 320))) for f in plain],
        "cut": _other_scene(),
        "extreme_pose": plain,
        "outside": [np.roll(f, 10 * k, 1) for k, f in enumerate(plain)],
    }[kind]


CASES = [
    ("too_short", {}, {"min_frames": 12}),
    ("no_face", {}, {"min_seen": 0.6}),
    ("too_small", {}, {"min_face_px": 30}),
    ("too_dark", {}, {"min_brightness": 0}),
    ("two_faces", {}, {"max_second_face": 1}),
    ("cut", {}, {"max_cuts": 1}),
    ("extreme_pose", {"max_yaw": 0.1}, {}),
    ("outside", {"max_outside": 0}, {"max_outside": 1}),
]


@pytest.mark.parametrize(("kind", "closed", "opened"), CASES)
def test_each_gate_closes_and_opens(
    tmp_path: Path, kind: str, closed: dict[str, float], opened: dict[str, float]
) -> None:
    video = write_raw(tmp_path / "a.mp4", _frames(kind))
    skipped = prepared(tmp_path, video, **closed)
    assert isinstance(skipped, SkippedClip)
    assert skipped.reason == kind, skipped.detail
    assert not list((tmp_path / "out").rglob("*"))
    kept = prepared(tmp_path, video, **opened)
    assert isinstance(kept, ClipRecord), kept


def test_sound_is_asked_for(tmp_path: Path) -> None:
    """None, silence, too little; a file of its own that isn't there."""
    mute = write_raw(tmp_path / "mute.mp4", sound=False)
    silent = write_raw(tmp_path / "silent.mp4", voice=Voice(np.zeros(SAMPLE_RATE, np.float32)))
    write_wav(tmp_path / "short.wav", babble(0.4))
    for video, audio in (
        (mute, None),
        (silent, None),
        (mute, tmp_path / "short.wav"),
        (mute, tmp_path / "no.wav"),
    ):
        skipped = prepared(tmp_path, video, audio)
        assert (skipped.reason, bool(skipped.detail)) == ("audio_missing", True)
    assert prepared(tmp_path, mute, tmp_path / "short.wav", min_sound=0.3).audio == "audio/s1/a.wav"
    assert prepared(tmp_path, mute, min_sound=0).audio == ""


def test_the_rate_of_the_source_counts(tmp_path: Path) -> None:
    import av

    path = tmp_path / "slow.mp4"
    with av.open(str(path), "w") as box:
        stream = box.add_stream("libx264", rate=5)
        stream.width = stream.height = 64
        for _ in range(10):
            box.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24"))
            )
        box.mux(stream.encode(None))
    skipped = prepared(tmp_path, path)
    assert (skipped.reason, skipped.detail) == (
        "unreadable",
        "slow.mp4: 5 frames per second; 10 are needed",
    )
    assert prepared(tmp_path, path, min_fps=0).reason == "audio_missing"


def test_reasons_name_their_flags() -> None:
    """Every gate's flag is in a reason, so that a user knows which one to move; and none that isn't there."""
    named = {
        w.strip("(),;") for text in REASONS.values() for w in text.split() if w.strip("(").startswith("--")
    }
    assert named == {f"--{f.name}" for f in fields(QualityGates)} | {"--crop", "--timeout_s"}
    assert set(BROKEN) < set(REASONS)
    assert all(f.metadata["help"] for f in fields(QualityGates))
    with pytest.raises(UserError, match="--min_seen 2: needs a number from 0"):
        QualityGates(min_seen=2)


def _still_track(n: int = 40, noise: float = 0.0) -> FaceTrack:
    """A face of 120 pixels that hardly moves."""
    pose = Pose(np.repeat(np.eye(3)[None], n, 0), np.full(n, 80.0), np.tile([200.0, 150, 0], (n, 1)))
    vertices = apply_pose(np.repeat(basis().template[None], n, 0), pose)
    vertices = vertices + np.random.default_rng(0).normal(0, noise, vertices.shape)
    return FaceTrack(
        vertices.astype(np.float32), np.zeros((n, 52)), np.zeros((n, 4, 4)), np.ones(n, bool), np.zeros(n)
    )


def test_cuts_are_no_gestures_blinks_or_fades() -> None:
    track, n = _still_track(noise=0.3), 40
    calm = np.abs(np.random.default_rng(1).normal(1, 0.3, n)).astype(np.float32)
    assert cut_scores(track, calm).max() < 0.5
    cut = calm.copy()
    cut[20] = 45
    assert np.flatnonzero(cut_scores(track, cut) >= 1).tolist() == [20]
    gesture = calm.copy()
    gesture[18:24] = 9, 17, 25, 22, 16, 8
    assert cut_scores(track, gesture).max() < 1
    fade = calm.copy()
    fade[10:22] = 15
    assert cut_scores(track, fade).max() < 1
    light = calm.copy()
    light[20] = 11  # lights change, the face stays
    assert cut_scores(track, light).max() < 1


def test_a_jump_of_the_face_within_a_scene_is_a_cut() -> None:
    track, change = _still_track(noise=0.2), np.full(40, 0.5, np.float32)
    change[25] = 8
    assert cut_scores(track, change).max() < 1
    track.vertices[25:, :, 0] += 25
    assert np.flatnonzero(cut_scores(track, change) >= 1).tolist() == [25]


def test_what_happens_unseen_is_no_cut() -> None:
    """A broken start (GRID has such files), and a face that was lost for a while."""
    track, change = _still_track(), np.full(40, 0.5, np.float32)
    track.seen[:12] = False
    change[12] = 0  # nothing to compare with
    track.seen[20:29] = False
    change[29] = 20
    assert cut_scores(track, change).max() < 1


def test_frame_watch_measures_light_and_change() -> None:
    watch, grey = FrameWatch(), np.full((90, 120, 3), 100, np.uint8)
    track = _still_track(1)
    face = type("Face", (), {"vertices": track.vertices[0] * 0.3})()
    watch.add(grey, face)
    watch.add(grey + 20, None)  # not seen: not looked at
    watch.add(grey + 50, face)
    assert watch.change.tolist() == [0, 0, 50]
    assert watch.brightness == pytest.approx(125, abs=0.5)


def test_a_clip_is_given_up_as_soon_as_it_is_lost() -> None:
    watch, gates = FrameWatch(), QualityGates(min_seen=0.8)
    grey = np.zeros((90, 120, 3), np.uint8)
    for _ in range(20):
        watch.add(grey, None)
        watch.check_seen(100, gates)
    watch.add(grey, None)
    with pytest.raises(ClosedGate, match=r"a face in 0 of the first 21 frames; in 0\.8 of 100 it is needed"):
        watch.check_seen(100, gates)
    with pytest.raises(ClosedGate):
        watch.check_seen(21, replace(gates, min_seen=0))  # one frame at least must show a face


def test_second_faces_count_from_half_the_size() -> None:
    track = _still_track(10)
    width = np.ptp(track.vertices[0, :, 0])
    second = np.array([0.6 * width] * 3 + [0.4 * width] * 7, np.float32)
    assert second_face_share(replace(track, second_width=second)) == pytest.approx(0.3)
    assert second_face_share(replace(track, second_width=None)) == 0


@pytest.mark.parametrize(("angles", "name"), [((60, 0, 0), "yaw"), ((0, -55, 0), "pitch"), ((0, 0, 80), "")])
def test_turned_heads_are_told_by_what_is_turned(angles: tuple[float, ...], name: str) -> None:
    rotation = rotation_from_angles(np.tile(angles, (8, 1)))
    pose = Pose(rotation, np.full(8, 60.0, np.float32), np.tile([128.0, 128, 0], (8, 1)))
    mesh = apply_pose(np.repeat(basis().template[None], 8, 0), pose)
    measured = fit_pose(mesh, basis().template).angles_deg
    given = to_landmarks68(mesh), measured, np.ones(8, bool), 256
    if not name:
        assert check_place(*given, QualityGates())["roll"] == pytest.approx(80, abs=1)
        return
    with pytest.raises(ClosedGate, match=rf"{name} of \d+ degrees") as told:
        check_place(*given, QualityGates())
    assert told.value.reason == "extreme_pose"
    check_place(*given, QualityGates(max_yaw=180, max_pitch=180))


def _lips(n: int, seed: int = 0) -> np.ndarray:
    """(n + 40,) a lip opening like speech's: closures and openings, a few a second."""
    noise = np.random.default_rng(seed).normal(0, 1, n + 40)
    return np.maximum(np.convolve(noise, np.hanning(7), "same"), 0)


@pytest.mark.parametrize("lag", [10, -10, 3, 0])
def test_a_sure_lag_is_out_of_sync(lag: int) -> None:
    """voice late by `lag` frames."""
    n = 75
    lips = _lips(n)
    seen_gap, heard = lips[20 : 20 + n], lips[20 - lag : 20 - lag + n]
    r = lip_correlations(heard, seen_gap, np.ones(n, bool))
    assert r.argmax() - 15 == lag
    voice = babble(3)
    given = voice, seen_gap, np.ones(n, bool), lambda _: heard
    if abs(lag) <= 3:
        assert check_lips(*given, QualityGates())["lip_lag_ms"] == 40 * lag
        return
    with pytest.raises(
        ClosedGate, match=rf"400 ms {'late' if lag > 0 else 'early'}.* 120 ms at most"
    ) as told:
        check_lips(*given, QualityGates())
    assert told.value.reason == "out_of_sync"
    assert check_lips(*given, QualityGates(max_lip_lag_ms=500))["lip_r"] == pytest.approx(1)
    assert check_lips(*given, QualityGates(max_lip_lag_ms=0)) == {}


def test_lips_that_tell_nothing_are_not_judged() -> None:
    n = 75
    gates, seen, lips = QualityGates(), np.ones(n, bool), _lips(75)[:75]
    assert check_lips(None, lips, seen, lambda v: lips, gates) == {}
    assert check_lips(babble(3), lips, seen, None, gates) == {}
    still = check_lips(babble(3), np.zeros(n), seen, lambda v: lips, gates)
    assert still["lip_r"] == 0
    few = np.arange(n) < SYNC_FRAMES - 1
    assert check_lips(babble(3), np.roll(lips, 10), few, lambda v: lips, gates) == {}


def test_jitter_is_the_noise_of_a_track() -> None:
    for noise in (0.2, 1.0):
        points = to_landmarks68(_still_track(200, noise).vertices)
        assert landmark_jitter(points) == pytest.approx(noise * np.sqrt(2), rel=0.05)
        nodding = points + 20 * np.sin(np.arange(200) / 25 * 2)[:, None, None]  # a third of a hertz
        assert landmark_jitter(nodding) == pytest.approx(landmark_jitter(points), rel=0.1, abs=0.05)
    assert landmark_jitter(points[:2]) == 0


@pytest.mark.parametrize(
    ("seen", "wanted"), [([], 0), ([0, 0], 0), ([1, 1], 2), ([1, 0, 1, 1, 0], 2), ([0, 1, 1, 1], 3)]
)
def test_longest_run(seen: list[int], wanted: int) -> None:
    assert longest_run(np.array(seen, bool)) == wanted


def test_shifted_sound_of_a_real_clip_is_found(pack: Path, tmp_path: Path) -> None:
    """A sentence of GRID as it is, and with its voice 0.4 s late."""
    video = pack / "raw_grid" / "s1" / "bbaf2n.mpg"
    kept = prepared(tmp_path, video)
    assert kept.quality["lip_r_0"] > 0.7
    assert abs(kept.quality["lip_lag_ms"]) <= 80
    samples = read_voice(video, "clip").samples
    late = np.concatenate([np.zeros(round(0.4 * SAMPLE_RATE), np.float32), samples])
    write_wav(tmp_path / "late.wav", Voice(late))
    skipped = prepared(tmp_path, video, tmp_path / "late.wav")
    assert (skipped.reason, "400 ms late" in skipped.detail) == ("out_of_sync", True)
