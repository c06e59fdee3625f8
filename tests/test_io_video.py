"""Reading clips: rates, time stamps, rotation, odd sizes, and what is refused."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from conftest import level_of, tone, write_sound

from util.audio import read_voice
from util.errors import UserError
from util.video import probe, read_frames

NTSC = Fraction(30000, 1001)


def levels(path, fps=25):
    return [level_of(f) for f in read_frames(path, "--tgt_video_path", fps)]


def test_a_25_fps_clip_comes_frame_by_frame(clip):
    facts = probe(clip, "--tgt_video_path")
    assert (facts.n_frames, facts.fps, facts.width, facts.height, facts.has_audio) == (25, 25, 64, 48, True)
    assert facts.duration == pytest.approx(1.0)
    frames = list(read_frames(clip, "--tgt_video_path"))
    assert frames[0].shape == (48, 64, 3)
    assert frames[0].dtype == np.uint8
    assert [level_of(f) for f in frames] == list(range(25))


@pytest.mark.parametrize(
    ("rate", "n_frames"), [(NTSC, 60), (24, 48), (50, 50), (Fraction(60000, 1001), 60), (12, 12), (15, 30)]
)
def test_other_rates_keep_in_step_with_the_sound(media, rate, n_frames):
    """The frame on show in the middle of each 40 ms; one that begins less than 2 ms before is not yet."""
    path = media("rate.mp4", n_frames=n_frames, rate=rate)
    shown = levels(path)
    assert len(shown) == round(float(n_frames / rate) * 25) == probe(path, "--x").n_frames
    ideal = (np.arange(len(shown)) + 0.5) / 25 * float(rate) - 0.5
    assert np.abs(shown - ideal).max() <= 0.51 + 0.002 * float(rate)


def test_reading_at_another_rate(clip):
    assert levels(clip, fps=5) == [2, 7, 12, 17, 22]


def test_variable_frame_rate_holds_each_frame_for_its_time(media):
    starts = (0, 40, 80, 400, 440, 480)  # the third frame stands for 0.32 s
    path = media("vfr.mp4", n_frames=6, starts_ms=starts)
    shown = levels(path)
    assert shown[:13] == [0, 1] + [2] * 8 + [3, 4, 5]
    assert set(shown[13:]) <= {5}  # as long as the file says that its last frame stands
    assert probe(path, "--x").n_frames == len(shown)


def test_jittered_time_stamps_lose_no_frame(media):
    jitter = np.random.default_rng(0).integers(-14, 15, 25)
    starts = tuple(int(40 * i + j) for i, j in enumerate(np.concatenate([[0], jitter[1:]])))
    assert levels(media("jitter.mkv", starts_ms=starts)) == list(range(25))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("odd.mkv", {"codec": "ffv1", "width": 63, "height": 47, "pix_fmt": "yuv444p"}),
        ("old.mpg", {"codec": "mpeg1video", "sound_s": 1.0}),
        ("full.mp4", {"pix_fmt": "yuvj420p"}),
        ("ten.mp4", {"pix_fmt": "yuv420p10le"}),
        ("a.avi", {"codec": "mpeg4"}),
        ("fragments.mp4", {"options": (("movflags", "frag_keyframe+empty_moov"),)}),
        ("it's 100%d ü:ber.mov", {}),
    ],
)
def test_sizes_codecs_containers_and_names(media, name, fields):
    path = media(name, **fields)
    assert np.abs(np.subtract(levels(path), range(25))).max() <= 1  # lossy: a grey may be off by one step
    facts = probe(path, "--x")
    assert facts.n_frames == 25
    assert (facts.width, facts.height) == (fields.get("width", 64), fields.get("height", 48))


def test_frames_without_time_stamps_follow_at_the_average_rate(media):
    assert levels(media("raw.h264")) == list(range(25))


@pytest.mark.parametrize(("degrees", "corner"), [(90, (-1, 0)), (-90, (0, -1)), (180, (-1, -1)), (0, (0, 0))])
def test_a_phone_clip_is_turned_upright(media, degrees, corner):
    """The white corner goes counterclockwise with the display matrix, as players show it."""
    path = media("phone.mp4", n_frames=3, rotation=degrees) if degrees else media("phone.mp4", rotation=360)
    frame = next(read_frames(path, "--x"))
    assert frame.shape == ((64, 48, 3) if degrees % 180 else (48, 64, 3))
    assert (probe(path, "--x").height, probe(path, "--x").width) == frame.shape[:2]
    assert frame[corner].mean() > 240
    others = {(0, 0), (0, -1), (-1, 0), (-1, -1)} - {corner}
    assert all(frame[c].mean() < 60 for c in others)


def test_sound_and_picture_begin_together(media):
    """A picture that starts 0.2 s after the sound: the first frame is held, the voice is whole."""
    path = media("late.mkv", starts_ms=tuple(200 + 40 * i for i in range(25)), sound_s=1.2)
    assert levels(path) == [0] * 5 + list(range(25))
    assert len(read_voice(path, "--x").samples) == pytest.approx(1.2 * 16000, abs=700)


def refusal(function, *args):
    with pytest.raises(UserError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("function", [probe, read_frames])
def test_refused_at_the_call_in_one_line(tmp_path, clip, function):
    whole = clip.read_bytes()
    cases = {
        "text.mp4": (b"this is no video\n" * 50, "cannot be read as video (Invalid data found"),
        "srt.mp4": (b"1\n00:00:01,000 --> 00:00:02,000\nHello\n", "has no video (found: subtitle)"),
        "list.mp4": (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n", ""),
        "empty.mp4": (b"", "the file is empty (0 bytes); a video file (mp4, mov"),
        "cut.mp4": (whole[: len(whole) // 2], "is cut off"),
        "no_moov.mp4": (whole[: whole.index(b"moov") - 4], "is cut off (its index, moov, is missing)"),
    }
    for name, (content, words) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert refusal(function, path, "--tgt_video_path").startswith(f"--tgt_video_path {path}: {words}")
    assert "is a folder" in refusal(function, tmp_path, "--x")
    assert "no such file" in refusal(function, tmp_path / "none.mp4", "--x")


def test_sound_files_are_no_video(tmp_path):
    path = write_sound(tmp_path / "a.wav", tone(0.2, 8000), 8000, "pcm_s16le")
    assert refusal(probe, path, "--x").startswith(f"--x {path}: has no video (found: audio); a video file")
    cover = tmp_path / "cover.mp3"
    write_sound(cover, tone(0.2, 44100), 44100, "libmp3lame")
    picture = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
    with av.open(str(cover)) as old, av.open(str(tmp_path / "with.mp3"), "w") as new:
        stream = new.add_stream("png", rate=1)
        stream.width = stream.height = 16
        stream.pix_fmt = "rgb24"
        sound = new.add_stream_from_template(old.streams.audio[0])
        for packet in old.demux(audio=0):
            if packet.size:
                packet.stream = sound
                new.mux(packet)
        new.mux(stream.encode(picture))
        new.mux(stream.encode(None))
    assert "has no video" in refusal(probe, tmp_path / "with.mp3", "--x")


@pytest.mark.parametrize("share", [0.35, 0.6])
@pytest.mark.parametrize(
    ("name", "options"), [("fast.mp4", (("movflags", "+faststart"),)), ("a.mp4", ()), ("a.mkv", ())]
)
def test_a_clip_that_was_cut_off_is_refused(media, tmp_path, name, options, share):
    whole = media(name, n_frames=75, options=options, sound_s=3.0).read_bytes()
    path = tmp_path / name
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "is cut off" in refusal(read_frames, path, "--tgt_video_path")
    assert refusal(probe, path, "--tgt_video_path").endswith("copy it again")


def test_a_damaged_middle_is_left_out_with_a_remark(media, tmp_path, capsys):
    data = bytearray(media("intra.mkv", n_frames=50, codec="mjpeg", pix_fmt="yuvj420p").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    path = tmp_path / "damaged.mkv"
    path.write_bytes(data)
    frames = list(read_frames(path, "--tgt_video_path"))
    assert len(frames) == 50  # the frame before is held
    remark = capsys.readouterr().err
    assert remark == f"note: --tgt_video_path {path}: 1 damaged parts are left out, 49 frames are used\n"


def test_a_clip_with_no_frame_that_decodes_is_refused(clip, tmp_path):
    data = bytearray(clip.read_bytes())
    with av.open(str(clip)) as box:
        for packet in box.demux(video=0):
            if packet.size:
                data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path = tmp_path / "zeros.mp4"
    path.write_bytes(data)
    assert "no frame can be decoded; an undamaged video is needed" in refusal(probe, path, "--x")


def test_real_clips_of_the_pack(pack):
    grid = sorted(pack.glob("raw_grid/*/*.mpg"))[0]
    facts = probe(grid, "--x")
    assert (facts.n_frames, facts.width, facts.height, facts.has_audio) == (75, 360, 288, True)
    assert sum(1 for _ in read_frames(grid, "--x")) == 75
    assert len(read_voice(grid, "--x").samples) / 16000 == pytest.approx(3.0, abs=0.04)
