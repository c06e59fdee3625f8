"""Driving: voice, target clip and pose file put together; what is missing is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from face.expression_basis import lip_gap
from face.pose_file import PoseCurve
from face.reference import Reference, load_reference
from models import driving
from models.driving import MAX_SHIFT, Driving, clip_motion, read_driving
from models.expression import ExpressionTrack
from options.groups import DrivingFlags
from tests.faces import basis, portrait, reference
from util.audio import write_wav
from util.errors import UserError
from util.types import FPS, SAMPLE_RATE, Voice
from util.video import VideoWriter

N_CLIP = 14


class LoudnessLearner:
    """Stands in for the expression learner: these tests are about what is done with its answer."""

    @classmethod
    def load(cls, device: str) -> LoudnessLearner:
        return cls()

    def predict(self, voice: Voice) -> ExpressionTrack:
        n = voice.n_frames
        return ExpressionTrack(np.zeros((n, basis().n_components), np.float32), np.full(n, 0.1, np.float32))


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driving, "ExpressionLearner", LoudnessLearner)


def _voice(seconds: float) -> Voice:
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return Voice(
        (0.3 * np.sin(2 * np.pi * 180 * time) * (np.sin(2 * np.pi * 2 * time) > 0)).astype(np.float32)
    )


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("voice") / "one second.wav"
    write_wav(path, _voice(1.0))
    return path


def _write_clip(path: Path, sound: Voice | None) -> Path:
    """The portrait slides to the left by 4 pixels a frame."""
    with VideoWriter(path, 320, 320, voice=sound) as video:
        for k in range(N_CLIP):
            video.write(np.ascontiguousarray(portrait()[:320, 60 + 4 * k : 380 + 4 * k]))
    return path


@pytest.fixture(scope="module")
def mute_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_clip(tmp_path_factory.mktemp("clip") / "mute.mp4", None)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_clip(tmp_path_factory.mktemp("clip") / "sound.mp4", _voice(N_CLIP / FPS))


def _drive(flags: DrivingFlags, target: Path | None = None, same: Reference | None = None) -> Driving:
    return read_driving(flags, target, same or reference(), same is not None, basis(), "cpu")


def _flags(voice: Path | None = None, **kwargs: object) -> DrivingFlags:
    return DrivingFlags(audio_path="" if voice is None else str(voice), **kwargs)


def test_voice_and_still_head(voice: Path) -> None:
    drive = _drive(_flags(voice, head_motion="still", emotion="happy", emotion_intensity=0.5))
    assert drive.n_frames == len(drive.curve) == 25
    assert drive.voice.n_frames == 25
    assert drive.copied is None
    assert len(drive.speech.lip_gap) == 25
    own = reference().ani.pose.angles_deg
    np.testing.assert_array_equal(drive.curve.angles, own.repeat(25, 0))
    assert not drive.curve.shift.any()
    assert not drive.curve.log_scale.any()
    assert drive.closure.shape == drive.gaze.shape == (25, 2)
    assert (drive.emotion, drive.emotion_intensity) == ("happy", 0.5)


def test_head_moves_with_the_voice(voice: Path) -> None:
    one, same, other = (_drive(_flags(voice, head_motion="audio", seed=s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.curve.angles, same.curve.angles)
    np.testing.assert_array_equal(one.gaze, same.gaze)
    np.testing.assert_array_equal(one.closure, same.closure)
    assert np.abs(one.curve.angles - other.curve.angles).max() > 0.1
    assert one.curve.angles.shape == (25, 3)
    none = _drive(_flags(voice, head_motion="audio", head_motion_scale=0.0))
    np.testing.assert_allclose(none.curve.angles, reference().ani.pose.angles_deg.repeat(25, 0), atol=1e-3)


def test_blinks_can_be_turned_off(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    write_wav(path, _voice(8.0))
    assert _drive(_flags(path, head_motion="still")).closure.max() > 0.4
    assert not _drive(_flags(path, head_motion="still", blink="off")).closure.any()


def test_eyes_hold_the_viewer(voice: Path, tmp_path: Path) -> None:
    """A head that is turned to the right and down looks back to the left and up."""
    still = _drive(_flags(voice, head_motion="still"))
    own = reference().ani.seen_angles
    path = tmp_path / "turn.csv"
    path.write_text(f"frame,yaw,pitch,roll\n0,{own[0] + 15},{own[1] + 10},{own[2]}\n", encoding="utf-8")
    turned = _drive(_flags(voice, head_motion=str(path)))
    difference = turned.gaze - still.gaze
    assert (difference[:, 0] < -0.01).all()
    assert (difference[:, 1] < -0.005).all()
    assert np.abs(turned.gaze).max() < 0.05


def test_pose_file_is_absolute(voice: Path, tmp_path: Path) -> None:
    """Angles are those that a tracker will see; shift and size are the reference's times the file's."""
    path = tmp_path / "poses.csv"
    path.write_text(
        "frame,yaw,pitch,roll,x,y,scale\n0,-10,0,0,0,0,1\n20,10,5,-3,0.1,-0.05,1.1\n", encoding="utf-8"
    )
    curve = _drive(_flags(voice, head_motion=str(path))).curve
    between = reference().ani.pose.angles_deg[0] - reference().ani.seen_angles
    np.testing.assert_allclose(curve.angles[0], [-10, 0, 0] + between, atol=1e-3)
    np.testing.assert_allclose(curve.angles[24], [10, 5, -3] + between, atol=1e-3)
    np.testing.assert_allclose(curve.shift[24], [0.1, -0.05], atol=1e-5)
    assert curve.log_scale[24] == pytest.approx(np.log(1.1), abs=1e-5)
    assert (np.diff(curve.angles[:21, 0]) > 0).all()
    half = _drive(_flags(voice, head_motion=str(path), head_motion_scale=0.5)).curve
    assert np.ptp(half.angles[:, 0]) == pytest.approx(0.5 * np.ptp(curve.angles[:, 0]), rel=1e-3)


def test_missing_pose_file_is_told(voice: Path) -> None:
    with pytest.raises(UserError, match=r"--head_motion .*nowhere\.csv"):
        _drive(_flags(voice, head_motion="nowhere.csv"))


def test_nothing_to_say() -> None:
    with pytest.raises(UserError, match=r"^--audio_path: not given, nor --tgt_video_path; give one of them"):
        _drive(_flags())


def test_clip_without_sound(mute_clip: Path) -> None:
    with pytest.raises(
        UserError, match=r"^--tgt_video_path .*mute\.mp4: has no sound, and --audio_path is not given"
    ):
        _drive(_flags(head_motion="target"), mute_clip)


def test_clip_gives_lips_head_and_voice(clip: Path) -> None:
    drive = _drive(_flags(head_motion="target"), clip)
    assert drive.n_frames == N_CLIP
    assert drive.speech is None
    assert drive.copied.offsets.shape == (N_CLIP, 478, 3)
    assert drive.copied.offsets.dtype == np.float16
    assert not drive.closure.any()  # the clip's own blinks are in its offsets
    assert not drive.gaze.any()
    assert not drive.same_clip
    assert drive.voice.n_frames == pytest.approx(N_CLIP, abs=2)


def test_voice_and_mute_clip(voice: Path, mute_clip: Path, capfd: pytest.CaptureFixture) -> None:
    """Lips from the voice, head from the clip, which is played back and forth until the voice ends."""
    drive = _drive(_flags(voice, head_motion="target"), mute_clip)
    assert drive.n_frames == 25
    assert len(drive.speech.lip_gap) == len(drive.curve) == len(drive.copied.offsets) == 25
    np.testing.assert_array_equal(drive.curve.shift[N_CLIP], drive.curve.shift[N_CLIP - 2])
    assert "the clip is played back and forth" in capfd.readouterr().err


def test_motion_of_another_clip_is_about_its_middle(clip: Path) -> None:
    motion = clip_motion(clip, None, basis())
    assert len(motion.curve) == N_CLIP
    unit = 70 / 256 * 206  # pixels of the portrait per face unit, about
    np.testing.assert_allclose(np.diff(motion.curve.shift[:, 0]).mean(), -4 / unit, rtol=0.15)
    np.testing.assert_allclose(np.median(motion.curve.shift, axis=0), 0, atol=0.05)
    np.testing.assert_allclose(motion.curve.log_scale, 0, atol=0.03)
    assert np.abs(motion.curve.shift).max() <= MAX_SHIFT
    np.testing.assert_allclose(motion.curve.angles, reference().ani.pose.angles_deg.repeat(N_CLIP, 0), atol=4)
    rest = motion.neutral + motion.offsets.astype(np.float32)
    assert lip_gap(motion.neutral) < 0.5 * lip_gap(rest).mean()  # the portrait smiles


def test_motion_of_the_own_clip_is_about_the_reference(clip: Path) -> None:
    """Where the reference is a frame of the clip, that frame's motion is none."""
    own = load_reference(clip, (3,), None, 256, basis())
    motion = clip_motion(clip, own, basis())
    np.testing.assert_allclose(motion.curve.shift[3], 0, atol=0.03)
    assert motion.curve.log_scale[3] == pytest.approx(0, abs=0.02)
    np.testing.assert_allclose(motion.curve.angles[3], own.ani.pose.angles_deg[0], atol=1.5)
    again = motion.neutral + motion.offsets[3].astype(np.float32)
    np.testing.assert_allclose(again, own.ani.canonical, atol=0.05)
    assert motion.curve.shift[0, 0] > 0.05 > -0.05 > motion.curve.shift[-1, 0]
    assert _drive(_flags(head_motion="target"), clip, own).same_clip


