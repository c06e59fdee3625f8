"""Writing videos: streams, lengths, tags, and nothing left after a failure."""

from __future__ import annotations

import subprocess
import sys

import av
import numpy as np
import pytest
from conftest import REPO, tone
from PIL import Image

from util.audio import read_voice
from util.errors import ShapeError, UserError
from util.media import mp4_boxes
from util.types import Voice
from util.video import VideoWriter, probe, read_frames, write_contact_sheet
from util.video_writer import SOFTWARE


def ramps(n_frames, height=48, width=64):
    y, x = np.mgrid[:height, :width]
    for i in range(n_frames):
        yield np.stack([x * 3, y * 4, (x + y + 2 * i) % 200], -1).astype(np.uint8)


def write(path, n_frames=25, voice=None, height=48, width=64, **options):
    with VideoWriter(path, width, height, voice=voice, **options) as video:
        for frame in ramps(n_frames, height, width):
            video.write(frame)
    return path


def streams(path):
    """Codec facts and seconds of each stream, decoded to the end."""
    with av.open(str(path)) as box:
        facts = {s.type: s.codec_context for s in box.streams}
        facts = {k: (c.name, c.pix_fmt if k == "video" else c.sample_rate) for k, c in facts.items()}
        told = {s.type: float(s.duration * s.time_base) for s in box.streams}
    seconds = {}
    for kind in facts:
        with av.open(str(path)) as box:
            frames = list(box.decode(**{kind: 0}))
        seconds[kind] = len(frames) / 25 if kind == "video" else sum(f.samples for f in frames) / 48000
    return facts, told, seconds


@pytest.mark.parametrize(("n_frames", "voice_s"), [(25, 1.0), (1, 0.04), (50, 0.7), (30, 9.0), (77, 3.09)])
def test_one_video_and_one_sound_stream_of_equal_length(tmp_path, n_frames, voice_s):
    path = write(tmp_path / "a.mp4", n_frames, Voice(tone(voice_s, 16000)))
    facts, told, seconds = streams(path)
    assert facts == {"video": ("h264", "yuv420p"), "audio": ("aac", 48000)}
    for lengths in (told, seconds):
        assert lengths["video"] == pytest.approx(n_frames / 25)
        assert lengths["audio"] == pytest.approx(n_frames / 25, abs=0.04)
    facts = probe(path, "--x")
    assert (facts.n_frames, facts.fps, facts.width, facts.height) == (n_frames, 25, 64, 48)


def test_sound_is_the_voice_in_its_place_then_silence(tmp_path):
    voice = np.zeros(16000, np.float32)
    voice[4000:12000] = tone(0.5, 16000, 700)
    back = read_voice(write(tmp_path / "a.mp4", 50, Voice(voice)), "--x").samples
    assert np.corrcoef(back[:16000], voice)[0, 1] > 0.995
    assert np.abs(back[17000:]).max() < 0.01


def test_pictures_and_colours_come_back(tmp_path):
    path = write(tmp_path / "a.mp4", 5)
    for written, read in zip(ramps(5), read_frames(path, "--x"), strict=True):
        error = read.astype(float) - written
        assert np.abs(error).mean() < 4
        assert np.abs(error.mean((0, 1))).max() < 3
    for colour in ((255, 0, 0), (0, 200, 0), (200, 150, 120), (255, 255, 255), (0, 0, 0)):
        with VideoWriter(tmp_path / "c.mp4", 32, 32) as video:
            video.write(np.full((32, 32, 3), colour, np.uint8))
        frame = next(read_frames(tmp_path / "c.mp4", "--x"))
        assert np.abs(frame[16, 16].astype(int) - colour).max() <= 3
        with av.open(str(tmp_path / "c.mp4")) as box:  # a reader that knows no tags sees the same
            naive = next(box.decode(video=0)).to_ndarray(format="rgb24")
        assert np.abs(naive[16, 16].astype(int) - colour).max() <= 3


def test_the_file_says_that_it_is_synthetic_and_by_what(tmp_path):
    path = write(tmp_path / "a.mp4", metadata={"title": "Grüße"})
    with av.open(str(path)) as box:
        tags = dict(box.metadata)
    assert tags["title"] == "Grüße"
    assert tags["comment"].startswith("Synthetic video: the face was animated by software")
    assert tags["comment"].endswith(f"Made with {SOFTWARE}.")
    assert tags["description"].startswith("Synthetic video")
    content = path.read_bytes()
    assert b"digitalsourcetype/compositeWithTrainedAlgorithmicMedia" in content
    assert f'xmp:CreatorTool="{SOFTWARE}"'.encode() in content


