"""Motion JPEG in MP4: same bytes each time, any frame by its byte range, readable by others, whole or not there."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from tests.faces import portrait
from util.errors import ShapeError, UserError
from util.jpeg_video import H264Writer, JpegWriter, decode_jpeg, encode_jpeg, frame_bytes
from util.video import probe, read_frames

N, SIZE = 12, 128


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """The embedded portrait, drifting."""
    small = cv2.resize(portrait(), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return [np.ascontiguousarray(np.roll(small, k, 1)) for k in range(N)]


def write(path: Path, frames: list[np.ndarray], writer: type = JpegWriter) -> Path:
    with writer(path, (SIZE, SIZE)) as video:
        for frame in frames:
            video.write(frame)
    return path


def near(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b).mean())


@pytest.mark.parametrize("writer", [JpegWriter, H264Writer])
def test_same_frames_same_bytes(tmp_path: Path, frames: list[np.ndarray], writer: type) -> None:
    first, again = (write(tmp_path / name, frames, writer).read_bytes() for name in ("a.mp4", "b.mp4"))
    assert first == again
    assert b"Lavf" not in first  # the muxer's version would change the bytes with the library
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert "creation_time" not in file.metadata
        assert "creation_time" not in file.streams.video[0].metadata


def test_any_frame_is_read_alone(tmp_path: Path, frames: list[np.ndarray]) -> None:
    path = write(tmp_path / "a.mp4", frames)
    ranges, data = frame_bytes(path), path.read_bytes()
    assert ranges.shape == (N, 2)
    assert ranges.dtype == np.int64
    for frame, (start, size) in zip(frames, ranges, strict=True):
        assert data[start : start + 2] == b"\xff\xd8"
        assert data[start + size - 2 : start + size] == b"\xff\xd9"
        assert data[start : start + size] == encode_jpeg(frame)
        assert near(decode_jpeg(data[start : start + size], "a"), frame) < 4


def test_others_read_it_as_a_video(tmp_path: Path, frames: list[np.ndarray]) -> None:
    """OpenCV's reader and ours: every frame, in order, at 25 per second, in the same colours."""
    path = write(tmp_path / "a.mp4", frames)
    reader = cv2.VideoCapture(str(path))
    assert reader.get(cv2.CAP_PROP_FPS) == 25
    assert reader.get(cv2.CAP_PROP_FRAME_COUNT) == N
    read = []
    while (got := reader.read())[0]:
        read.append(cv2.cvtColor(got[1], cv2.COLOR_BGR2RGB))
    ours = list(read_frames(path, "clip"))
    assert len(read) == len(ours) == N
    data, ranges = path.read_bytes(), frame_bytes(path)
    for k in range(N):
        alone = decode_jpeg(data[ranges[k, 0] : ranges[k].sum()], "a")
        assert near(read[k], alone) < 3
        assert near(ours[k], alone) < 3
        assert np.abs((read[k].astype(float) - alone).mean((0, 1))).max() < 1.5  # no shift of levels
    facts = probe(path, "clip")
    assert (facts.n_frames, facts.fps, facts.width, facts.has_audio) == (N, 25, SIZE, False)


def test_h264_is_the_same_picture(tmp_path: Path, frames: list[np.ndarray]) -> None:
    path = write(tmp_path / "a.mp4", frames, H264Writer)
    for frame, read in zip(frames, read_frames(path, "clip"), strict=True):
        assert near(frame, read) < 5
    with av.open(str(path)) as file:
        keys = [p.pts is not None and p.is_keyframe for p in file.demux(video=0) if p.size]
    assert [k for k, key in enumerate(keys) if key] == [0, 5, 10]


@pytest.mark.parametrize("writer", [JpegWriter, H264Writer])
def test_whole_or_not_there(tmp_path: Path, frames: list[np.ndarray], writer: type) -> None:
    path = tmp_path / "a.mp4"
    with pytest.raises(KeyError), writer(path, (SIZE, SIZE)) as video:
        raise KeyError(video.write(frames[0]))
    with pytest.raises(UserError, match=r"a\.mp4: no frame was made"), writer(path, (SIZE, SIZE)):
        pass
    with pytest.raises(ShapeError, match="frame 0"), writer(path, (SIZE, SIZE)) as video:
        video.write(frames[0][:32])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told(
    tmp_path: Path, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("util.jpeg_video.check_written", full)
    with pytest.raises(
        UserError, match="no space is left there; free some, or choose another folder with --out"
    ):
        write(tmp_path / "a.mp4", frames)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [b"", b"\xff\xd8nonsense"])
def test_damaged_jpeg_is_told(data: bytes) -> None:
    with pytest.raises(UserError, match=r"x\.mp4: holds a damaged frame"):
        decode_jpeg(data, "x.mp4")
