"""Opening audio and video files with PyAV, with one-line errors; what `util.video` and `util.audio` share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
from av.container import InputContainer
from av.frame import Frame
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from util.errors import UserError
from util.files import check_file

NEEDED = {
    "video": "a video file (mp4, mov, mkv, webm, avi, mpg)",
    "audio": "a sound file (wav, mp3, m4a, flac, ogg) or a video with sound",
}
# A playlist or a script can name other files and hosts: nothing but the file itself is opened.
_OPEN_OPTIONS = {"protocol_whitelist": "file"}
_MP4_BOXES = set(b"ftyp moov mdat moof free skip wide uuid udta sidx styp mfra".split())


def file_url(path: Path) -> str:
    """A name that FFmpeg takes as a file whatever characters are in it (`a:b.mp4` is no protocol)."""
    return f"file:{path.absolute()}"


def mp4_boxes(path: Path) -> list[tuple[str, int, int]]:
    """Top-level boxes of an mp4 or mov file: (type, first byte, byte after the last); else an empty list.

    The end of a box may lie behind the end of a file that was cut off.
    """
    boxes, position, size_of_file = [], 0, path.stat().st_size
    with path.open("rb") as file:
        while position + 8 <= size_of_file:
            file.seek(position)
            head = file.read(16)
            size, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if size == 1:
                size = int.from_bytes(head[8:16], "big")
            elif size == 0:
                size = size_of_file - position
            if kind not in _MP4_BOXES or size < 8:
                break
            boxes.append((kind.decode(), position, position + size))
            position += size
    return boxes


def _check_whole(path: Path, source: str) -> None:
    """Refuse an mp4 or mov file that was cut off: its index is missing, or tells of data that isn't there."""
    boxes, size = mp4_boxes(path), path.stat().st_size
    if not boxes or boxes[-1][2] < size:  # another format, or a box that isn't known here
        return
    if boxes[-1][2] > size:
        raise UserError(
            f"{source}: is cut off ({size} bytes, at least {boxes[-1][2]} expected); copy it again"
        )
    if "moov" not in [kind for kind, _, _ in boxes]:
        raise UserError(f"{source}: is cut off (its index, moov, is missing); copy it again")


def open_media(path: str | Path, flag: str, kind: str) -> InputContainer:
    """Open a file and make sure that it has a stream of `kind`, "video" or "audio".

    Raises UserError, in one line with the flag's name, where it is missing, empty, cut off, no media file,
    or without such a stream.
    """
    needed = NEEDED[kind]
    path = check_file(path, flag, needed)
    source = f"{flag} {path}"
    _check_whole(path, source)
    try:
        container = av.open(file_url(path), options=_OPEN_OPTIONS, metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{source}: cannot be read as {kind} ({reason}); {needed} is needed") from None
    stream = video_stream(container) if kind == "video" else next(iter(container.streams.audio), None)
    if stream is None:
        found = (
            ", ".join(sorted({s.type for s in container.streams} - {kind})) or "nothing that is known here"
        )
        container.close()
        raise UserError(f"{source}: has no {kind} (found: {found}); {needed} is needed")
    if stream.codec_context is None:
        container.close()
        raise UserError(f"{source}: its {kind} codec is not known here; convert it to H.264 with AAC first")
    return container


def video_stream(container: InputContainer) -> VideoStream | None:
    """The first video stream that is no cover picture of a sound file; None if there is none."""
    covers = Disposition.attached_pic
    return next((s for s in container.streams.video if not s.disposition & covers), None)


def start_time(container: InputContainer) -> float:
    """Time stamp in seconds at which sound and picture of a file begin together."""
    return (container.start_time or 0) / av.time_base


def decoded_packets(container: InputContainer, stream: Stream) -> Iterator[list[Frame] | None]:
    """The frames of one packet of a stream after the other; None for a damaged one, which is passed over."""
    packets = container.demux(stream)
    while True:
        try:
            frames = next(packets).decode()
        except StopIteration:
            return
        except (
            av.error.FFmpegError,
            IndexError,
        ):  # IndexError: the damage looks like another stream's beginning
            frames = None
        yield frames