def test_the_index_stands_before_the_media(tmp_path):
    path = write(tmp_path / "a.mp4")
    boxes = mp4_boxes(path)
    kinds = [kind for kind, _, _ in boxes]
    assert kinds.index("moov") < kinds.index("mdat")
    assert kinds[-1] == "uuid"
    assert boxes[-1][2] == path.stat().st_size


def test_odd_sizes_grow_by_a_repeated_row_or_column(tmp_path):
    path = write(tmp_path / "a.mp4", 2, height=47, width=63)
    frame = next(read_frames(path, "--x"))
    assert frame.shape == (48, 64, 3)
    assert np.abs(frame[:47, :63].astype(float) - next(ramps(1, 47, 63))).mean() < 5
    assert np.abs(frame[47].astype(float) - frame[46]).mean() < 5


def test_no_voice_no_sound_stream(tmp_path):
    assert set(streams(write(tmp_path / "it's ü.mp4"))[0]) == {"video"}


@pytest.mark.parametrize("failure", [ValueError("bad"), KeyboardInterrupt()])
def test_nothing_is_left_after_a_failure(tmp_path, failure):
    def fail():
        with VideoWriter(tmp_path / "a.mp4", 64, 48, voice=Voice(tone(1, 16000))) as video:
            for frame in ramps(10):
                video.write(frame)
            raise failure

    with pytest.raises(type(failure)):
        fail()
    assert not list(tmp_path.iterdir())


def test_bad_frames_and_no_frames_are_refused(tmp_path):
    with pytest.raises(ShapeError, match=r"frame 1: shape \(48, 63, 3\), needed \(48, 64, 3\) uint8"):
        write_two(tmp_path / "a.mp4", np.zeros((48, 63, 3), np.uint8))
    with pytest.raises(ShapeError, match="uint8"):
        write_two(tmp_path / "a.mp4", np.zeros((48, 64, 3), np.float32))
    with pytest.raises(UserError, match=r"a\.mp4: no frame was made"):
        write(tmp_path / "a.mp4", 0)
    assert not list(tmp_path.iterdir())


def write_two(path, second):
    with VideoWriter(path, 64, 48) as video:
        video.write(np.zeros((48, 64, 3), np.uint8))
        video.write(second)


_LIMITED = """
import resource, signal, sys
import numpy as np
from util.errors import run_script
from util.video import VideoWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
def main():
    noise = np.random.default_rng(0)
    with VideoWriter(sys.argv[1], 128, 128) as video:
        for _ in range(60):
            video.write(noise.integers(0, 255, (128, 128, 3), np.uint8))
run_script(main)
"""


def test_a_folder_that_fills_up_is_told_in_one_line(tmp_path):
    ran = run_code(_LIMITED, tmp_path / "a.mp4")
    assert ran.returncode == 2
    assert ran.stderr == (
        f"error: {tmp_path}: no space is left there; free some, or choose another folder with --results_dir\n"
    )
    assert not list(tmp_path.iterdir())


def run_code(code, *args):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], cwd=REPO, capture_output=True, text=True, timeout=60
    )


_MEMORY = """
import resource, sys
import numpy as np
from util.types import Voice
from util.video import VideoWriter
n_frames = int(sys.argv[2])
frame = np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
with VideoWriter(sys.argv[1], 256, 256, voice=Voice(np.zeros(10**6, np.float32))) as video:
    for k in range(n_frames):
        video.write(np.full((256, 256, 3), k % 250, np.uint8))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_length(tmp_path):
    short, long = (int(run_code(_MEMORY, tmp_path / "a.mp4", n).stdout) for n in (150, 1500))
    assert long - short < 8_000  # KiB; 1,350 frames are 259,200 KiB


def test_contact_sheet(tmp_path):
    frames = [np.full((300, 200, 3), 40 * i, np.uint8) for i in range(5)]
    write_contact_sheet(tmp_path / "a.png", frames, 3, labels=list("abcde"))
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    tile_w, tile_h = round(200 * 256 / 300), 256
    assert sheet.shape == (2 * (tile_h + 14 + 4) + 4, 3 * (tile_w + 4) + 4, 3)
    assert sheet[20, 20, 0] == 0
    assert sheet[4 + tile_h + 18 + 20, 8 + tile_w + 20, 0] == 160
    assert sheet[-20, -20, 0] == 255
    with pytest.raises(UserError, match="no frame was made"):
        write_contact_sheet(tmp_path / "b.png", [], 3)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
