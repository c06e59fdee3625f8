"""The made-up data sets of tests/raw_trees.py are what they claim to be: true codecs, a face that moves."""

from __future__ import annotations

import io
from pathlib import Path

import av
import pytest

from face.tracker import detect_face
from tests import raw_trees
from tests.layout_checks import touch
from util.video import read_frames

CODECS = {  # container, video, size, frames a second, sound, its rate and channels
    "GRID_VCD": ("mpeg", "mpeg1video", (360, 288), 25.0, "mp2", 44100, 2),
    "GRID_6000": ("mpeg", "mpeg1video", (720, 576), 25.0, "mp2", 44100, 2),
    "CREMA_FLV": ("flv", "flv", (480, 360), 29.97, "mp3float", 44100, 1),
    "VOX_MP4": ("mov", "h264", (224, 224), 25.0, None, 0, 0),
    "VOX_M4A": ("mov", None, (0, 0), 0.0, "aac", 16000, 1),
    "LRS_MP4": ("mov", "mpeg4", (224, 224), 25.0, "aac", 16000, 1),
}


@pytest.mark.parametrize("name", CODECS)
def test_made_up_files_have_the_true_codecs(name: str) -> None:
    container, video, size, fps, audio, rate, channels = CODECS[name]
    with av.open(io.BytesIO(raw_trees.media_bytes(getattr(raw_trees, name), seconds=1.0))) as box:
        assert box.format.name.split(",")[0] == container
        assert [s.codec_context.name for s in box.streams.video] == [video] * (video is not None)
        assert [s.codec_context.name for s in box.streams.audio] == [audio] * (audio is not None)
        for stream in box.streams.video:
            assert (stream.width, stream.height) == size
            assert float(stream.average_rate) == pytest.approx(fps, abs=0.01)
        for stream in box.streams.audio:
            assert (stream.rate, stream.channels) == (rate, channels)
        assert box.duration / 1e6 == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("name", ["GRID_VCD", "CREMA_FLV", "VOX_MP4", "LRS_MP4"])
def test_made_up_clips_show_a_face_that_moves(name: str, tmp_path: Path) -> None:
    path = touch(tmp_path / "clip", raw_trees.media_bytes(getattr(raw_trees, name)))
    frames = list(read_frames(path, "clip"))
    a, b = (detect_face(frames[k], "clip").vertices[:, :2] for k in (0, 12))
    assert len(frames) in (25, 26)
    assert abs(a - b).mean() > 2
