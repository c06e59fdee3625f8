"""What moves the face: a voice, a target clip, a pose file, and how they are put together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.signal import savgol_filter

from face.crop import from_crop
from face.expression_basis import ExpressionBasis
from face.pose import fit_pose, to_canonical
from face.pose_file import PoseCurve, read_pose_file
from face.reference import HALF_PIXEL, Reference
from face.tracker import track_frames
from models.blink import blinks, gaze
from models.expression import ExpressionLearner, ExpressionTrack
from models.head_motion import HeadMotionLearner
from options.groups import DrivingFlags
from util.audio import read_voice
from util.errors import UserError, remark
from util.types import Voice
from util.video import probe, read_frames

EYEBALL = 0.13  # radius in face units: 12 mm at 90 mm between the outer eyes
EYES_HOLD = 0.5  # part of a head turn that the eyes take back, to keep looking at the viewer
MAX_SHIFT = 0.6  # face units: further, the head would leave the crop


@dataclass(frozen=True)
class ClipMotion:
    """The motion of a target clip's face."""

    offsets: np.ndarray  # (T, 478, 3) float16 from the clip's neutral face, face units
    neutral: np.ndarray  # (478, 3) that neutral face
    curve: PoseCurve  # angles absolute; shift and size relative to the reference or the clip's median

    def take(self, frames: np.ndarray) -> ClipMotion:
        """The frames of these numbers."""
        c = self.curve
        curve = PoseCurve(c.angles[frames], c.shift[frames], c.log_scale[frames])
        return ClipMotion(self.offsets[frames], self.neutral, curve)


@dataclass(frozen=True)
class Driving:
    """Everything that moves the face, frame by frame."""

    n_frames: int
    voice: Voice
    curve: PoseCurve  # angles absolute in degrees; shift and size relative to the reference's
    speech: ExpressionTrack | None  # of the voice; None where the target clip gives the lips
    copied: ClipMotion | None  # of the target clip; None where there is none
    closure: np.ndarray  # (T, 2) blinks, 0 open, 1 shut
    gaze: np.ndarray  # (T, 2) shift of the irises in face units
    emotion: str
    emotion_intensity: float
    same_clip: bool  # the target clip is the reference's own: its meshes need no fitting to the reference


def read_driving(
    flags: DrivingFlags,
    target: Path | None,
    reference: Reference,
    same_clip: bool,
    basis: ExpressionBasis,
    device: str,
) -> Driving:
    """Read and predict all motion. same_clip: the target clip is the reference's own clip.

    Raises UserError where there is no voice, or a file can't be used.
    """
    voice, speaks = _voice(flags, target)
    clip = None
    if target is not None:
        clip = clip_motion(target, reference if same_clip else None, basis)
    n_frames = voice.n_frames if speaks or clip is None else len(clip.curve)
    if clip is not None:
        clip = clip.take(_there_and_back(len(clip.curve), n_frames))
    speech = ExpressionLearner.load(device).predict(voice) if speaks else None
    curve = _head(flags, voice, n_frames, clip, reference, device)
    closure = np.zeros((n_frames, 2), np.float32)
    eyes = np.zeros((n_frames, 2), np.float32)
    if clip is None:
        if flags.blink == "auto":
            closure = blinks(n_frames, flags.seed, voice)
        turned = curve.angles - reference.ani.pose.angles_deg
        looks = np.radians(gaze(n_frames, flags.seed) - EYES_HOLD * turned[:, :2])
        eyes = (EYEBALL * np.sin(looks)).astype(np.float32)
    emotion = flags.emotion, flags.emotion_intensity
    return Driving(n_frames, voice, curve, speech, clip, closure, eyes, *emotion, same_clip)


def _voice(flags: DrivingFlags, target: Path | None) -> tuple[Voice, bool]:
    """The voice, and whether the lips follow it (else they follow the target clip that it belongs to)."""
    if flags.audio_path:
        return read_voice(flags.audio_path, "--audio_path"), True
    if target is None:
        raise UserError("--audio_path: not given, nor --tgt_video_path; give one of them")
    if flags.tgt_audio_path:
        return read_voice(flags.tgt_audio_path, "--tgt_audio_path"), False
    if not probe(target, "--tgt_video_path").has_audio:
        raise UserError(
            f"--tgt_video_path {target}: has no sound, and --audio_path is not given; give a voice"
        )
    return read_voice(target, "--tgt_video_path"), False


