"""Videos to train on: every frame a JPEG of its own in an MP4, so that any frame is read without the others.

Players, PyAV and OpenCV read such a file as they read any video. Same frames, same bytes: no time stamp and no
random number is written. `H264Writer` is the small alternative, without random access.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import cv2
import numpy as np
import simplejpeg
from av.container import OutputContainer

from util.errors import ShapeError, UserError
from util.files import atomic_path
from util.media import file_url
from util.types import FPS
from util.video_writer import check_written

JPEG_QUALITY = 92  # 40 to 44 dB on real clips, 0.9 below 95 for three quarters of the bytes
GOP = 5  # frames of H.264 from one key frame to the next: what a seek may have to decode
_SAMPLING = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
_NO_STAMPS = {"fflags": "+bitexact"}  # else the muxer's version is written
_BT601, _LIMITED, _BT709 = 6, 1, 1  # H.273


def encode_jpeg(frame: np.ndarray, quality: int = JPEG_QUALITY) -> bytes:
    """An RGB uint8 picture (H, W, 3) as JPEG with halved chroma (4:2:0)."""
    bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality, *_SAMPLING])[1].tobytes()


def decode_jpeg(data: bytes | np.ndarray, source: str) -> np.ndarray:
    """The RGB uint8 picture (H, W, 3) of JPEG bytes. Raises UserError, naming `source`, where they are damaged."""
    try:  # the same pixels as cv2.imdecode's in four fifths of the time
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        raise UserError(f"{source}: holds a damaged frame; delete the file and make it again") from None


def frame_bytes(path: str | Path) -> np.ndarray:
    """(T, 2) int64 offset and size in bytes of every frame of a video file, in the file's order."""
    with av.open(file_url(Path(path))) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    return np.array(packets, np.int64).reshape(-1, 2)


class _Mp4Writer:
    """A context manager: the file appears under its name only when the block ends well."""

    def __init__(self, path: str | Path, size: tuple[int, int], fps: int = FPS, flag: str = "--out") -> None:
        """size: (width, height), even numbers. flag: names the output folder in errors."""
        self.path, self.fps, self.n_frames = Path(path), fps, 0
        self._shape = (size[1], size[0], 3)
        self._file = self._writing(flag)

    def __enter__(self):
        return self._file.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._file.__exit__(kind, error, trace)

    @contextlib.contextmanager
    def _writing(self, flag: str) -> Iterator[_Mp4Writer]:
        with atomic_path(self.path, flag) as part:
            self._container = av.open(file_url(part), "w", format="mp4", options=_NO_STAMPS)
            try:
                self._open(self._container)
                yield self
                if not self.n_frames:
                    raise UserError(f"{self.path}: no frame was made, so there is no video to write")
                self._flush()
                self._container.close()
            except BaseException:
                with contextlib.suppress(OSError, ValueError):  # the first failure is the one to tell
                    self._container.close()
                raise
            check_written(part)

    def _check(self, frame: np.ndarray) -> None:
        if frame.shape != self._shape or frame.dtype != np.uint8:
            raise ShapeError(f"frame {self.n_frames}", f"{self._shape} uint8", frame.shape)


class JpegWriter(_Mp4Writer):
    """Writes RGB uint8 frames of one size as Motion JPEG in MP4, one after the other; constant memory.

    Raises UserError where the folder is full or may not be written to, or no frame came; ShapeError for a
    frame of another shape.
    """

    def __init__(
        self,
        path: str | Path,
        size: tuple[int, int],
        fps: int = FPS,
        quality: int = JPEG_QUALITY,
        flag: str = "--out",
    ) -> None:
        super().__init__(path, size, fps, flag)
        self._quality = quality

    def _open(self, container: OutputContainer) -> None:
        self._stream = container.add_stream("mjpeg", rate=self.fps)
        self._stream.height, self._stream.width = self._shape[:2]
        self._stream.pix_fmt = "yuvj420p"
        self._stream.time_base = Fraction(1, self.fps)

    def write(self, frame: np.ndarray) -> bytes:
        """Append a frame (H, W, 3); returns the JPEG that it became."""
        self._check(frame)
        data = encode_jpeg(frame, self._quality)
        packet = av.Packet(data)
        packet.stream, packet.time_base = self._stream, Fraction(1, self.fps)
        packet.pts = packet.dts = self.n_frames
        packet.duration, packet.is_keyframe = 1, True
        self._container.mux(packet)
        self.n_frames += 1
        return data

    def _flush(self) -> None:
        """Nothing is held back."""


class H264Writer(_Mp4Writer):
    """The same as H.264 (crf 16, a key frame every 5 frames): a fifth of the bytes, but frames hang together."""

    def _open(self, container: OutputContainer) -> None:
        if "libx264" not in av.codecs_available:
            raise UserError("--video h264: this PyAV has no H.264 encoder; choose --video jpeg")
        options = {"preset": "veryfast", "crf": "16", "threads": "1"}  # the same bytes on any machine
        self._stream = container.add_stream("libx264", rate=self.fps, options=options)
        self._stream.height, self._stream.width = self._shape[:2]
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.gop_size, context.max_b_frames = GOP, 0
        context.colorspace, context.color_range = _BT601, _LIMITED
        context.color_primaries, context.color_trc = _BT709, _BT709

    def write(self, frame: np.ndarray) -> None:
        """Append a frame (H, W, 3)."""
        self._check(frame)
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG")
        picture.pts, picture.time_base = self.n_frames, Fraction(1, self.fps)
        self._container.mux(self._stream.encode(picture))
        self.n_frames += 1

    def _flush(self) -> None:
        self._container.mux(self._stream.encode(None))
