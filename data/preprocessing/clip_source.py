"""The raw side of a clip: its frames, as often as they are asked for, and its voice.

Whatever is wrong with a file comes out as a closed gate, not as an error.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from data.contract import RawClip
from data.preprocessing.quality import SILENT_DB, ClosedGate, loudness_db, sound_share
from options.preprocess import QualityGates
from util.audio import read_voice
from util.errors import DamagedError, UserError
from util.image import is_image, read_image
from util.types import FPS, Voice
from util.video import probe, read_frames

MAX_HELD = (
    192 * 2**20
)  # bytes of frames kept for a second look; of larger clips they are decoded a second time
_FLAG = "clip"  # names the file in errors
_TROUBLE = (UserError, av.error.FFmpegError, OSError, ValueError, LookupError, ArithmeticError, MemoryError)


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Whatever a damaged or made-up file leads its reader to."""
    try:
        yield
    except _TROUBLE as error:
        raise ClosedGate("unreadable", str(error)) from None


class ClipSource:
    """The frames of a video file, or of a folder of numbered pictures, at 25 per second."""

    def __init__(self, path: Path, gates: QualityGates) -> None:
        """Raises ClosedGate where the file is no video, has too few frames or too low a rate."""
        self.path = path
        self._max_damaged = _max_damaged(gates)
        self._held: list[np.ndarray] | None = []
        self._pictures = _numbered_pictures(path) if path.is_dir() else None
        if self._pictures is not None:
            self.n_frames, self.fps = len(self._pictures), float(FPS)
        else:
            with _reading():
                facts = probe(path, _FLAG)
            self.n_frames, self.fps = facts.n_frames, facts.fps
        if self.fps < gates.min_fps:
            raise ClosedGate(
                "unreadable", f"{path.name}: {self.fps:.3g} frames per second; {gates.min_fps:g} are needed"
            )
        self.check_length(self.n_frames, gates)

    def check_length(self, n_frames: int, gates: QualityGates) -> None:
        """Raise ClosedGate where these are too few frames."""
        if n_frames < gates.min_frames:
            raise ClosedGate(
                "too_short", f"{self.path.name}: {n_frames} frames; {gates.min_frames} are needed"
            )

    def frames(self) -> Iterator[np.ndarray]:
        """RGB uint8 frames (H, W, 3), all of one size. Raises ClosedGate where the file is damaged."""
        if self._held:
            yield from self._held
            return
        kept, room = [], MAX_HELD
        with _reading():
            for frame in self._decoded():
                room -= frame.nbytes
                if room >= 0:
                    kept.append(frame)
                else:
                    kept.clear()
                yield frame
        self._held = kept if room >= 0 else None

    def _decoded(self) -> Iterator[np.ndarray]:
        if self._pictures is None:
            yield from read_frames(self.path, _FLAG, max_damaged=self._max_damaged)
            return
        shape = None
        for path in self._pictures:
            frame = read_image(path, _FLAG)
            shape = shape or frame.shape
            if frame.shape != shape:
                raise UserError(f"{path.name}: another size than the pictures before it; all must be alike")
            yield frame


def _max_damaged(gates: QualityGates) -> int | None:
    """How many damaged parts of a file are put up with; None: any number."""
    return None if gates.max_damaged < 0 else gates.max_damaged


def _numbered_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder by the last number in their names."""
    with _reading():
        files = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and is_image(p)]
    numbers = {p: re.findall(r"\d+", p.stem) for p in files}
    found = sorted((p for p in files if numbers[p]), key=lambda p: (int(numbers[p][-1]), p.name))
    if not found:
        raise ClosedGate("unreadable", f"{folder.name}: no numbered pictures are in this folder")
    return found


def read_sound(clip: RawClip, n_frames: int, gates: QualityGates) -> Voice | None:
    """The clip's voice, as it was recorded; None where there is none and none is asked for.

    Raises ClosedGate where there should be one.
    """
    path = clip.audio or clip.video
    try:
        if path.is_dir():
            raise UserError(f"{path.name}: pictures alone have no sound")
        voice = read_voice(path, _FLAG, _max_damaged(gates))
        if (level := loudness_db(voice)) < SILENT_DB:
            raise UserError(f"{path.name}: the sound is silent ({level:.0f} dB)")
    except _TROUBLE as error:
        if not gates.min_sound:
            return None
        reason = "unreadable" if isinstance(error, DamagedError) else "audio_missing"
        raise ClosedGate(reason, str(error)) from None
    share = sound_share(voice, n_frames)
    if share < gates.min_sound:
        raise ClosedGate(
            "audio_missing", f"{path.name}: sound for {share:.2f} of the clip; {gates.min_sound:g} is needed"
        )
    return voice


def source_name(clip: RawClip, root: Path) -> str:
    """Name of the raw video under --dataroot; its whole path where it isn't there."""
    path, root = Path(clip.video).absolute(), Path(root).absolute()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def source_bytes(clip: RawClip) -> int:
    """Size in bytes of the raw files of a clip; what isn't there counts nothing."""
    total = 0
    for path in filter(None, (clip.video, clip.audio)):
        with contextlib.suppress(OSError):
            files = sorted(path.iterdir()) if path.is_dir() else [path]
            total += sum(p.stat().st_size for p in files if p.is_file())
    return total
