"""Single frames of a prepared clip's videos, without decoding what comes before them.

Motion JPEG is read by byte ranges. H.264 with key frames close together is decoded from the key frame before; where
they are far apart (the public code's files have x264's 250), a Motion-JPEG copy is made once and used from then on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Protocol

import av
import numpy as np
from av.container import InputContainer
from safetensors.numpy import save_file

from data.array_files import TensorFile
from data.byte_range import ByteRange
from util.errors import UserError
from util.files import atomic_path
from util.jpeg_video import JpegWriter, decode_jpeg
from util.media import video_stream

MAX_GOP = 8  # frames that may have to be decoded for one
COPY_FLAG = "--cache_dir"


class Frames(Protocol):
    """The frames of a video, counted from 0 in the order in which they are shown."""

    def __len__(self) -> int: ...

    def __call__(self, frames: Sequence[int]) -> list[np.ndarray]:
        """(H, W, 3) uint8 RGB each, in the order asked for. Raises UserError for one that cannot be read."""


class JpegFrames:
    """Frames that are JPEGs of their own at known places."""

    def __init__(self, file: ByteRange, spans: np.ndarray) -> None:
        """spans: (T, 2) int64 offset and size of each frame, bytes from the start of `file`."""
        self.file, self.spans = file, spans

    def __len__(self) -> int:
        return len(self.spans)

    def __call__(self, frames: Sequence[int]) -> list[np.ndarray]:
        parts = self.file.read_parts(self.spans[list(frames)].tolist())
        return [decode_jpeg(part, str(self.file)) for part in parts]


class SeekFrames:
    """Frames that are decoded from the key frame before them."""

    def __init__(self, file: ByteRange, stamps: np.ndarray, keys: np.ndarray) -> None:
        """stamps: (T,) time stamps, ascending. keys: (T,) time stamp of the key frame that each hangs on."""
        self.file, self._stamps, self._keys = file, stamps, keys

    def __len__(self) -> int:
        return len(self._stamps)

    def __call__(self, frames: Sequence[int]) -> list[np.ndarray]:
        made: dict[int, np.ndarray] = {}
        with _opened(self.file) as container:
            for key, group in groupby(sorted(set(frames)), lambda k: int(self._keys[k])):
                wanted = {int(self._stamps[k]): k for k in group}
                found = _decoded(container, key, wanted)
                if len(found) < len(wanted):  # some files' index sends a seek too far
                    found = _decoded(container, int(self._stamps[0]), wanted)
                if len(found) < len(wanted):
                    raise UserError(f"{self.file}: a frame cannot be decoded; prepare the clip again")
                made |= found
        return [made[k] for k in frames]


def open_frames(file: ByteRange, cache: Path | None = None) -> Frames:
    """The frames of a contract video that no track tells about.

    cache: folder for copies of videos whose key frames are far apart; None: they are decoded from there each time.
    Raises UserError where it is no video that can be read, or the folder cannot be written to.
    """
    if cache and (copy := _copy_of(file, cache)):
        return copy
    with _opened(file) as container:
        stream = video_stream(container)
        if stream.codec_context.name == "mjpeg":
            spans = [(e.pos, e.size) for e in stream.index_entries]
            return JpegFrames(file, np.array(spans, np.int64).reshape(-1, 2))
        packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.size and p.pts is not None]
    if not any(is_key for _, is_key in packets):
        raise UserError(f"{file}: has no frame that a decoder could begin with; prepare the clip again")
    packets.sort()
    stamps = np.array([pts for pts, _ in packets])
    keys = np.array([pts for pts, is_key in packets if is_key])
    place = np.searchsorted(keys, stamps, "right") - 1
    longest = int(np.bincount(place[place >= 0]).max())
    if cache and longest > MAX_GOP:
        return _make_copy(file, cache)
    return SeekFrames(file, stamps, keys[np.maximum(place, 0)])


@contextmanager
def _opened(file: ByteRange) -> Iterator[InputContainer]:
    with file.open() as raw:
        try:
            # The format is fixed, so that a made-up file can't call for readers that open other files.
            with av.open(
                raw, format="mov", options={"enable_drefs": "0"}, metadata_errors="replace"
            ) as container:
                stream = video_stream(container)
                if stream is None or stream.codec_context is None:
                    raise UserError(f"{file}: has no video that can be decoded; prepare the clip again")
                yield container
        except (av.error.FFmpegError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(f"{file}: cannot be read as video ({why}); prepare the clip again") from None


def _decoded(container: InputContainer, start: int, wanted: dict[int, int]) -> dict[int, np.ndarray]:
    """The frames with the time stamps `wanted`, by number, decoded from the key frame at `start` on."""
    stream, made = video_stream(container), {}
    container.seek(start, stream=stream, backward=True)
    for frame in container.decode(stream):
        if frame.pts in wanted:
            made[wanted[frame.pts]] = frame.to_ndarray(format="rgb24")
        if len(made) == len(wanted) or (frame.pts is not None and frame.pts > max(wanted)):
            break
    return made


def _copy_path(file: ByteRange, cache: Path) -> Path:
    try:
        changed = file.path.stat().st_mtime_ns
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); prepare the clip again") from None
    name = f"{file.path.resolve()}|{file.offset}|{file.size}|{changed}"
    digest = hashlib.sha256(name.encode()).hexdigest()[:32]
    return cache / digest[:2] / f"{digest}.mp4"


def _copy_of(file: ByteRange, cache: Path) -> JpegFrames | None:
    path = _copy_path(file, cache)
    if not path.with_suffix(".safetensors").is_file():
        return None
    places = TensorFile(ByteRange.whole(path.with_suffix(".safetensors")))
    return JpegFrames(ByteRange.whole(path), places.tensor("frames", (2,)))


def _make_copy(file: ByteRange, cache: Path) -> JpegFrames:
    """Decode the whole video, once, into a Motion-JPEG copy; the file that tells of its frames comes last."""
    path = _copy_path(file, cache)
    with _opened(file) as container:
        stream = video_stream(container)
        with JpegWriter(path, (stream.width, stream.height), flag=COPY_FLAG) as copy:
            for frame in container.decode(stream):
                copy.write(frame.to_ndarray(format="rgb24", width=stream.width, height=stream.height))
    whole = ByteRange.whole(path)
    made = open_frames(whole)
    with atomic_path(path.with_suffix(".safetensors"), COPY_FLAG) as part:
        save_file({"frames": made.spans}, part)
    return made
