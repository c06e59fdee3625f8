"""Video out: H.264 and AAC in an MP4 that says of itself that it is synthetic; constant memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from PIL import Image, ImageDraw

from util.errors import ShapeError, UserError
from util.files import atomic_path
from util.media import file_url, mp4_boxes
from util.types import FPS, SAMPLE_RATE, Voice

SOFTWARE = "Tilt Your Head, an audio-driven talking-head system"
DISCLOSURE = "Synthetic video: the face was animated by software, this was not filmed."
_AUDIO_RATE = 48_000  # Hz: every player takes it, and AAC's block of 1024 samples is then less than a frame
_H264 = (("libx264", {"preset": "veryfast", "crf": "18"}), ("libopenh264", {"b": "4000000"}))
_BT601, _BT709, _LIMITED = 6, 1, 1  # H.273 numbers; a reader that ignores the tags takes BT.601 limited range
_XMP_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")  # XMP specification, part 3, 1.2.7.1
_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmp:CreatorTool="{software}">
<Iptc4xmpExt:DigitalSourceType>{source_type}</Iptc4xmpExt:DigitalSourceType>
</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>"""
# IPTC's word for a picture made of filmed and generated parts
_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"


class VideoWriter:
    """Writes frames and their voice to an MP4 file as they come: H.264 (yuv420p, crf 18), AAC, fast start.

    A context manager. The file appears under its name only when the block ends well; after a failure nothing
    is left. The voice is padded with silence or cut to the frames' length. Odd widths and heights grow by a
    repeated column or row, for H.264's 4:2:0 needs even ones. Title, comment and an XMP packet (IPTC digital
    source type) tell that the video is synthetic, and by what it was made.

    Raises UserError where the folder is full or may not be written to, or no frame came; ShapeError for a
    frame of another shape.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        fps: int = FPS,
        voice: Voice | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        """`metadata` adds or replaces mp4 tags: title, comment, description, artist, copyright, date."""
        self.path, self.width, self.height, self.fps, self.voice = Path(path), width, height, fps, voice
        self.n_frames = 0
        self.metadata = {
            "title": "Synthetic talking-head video",
            "comment": f"{DISCLOSURE} Made with {SOFTWARE}.",
            "description": DISCLOSURE,
            "artist": SOFTWARE,
            **(metadata or {}),
        }
        self._file = self._writing()

    def __enter__(self) -> VideoWriter:
        return self._file.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._file.__exit__(kind, error, trace)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[VideoWriter]:
        with atomic_path(self.path) as part:
            self._open(part)
            try:
                yield self
                self._finish()
            except BaseException:
                with contextlib.suppress(OSError, ValueError):  # the first failure is the one to tell
                    self._container.close()
                raise
            _append_xmp(part)
            check_written(part)

    def _open(self, part: Path) -> None:
        self._container = av.open(file_url(part), "w", format="mp4", options={"movflags": "+faststart"})
        self._container.metadata.update(self.metadata)
        name, options = _h264_encoder()
        stream = self._container.add_stream(name, rate=Fraction(self.fps), options=options)
        stream.width, stream.height = self.width + self.width % 2, self.height + self.height % 2
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.gop_size = 2 * self.fps  # a key frame every two seconds, for seeking
        context.colorspace, context.color_range = _BT601, _LIMITED
        context.color_primaries, context.color_trc = _BT709, _BT709
        self._video, self._audio = stream, None
        if self.voice is not None:
            self._audio = self._container.add_stream("aac", rate=_AUDIO_RATE, layout="mono")
            self._audio.bit_rate = 96_000

    def write(self, frame: np.ndarray) -> None:
        """Append an RGB uint8 frame (height, width, 3), and the voice that belongs to it."""
        if frame.shape != (self.height, self.width, 3) or frame.dtype != np.uint8:
            raise ShapeError(f"frame {self.n_frames}", f"({self.height}, {self.width}, 3) uint8", frame.shape)
        frame = np.pad(frame, ((0, self.height % 2), (0, self.width % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG")
        picture.pts, picture.time_base = self.n_frames, Fraction(1, self.fps)
        if self._audio is not None:
            self._write_voice()
        self._container.mux(self._video.encode(picture))
        self.n_frames += 1

    def _write_voice(self) -> None:
        """The samples under the frame that is being written; silence once the voice has ended."""
        start, stop = (k * SAMPLE_RATE // self.fps for k in (self.n_frames, self.n_frames + 1))
        samples = np.zeros((1, stop - start), np.float32)
        part = self.voice.samples[start:stop]
        samples[0, : len(part)] = part
        sound = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        sound.sample_rate, sound.pts, sound.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
        self._container.mux(self._audio.encode(sound))

    def _finish(self) -> None:
        if not self.n_frames:
            raise UserError(f"{self.path}: no frame was made, so there is no video to write")
        self._container.mux(self._video.encode(None))
        if self._audio is not None:
            self._container.mux(self._audio.encode(None))
        self._container.close()


def _h264_encoder() -> tuple[str, dict[str, str]]:
    for name, options in _H264:
        if name in av.codecs_available:
            return name, options
    raise UserError(
        "av: this PyAV has no H.264 encoder; run: pip install --only-binary :all: --force-reinstall av"
    )


def _append_xmp(part: Path) -> None:
    packet = _XMP.format(software=SOFTWARE, source_type=_SOURCE_TYPE).encode()
    with part.open("ab") as file:
        file.write((24 + len(packet)).to_bytes(4, "big") + b"uuid" + _XMP_UUID + packet)


def check_written(part: Path) -> None:
    """A disk that fills up during the last write can go unnoticed: then the file's boxes don't fit it."""
    boxes = mp4_boxes(part)
    if boxes[-1][2] != part.stat().st_size or not {"moov", "mdat"} <= {kind for kind, _, _ in boxes}:
        raise OSError(28, "No space left on device", str(part))


def write_contact_sheet(
    path: str | Path, frames: Sequence[np.ndarray], columns: int, labels: Sequence[str] | None = None
) -> None:
    """Frames side by side on white in a PNG, row by row, each at most 256 pixels high, with labels if given.

    frames: RGB uint8 (H, W, 3), all of one size. Raises UserError where the folder cannot be written to.
    """
    if not frames:
        raise UserError(f"{path}: no frame was made, so there is no contact sheet to write")
    height, width = frames[0].shape[:2]
    scale = min(1.0, 256 / height)
    tile_w, tile_h, gap = max(1, round(width * scale)), max(1, round(height * scale)), 4
    text_h = 14 if labels else 0
    rows = -(-len(frames) // columns)
    size = (columns * (tile_w + gap) + gap, rows * (tile_h + text_h + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    for i, frame in enumerate(frames):
        x, y = gap + i % columns * (tile_w + gap), gap + i // columns * (tile_h + text_h + gap)
        sheet.paste(Image.fromarray(frame).resize((tile_w, tile_h), Image.Resampling.LANCZOS), (x, y))
        if labels:
            ImageDraw.Draw(sheet).text((x + 2, y + tile_h), labels[i], fill="black")
    with atomic_path(path) as part:
        sheet.save(part, format="PNG")
