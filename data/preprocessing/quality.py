"""Quality gates: which clips are worth training on, and the numbers that say so.

Every gate is a flag of scripts/preprocess.py and can be switched off by its value. The thresholds were set on the
pack of real clips: what was measured is in docs/data.md.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from face.contract_pose import STABLE_POINTS
from face.landmarks68 import to_landmarks68
from face.tracker import FaceObservation, FaceTrack
from options.preprocess import QualityGates
from util.types import FPS, SAMPLE_RATE, Voice

REASONS = {  # in the order in which they are looked for
    "unreadable": "the file cannot be read as a video: empty, cut off, damaged, of another kind (--max_damaged, "
    "--min_fps)",
    "too_short": "fewer frames than --min_frames",
    "audio_missing": "no sound, silence, or sound for too small a part of the clip (--min_sound)",
    "no_face": "a face is seen in too few frames (--min_seen)",
    "too_small": "the face is too small in the source (--min_face_px)",
    "too_dark": "the face is too dark or too bright (--min_brightness, --max_brightness)",
    "two_faces": "a second face of at least half the size for too long (--max_second_face)",
    "cut": "the scene changes within the clip (--max_cuts)",
    "extreme_pose": "the face is turned too far (--max_yaw, --max_pitch)",
    "outside": "the face leaves the crop, which stands still, too often (--max_outside; or --crop moving)",
    "out_of_sync": "the lips do not move when the voice does, by a lag that is sure (--max_lip_lag_ms)",
    "crashed": "the program broke down over this clip",
    "timeout": "the clip took longer than --timeout_s",
}
BROKEN = ("unreadable", "crashed", "timeout")  # not a matter of the gates

# A cut changes the picture (0 to 255) by CUT_CHANGE and CUT_PEAK times as much as its neighbours do; or by less, and
# the face jumps JUMP_PEAK times as far as in them. Of made-up cuts between the pack's people 99.9 % are found, of those
# within one person's clips 81 %; of its own clips only dfrf_cnn2, which has cuts, is refused.
CUT_CHANGE, CUT_PEAK = 14.0, 3.0
JUMP_CHANGE, JUMP_CHANGE_PEAK, JUMP_PEAK = 6.0, 3.5, 4.0
RIGID = (27, 28, 29, 30, 36, 39, 42, 45)  # nose bridge and eye corners, of the 68 points
LAGS = range(-15, 16)  # frames
SYNC_FRAMES = (
    50  # shorter clips are too alike: at 1.2 s one in twelve is in step with its voice at a wrong lag
)
# None of the pack's 148 longer clips in sync is refused; with the voice 0.4 s early or late, 81 to 100 % are, at 0.2 s
# 60 to 94 %; and of its raw MEAD takes those two that its makers found to be 0.2 s late.
SYNC_R, SYNC_MARGIN = 0.5, 0.35
SECOND_FACE_SIZE = 0.5  # of the followed face's width: smaller ones are passers-by
LUMA = (0.299, 0.587, 0.114)
BROWS_TO_MOUTH = slice(17, 68)  # of the 68 points: the jaw may touch the border
SILENT_DB = -60.0  # below full scale: a track of nothing


class ClosedGate(Exception):
    """A clip is not kept."""

    def __init__(self, reason: str, detail: str) -> None:
        """reason: one of REASONS. detail: one line that says what was found and what is needed."""
        super().__init__(detail)
        self.reason, self.detail = reason, " ".join(detail.split())


class FrameWatch:
    """What the gates need of the pictures themselves: fed with one frame after the other, it keeps a few numbers."""

    def __init__(self) -> None:
        self._brightness: list[float] = []
        self._change: list[float] = []
        self._before: np.ndarray | None = None

    def add(self, frame: np.ndarray, face: FaceObservation | None) -> None:
        """frame: RGB uint8 (H, W, 3). face: what was seen in it."""
        step = max(min(frame.shape[:2]) // 64, 1)
        if face is None:
            self._change.append(0.0)
            return
        green = np.ascontiguousarray(frame[::step, ::step, 1])  # nearly luma, and a third of the work
        small = cv2.resize(green, (32, 32), interpolation=cv2.INTER_AREA)
        self._change.append(
            0.0 if self._before is None else cv2.norm(small, self._before, cv2.NORM_L1) / small.size
        )
        self._before = small
        self._brightness.append(_face_luma(frame, face.vertices))

    def check_seen(self, n_frames: int, gates: QualityGates) -> None:
        """Raise ClosedGate as soon as too few of the clip's frames can show a face."""
        n, n_seen = len(self._change), len(self._brightness)
        n_needed = max(gates.min_seen * n_frames, 1)
        if n_seen + max(n_frames - n, 0) < n_needed:
            found = f"a face in {n_seen} of the first {n} frames"
            raise ClosedGate("no_face", f"{found}; in {gates.min_seen:g} of {n_frames} it is needed")

    @property
    def brightness(self) -> float:
        """Mean luma of the face, 0 to 255; median over the frames that show one."""
        return float(np.median(self._brightness)) if self._brightness else 0.0

    @property
    def change(self) -> np.ndarray:
        """(T,) mean change of brightness since the seen frame before, 0 to 255, of a picture reduced to 32 x 32."""
        return np.array(self._change, np.float32)


