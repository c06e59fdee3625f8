"""Video in: the upright frames of any clip that PyAV reads, at 25 per second, in step with its sound.

Video out, from `util.video_writer`, has its door here too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer

from util.errors import DamagedError, UserError, remark
from util.media import decoded_packets, open_media, start_time, video_stream
from util.types import FPS
from util.video_writer import VideoWriter, write_contact_sheet

__all__ = ["VideoFacts", "VideoWriter", "probe", "read_frames", "write_contact_sheet"]

_TIE_S = 0.002  # a frame that starts this little before the middle of a slot is not on show yet
_MAX_GAP_S = 30.0  # a longer jump of the time stamps is a fault of the file, not a still picture
_CUT_SHARE = 0.9  # a file that ends before this share of the length in its header was cut off


@dataclass(frozen=True)
class VideoFacts:
    """What a clip holds. Width and height are those of the upright picture."""

    n_frames: int  # frames that `read_frames` gives at 25 per second; a damaged clip may give fewer
    fps: float  # the file's own average rate
    width: int  # pixels
    height: int
    has_audio: bool
    duration: float  # seconds


def probe(path: str | Path, flag: str) -> VideoFacts:
    """Size, length and rate of a clip, found by reading its packets and decoding its first frame.

    Raises UserError, in one line with the flag's name, where the file is missing, empty, cut off, no video,
    or has no frame that can be decoded.
    """
    source = f"{flag} {path}"
    with open_media(path, flag, "video") as container:
        times, end = _packet_times(container, source)
        fps = _Clock(container).rate
        has_audio = bool(container.streams.audio)
    with open_media(path, flag, "video") as container:
        image = _upright(next(_decoded(container, source))[1])
    height, width = image.shape[:2]
    n_frames = sum(1 for _ in _at_rate(((t, None) for t in times), end, FPS))
    return VideoFacts(n_frames, fps, width, height, has_audio, end)


def read_frames(
    path: str | Path, flag: str, fps: float = FPS, max_damaged: int | None = None
) -> Iterator[np.ndarray]:
    """The clip's frames as RGB uint8 (H, W, 3), upright, one after the other, resampled to `fps`.

    Frame k is the one on show at (k + 0.5) / fps seconds, so that 29.97 and variable frame rates keep in
    step with the sound. Damaged parts are left out, with a remark. Raises UserError as `probe` does, at the
    call and not at the first frame. max_damaged: raises DamagedError once more parts than this are damaged; the
    decoder is asked not to hide any.
    """
    source = f"{flag} {path}"
    with open_media(path, flag, "video") as container:
        times, end = _packet_times(container, source)
    if not times:
        raise UserError(f"{source}: holds no frame; a video of at least one frame is needed")
    container = open_media(path, flag, "video")
    return _frames(container, _decoded(container, source, max_damaged), end, fps)


def _frames(
    container: InputContainer, decoded: Iterator[tuple[float, av.VideoFrame]], end: float, fps: float
) -> Iterator[np.ndarray]:
    image, shown, size = None, None, None
    with container:
        for frame in _at_rate(decoded, end, fps):
            size = size or (frame.width, frame.height)
            image = _upright(frame, size) if frame is not shown else image.copy()
            shown = frame
            yield image


class _Clock:
    """Starts of frames in seconds from the file's start.

    A frame whose time stamp is missing, not after the one before, or far ahead follows at the average rate.
    """

    def __init__(self, container: InputContainer) -> None:
        stream = video_stream(container)
        self.rate = float(stream.average_rate or stream.guessed_rate or FPS)
        if not 1 / _MAX_GAP_S < self.rate < 1000:
            self.rate = float(FPS)
        self.period = 1 / self.rate
        self.now, self._start = -self.period, start_time(container)

    def step(self, stamp: int | None, unit: Fraction | None) -> float:
        """The start of the next frame, from its time stamp in `unit` seconds."""
        told = float("nan") if stamp is None else float(stamp * unit) - self._start
        self.now = told if self.now < told < self.now + _MAX_GAP_S else self.now + self.period
        return self.now


def _packet_times(container: InputContainer, source: str) -> tuple[list[float], float]:
    """Starts of the clip's frames, ascending, and the end of the last, in seconds from the file's start.

    Raises UserError where the file ends long before the length that its header tells.
    """
    clock, index, unit = _Clock(container), video_stream(container).index, None
    start, end_of_file = start_time(container), 0.0
    stamps, n_unknown = [], 0
    try:
        for packet in container.demux():
            if not packet.size or packet.is_discard:
                continue
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is not None:
                end_of_file = max(
                    end_of_file, float((stamp + (packet.duration or 0)) * packet.time_base) - start
                )
            if packet.stream_index == index and stamp is not None:
                stamps.append((stamp, packet.duration or 0))
                unit = packet.time_base
            elif packet.stream_index == index:
                n_unknown += 1
    except (av.error.FFmpegError, IndexError):  # IndexError: the damage looks like another stream's beginning
        pass  # what the damaged rest leaves is judged below
    length = (container.duration or 0) / av.time_base
    if end_of_file < _CUT_SHARE * length - 0.2:
        raise UserError(f"{source}: is cut off after {end_of_file:.1f} s of {length:.1f} s; copy it again")
    stamps.sort()
    times = [clock.step(stamp, unit) for stamp, _ in stamps]
    times += [clock.step(None, None) for _ in range(n_unknown)]
    last = float(stamps[-1][1] * unit) if stamps and not n_unknown else 0.0
    return times, clock.now + (last if 0 < last < _MAX_GAP_S else clock.period)


def _decoded(
    container: InputContainer, source: str, max_damaged: int | None = None
) -> Iterator[tuple[float, av.VideoFrame]]:
    """Frames with their start in seconds.

    Raises UserError where not one frame can be decoded; says so where some cannot.
    """
    stream, clock = video_stream(container), _Clock(container)
    stream.thread_type = "AUTO"
    if max_damaged is not None:
        stream.codec_context.options = {"err_detect": "explode"}
    n_good, n_bad = 0, 0
    for frames in decoded_packets(container, stream):
        if frames is None:
            n_bad += 1
            if max_damaged is not None and n_bad > max_damaged:
                raise DamagedError(f"{source}: more than {max_damaged} parts are damaged; copy it again")
            continue
        for frame in frames:
            n_good += 1
            yield clock.step(frame.pts, frame.time_base), frame
    if not n_good:
        raise UserError(f"{source}: no frame can be decoded; an undamaged video is needed; copy it again")
    if n_bad:
        remark(f"{source}: {n_bad} damaged parts are left out, {n_good} frames are used")


def _at_rate(frames: Iterator[tuple[float, object]], end: float, fps: float) -> Iterator[object]:
    """What is on show in the middle of each slot of 1 / fps seconds, from (start in seconds, frame) pairs."""
    slot, shown, empty = 0, None, True

    def middle() -> float:
        return (slot + 0.5) / fps - _TIE_S

    for start, frame in frames:
        while not empty and middle() < start:
            yield shown
            slot += 1
        shown, empty = frame, False
    while not empty and (middle() < end or slot == 0):
        yield shown
        slot += 1


def _upright(frame: av.VideoFrame, size: tuple[int, int] | None = None) -> np.ndarray:
    """RGB uint8 (H, W, 3) of a frame, turned as its metadata asks (phones film lying on their side).

    size: width and height of the clip's first frame, which a frame of another size is brought to.
    """
    unknown_hd = frame.colorspace == 2 and frame.height >= 720  # 2: not told; HD is BT.709 then, by custom
    width, height = size or (frame.width, frame.height)
    image = frame.to_ndarray(
        format="rgb24", width=width, height=height, src_colorspace="ITU709" if unknown_hd else None
    )
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90) % 4))