def clip_motion(path: Path, reference: Reference | None, basis: ExpressionBasis) -> ClipMotion:
    """Track a target clip (--tgt_video_path). reference: given where its frame belongs to this very clip."""
    track = track_frames(read_frames(path, "--tgt_video_path"), f"--tgt_video_path {path}")
    pose = fit_pose(track.vertices, basis.template)
    canonical = to_canonical(track.vertices, pose)
    neutral = basis.neutral(canonical, track.blendshapes)
    place, size = pose.translation[:, :2], pose.scale
    if reference is None:
        home, unit = np.median(place, axis=0), float(np.median(size))
    else:
        ani, shrink = reference.ani, _source_shrink(path, reference)
        side = ani.image.shape[0]
        unit = float(ani.pose.scale[0]) * ani.box.side / side * shrink
        place_in_crop = ani.pose.translation[0, :2] + HALF_PIXEL[:2]
        home = from_crop(place_in_crop, ani.box, side).astype(np.float64) * shrink
    curve = PoseCurve(
        _steady(pose.angles_deg),
        np.clip(_steady((place - home) / unit), -MAX_SHIFT, MAX_SHIFT),
        _steady(np.log(size / unit)[:, None])[:, 0],
    )
    offsets = _steady((canonical - neutral).reshape(len(track), -1)).reshape(canonical.shape)
    return ClipMotion(offsets.astype(np.float16), neutral, curve)


def _source_shrink(path: Path, reference: Reference) -> float:
    """Pixels of the clip per pixel of the reference's source frame, which may have been reduced."""
    return probe(path, "--tgt_video_path").width / reference.source.shape[1]


def _steady(curves: np.ndarray) -> np.ndarray:
    """(T, D) curves without the tracker's jitter; peaks are kept (Savitzky-Golay, 5 frames, parabola)."""
    if len(curves) < 5:
        return curves.astype(np.float32)
    return savgol_filter(curves, 5, 2, axis=0).astype(np.float32)


def _there_and_back(length: int, n_frames: int) -> np.ndarray:
    """Frame numbers of a clip played forwards and backwards until n_frames are full."""
    if n_frames > length:
        remark(
            f"--tgt_video_path: {length} frames for a voice of {n_frames}; the clip is played back and forth"
        )
    period = max(2 * (length - 1), 1)
    step = np.arange(n_frames) % period
    return np.where(step < length, step, period - step)


def _head(
    flags: DrivingFlags,
    voice: Voice,
    n_frames: int,
    clip: ClipMotion | None,
    reference: Reference,
    device: str,
) -> PoseCurve:
    """Head motion as `--head_motion` says: audio, target, still, or a file."""
    own = reference.ani.pose.angles_deg
    if flags.head_motion == "target":
        return _scaled(clip.curve, flags.head_motion_scale)
    if flags.head_motion == "still":
        still = np.zeros((n_frames, 3), np.float32)
        return PoseCurve(own + still, still[:, :2], still[:, 0])
    if flags.head_motion == "audio":
        moves = HeadMotionLearner.load(device).sample(voice, flags.seed, flags.head_motion_scale)
        moves = np.concatenate([moves, moves[-1:].repeat(max(n_frames - len(moves), 0), 0)])[:n_frames]
        return PoseCurve(own + moves[:, :3], moves[:, 3:5], moves[:, 5])
    curve = read_pose_file(flags.head_motion, n_frames)
    angles = curve.angles + (
        own - reference.ani.seen_angles
    )  # absolute angles are those that a tracker will see
    return _scaled(PoseCurve(angles, curve.shift, curve.log_scale), flags.head_motion_scale)


def _scaled(curve: PoseCurve, amplitude: float) -> PoseCurve:
    """The curve with its departures from its own middle multiplied by `amplitude`."""
    if amplitude == 1.0:
        return curve

    def scale(values: np.ndarray) -> np.ndarray:
        middle = np.median(values, axis=0)
        return (middle + amplitude * (values - middle)).astype(np.float32)

    return PoseCurve(scale(curve.angles), scale(curve.shift), scale(curve.log_scale))