def test_large_source_frames_are_reckoned_with(clip: Path) -> None:
    """A reference whose frame was reduced to half gives the same place in the clip's pixels."""
    own = load_reference(clip, (3,), None, 256, basis())
    box = own.ani.box
    halved = replace(box, left=box.left / 2, top=box.top / 2, side=box.side / 2)
    reduced = replace(own, source=own.source[::2, ::2], ani=replace(own.ani, box=halved))
    one, other = clip_motion(clip, own, basis()).curve, clip_motion(clip, reduced, basis()).curve
    np.testing.assert_allclose(other.shift, one.shift, atol=1e-4)
    np.testing.assert_allclose(other.log_scale, one.log_scale, atol=1e-4)


@pytest.mark.parametrize(("length", "n_frames"), [(1, 4), (2, 5), (5, 5), (5, 3), (4, 30)])
def test_there_and_back(length: int, n_frames: int, capsys: pytest.CaptureFixture) -> None:
    frames = driving._there_and_back(length, n_frames)
    assert frames.shape == (n_frames,)
    assert frames.min() == 0
    assert frames.max() == min(length, n_frames) - 1
    assert np.abs(np.diff(frames)).max(initial=0) <= 1  # no jump
    np.testing.assert_array_equal(frames[:length], np.arange(min(length, n_frames)))
    assert ("back and forth" in capsys.readouterr().err) == (n_frames > length)