def _face_luma(frame: np.ndarray, vertices: np.ndarray) -> float:
    height, width = frame.shape[:2]
    x0, y0 = np.clip(vertices[:, :2].min(0), 0, (width - 1, height - 1)).astype(int)
    x1, y1 = np.clip(vertices[:, :2].max(0), (x0 + 1, y0 + 1), (width, height)).astype(int)
    step = max((x1 - x0) // 32, 1)
    part = np.ascontiguousarray(frame[y0:y1:step, x0:x1:step])
    return float(np.dot(cv2.mean(part)[:3], LUMA))


def second_face_share(track: FaceTrack) -> float:
    """Part of the seen frames in which another face is at least half as wide."""
    if track.second_width is None or not track.seen.any():
        return 0.0
    widths = np.ptp(track.vertices[..., 0], axis=1)
    return float((track.second_width > SECOND_FACE_SIZE * widths)[track.seen].mean())


def landmark_jitter(landmarks: np.ndarray, seen: np.ndarray | None = None) -> float:
    """Noise of a landmark track in its own pixels: its standard deviation per point and frame, both axes together.

    landmarks: (T, 68, 2 or 3). From second differences, which slow motion hardly touches, of the points that move
    little with expression; the median over time, so that nods and cuts don't count. 0 for less than 3 frames.
    """
    points = landmarks[:, STABLE_POINTS, :2].astype(np.float64)
    bend = points[:-2] - 2 * points[1:-1] + points[2:]
    if seen is not None:
        bend = bend[seen[:-2] & seen[1:-1] & seen[2:]]
    return float(np.sqrt(np.median((bend**2).sum(-1).mean(1)) / 6)) if len(bend) else 0.0


def sound_share(voice: Voice, n_frames: int) -> float:
    """Part of T frames that the voice lasts."""
    return min(len(voice.samples) * FPS / SAMPLE_RATE / max(n_frames, 1), 1.0)


def loudness_db(voice: Voice) -> float:
    """Mean level in dB below full scale."""
    return float(10 * np.log10(np.mean(voice.samples.astype(np.float64) ** 2) + 1e-12))


def longest_run(seen: np.ndarray) -> int:
    """Most frames in a row that are true in `seen` (T,)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], seen.astype(np.int8), [0]])))
    return int(np.max(edges[1::2] - edges[::2], initial=0))


def check_track(track: FaceTrack, watch: FrameWatch, gates: QualityGates) -> dict[str, float]:
    """Size, light, other faces and cuts, measured. track: source pixels. Raises ClosedGate."""
    width = float(np.median(np.ptp(track.vertices[track.seen, :, 0], axis=1)))
    if width < gates.min_face_px:
        raise ClosedGate("too_small", f"the face is {width:.0f} px wide; {gates.min_face_px:g} are needed")
    light = watch.brightness
    if not gates.min_brightness <= light <= gates.max_brightness:
        needed = f"{gates.min_brightness:g} to {gates.max_brightness:g} is needed"
        raise ClosedGate("too_dark", f"the face's mean luma is {light:.0f}; {needed}")
    second = second_face_share(track)
    if second > gates.max_second_face:
        raise ClosedGate(
            "two_faces",
            f"a second face in {second:.2f} of the frames; {gates.max_second_face:g} at most are allowed",
        )
    scores = cut_scores(track, watch.change)
    cuts = np.flatnonzero(scores >= 1)
    if 0 <= gates.max_cuts < len(cuts):
        raise ClosedGate("cut", f"{len(cuts)} scene cuts, the first before frame {cuts[0]}; see --max_cuts")
    return {
        "seen": float(track.seen.mean()),
        "face_px": width,
        "brightness": light,
        "second_face": second,
        "cuts": len(cuts),
        "max_cut": float(scores.max()),
    }


def check_place(
    landmarks: np.ndarray, angles: np.ndarray, seen: np.ndarray, size: int, gates: QualityGates
) -> dict[str, float]:
    """Pose, and place in the crop. landmarks (T, 68, 3) crop pixels, angles (T, 3) degrees. Raises ClosedGate."""
    yaw, pitch, roll = (float(v) for v in np.median(np.abs(angles[seen]), axis=0))
    for name, value, limit in (("yaw", yaw, gates.max_yaw), ("pitch", pitch, gates.max_pitch)):
        if value > limit:
            raise ClosedGate(
                "extreme_pose", f"{name} of {value:.0f} degrees in the median; {limit:g} at most"
            )
    points = landmarks[seen, BROWS_TO_MOUTH, :2]
    outside = 1 - float(((points >= 0) & (points <= size - 1)).all((1, 2)).mean())
    if outside > gates.max_outside:
        found = f"the face is partly outside of the crop in {outside:.2f} of the frames"
        raise ClosedGate("outside", f"{found}; {gates.max_outside:g} at most; or try --crop moving")
    return {"yaw": yaw, "pitch": pitch, "roll": roll, "outside": outside}


def cut_scores(track: FaceTrack, change: np.ndarray) -> np.ndarray:
    """(T,) how much a frame looks like the first of another scene than the seen frame before it; 1 is a cut.

    change: `FrameWatch.change`. A cut stands out from the three frames to either side: in the picture alone, or less
    in the picture but in the place and size of the face too. Gestures and turns last longer than a frame.
    """
    scores = np.zeros(len(track))
    there = np.flatnonzero(track.seen)
    gaps = np.sqrt(np.diff(there, prepend=there[0] - 1))  # more may happen while the face is not seen
    picture, jump = change[there] / gaps, _jumps(to_landmarks68(track.vertices[there])) / gaps
    picture_peak = picture / np.maximum(_neighbours(picture), 1)
    jump_peak = jump / np.maximum(_neighbours(jump), 0.005)
    by_picture = np.minimum(picture / CUT_CHANGE, picture_peak / CUT_PEAK)
    by_both = np.minimum.reduce(
        [picture / JUMP_CHANGE, picture_peak / JUMP_CHANGE_PEAK, jump_peak / JUMP_PEAK]
    )
    scores[there] = np.maximum(by_picture, by_both)
    return scores


def _jumps(landmarks: np.ndarray) -> np.ndarray:
    """(T,) how far the upper face has moved since the frame before, in face sizes."""
    place, size = landmarks[:, RIGID, :2].mean(1), np.ptp(landmarks[..., :2], axis=1).max(1)
    moved = np.linalg.norm(np.diff(place, axis=0), axis=1) / np.minimum(size[1:], size[:-1])
    return np.concatenate([[0.0], moved])


def _neighbours(values: np.ndarray, reach: int = 3) -> np.ndarray:
    """(T,) the largest value within `reach` frames, the frame's own left out."""
    padded = np.pad(values, reach)
    shifts = [k for k in range(2 * reach + 1) if k != reach]
    return np.max([padded[k : k + len(values)] for k in shifts], axis=0)


def lip_correlations(heard: np.ndarray, seen_gap: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """(31,) correlation of the lip opening that the voice tells of with the one that is seen, at lags of -15 to 15.

    heard, seen_gap: (T,) lip openings at 25 per second. A positive lag means that the voice is late.
    """
    n = min(len(heard), len(seen_gap))
    return np.array([_correlation(heard[:n], seen_gap[:n], seen[:n], lag) for lag in LAGS])


def _correlation(heard: np.ndarray, seen_gap: np.ndarray, seen: np.ndarray, lag: int) -> float:
    n = len(heard)
    there = np.flatnonzero(seen[max(-lag, 0) : n - max(lag, 0)]) + max(-lag, 0)
    if len(there) < 2:
        return 0.0
    x, y = heard[there + lag].astype(np.float64), seen_gap[there].astype(np.float64)
    x, y = x - x.mean(), y - y.mean()
    size = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / size) if size > 1e-9 else 0.0


def check_lips(
    voice: Voice | None,
    seen_gap: np.ndarray,
    seen: np.ndarray,
    heard: Callable[[Voice], np.ndarray] | None,
    gates: QualityGates,
) -> dict[str, float]:
    """Lag between voice and lips, measured where the clip is long enough. seen_gap: (T,). Raises ClosedGate.

    The lag is sure where it explains the lips well and no lag explains them much worse. Another text in the right
    place, as dubbing has, is not found.
    """
    if voice is None or heard is None or not gates.max_lip_lag_ms or seen.sum() < SYNC_FRAMES:
        return {}
    r = lip_correlations(heard(voice), seen_gap, seen)
    best, at_zero = int(r.argmax()), float(r[len(LAGS) // 2])
    lag_ms = LAGS[best] * 1000 / FPS
    sure = r[best] >= SYNC_R and r[best] - at_zero >= SYNC_MARGIN
    if sure and abs(lag_ms) > gates.max_lip_lag_ms:
        found = f"the voice is {abs(lag_ms):.0f} ms {'late' if lag_ms > 0 else 'early'}"
        evidence = f"correlation {r[best]:.2f} with the lips, {at_zero:.2f} as it is"
        raise ClosedGate("out_of_sync", f"{found} ({evidence}); {gates.max_lip_lag_ms:g} ms at most")
    return {"lip_lag_ms": lag_ms, "lip_r": float(r[best]), "lip_r_0": at_zero}