def test_there_and_back_turns_at_the_ends() -> None:
    assert driving._there_and_back(4, 9).tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2]


@pytest.mark.parametrize("amplitude", [0.0, 0.5, 1.0, 2.0])
def test_scaled_keeps_the_middle(amplitude: float) -> None:
    rng = np.random.default_rng(0)
    curve = PoseCurve(
        *(rng.normal(3, 2, shape).astype(np.float32) for shape in ((51, 3), (51, 2))),
        rng.normal(0, 0.1, 51).astype(np.float32),
    )
    scaled = driving._scaled(curve, amplitude)
    for name in ("angles", "shift", "log_scale"):
        before, after = getattr(curve, name), getattr(scaled, name)
        np.testing.assert_allclose(np.median(after, axis=0), np.median(before, axis=0), atol=1e-5)
        np.testing.assert_allclose(
            np.ptp(after, axis=0), amplitude * np.ptp(before, axis=0), rtol=1e-4, atol=1e-5
        )
        assert after.dtype == np.float32


@pytest.mark.parametrize("n_frames", [1, 4, 5, 40])
def test_steady_keeps_lines_and_length(n_frames: int) -> None:
    """Jitter goes, straight movement stays as it is."""
    line = np.linspace(0, 10, n_frames)[:, None] * [[1.0, -2.0]]
    np.testing.assert_allclose(driving._steady(line), line, atol=1e-4)
    if n_frames == 40:
        noise = np.random.default_rng(0).normal(0, 1, (40, 2))
        assert (
            np.diff(driving._steady(line + noise), axis=0).std() < 0.75 * np.diff(line + noise, axis=0).std()
        )
