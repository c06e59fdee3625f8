"""The whole way: the demo script, run in this process on real media, refuses what it must and copes with the rest."""

from __future__ import annotations

import sys
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import test_demo_example
from face.tracker import detect_faces
from util.audio import read_voice
from util.errors import run_script
from util.types import FPS, SAMPLE_RATE, Voice
from util.video import VideoWriter, probe, read_frames

ROOT = Path(__file__).resolve().parent.parent
PORTRAIT = ROOT / "demo" / "portrait.png"
VOICE = ROOT / "demo" / "voice.flac"


class Demo:
    """Runs test_demo_example.py with flags; keeps what it printed."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._capsys, self._monkeypatch = folder, capsys, monkeypatch

    def __call__(self, **flags: object) -> tuple[int, Path, str]:
        """Exit status, path of the video, and what came on stderr."""
        flags = {"ref_video_path": PORTRAIT, "results_dir": self.folder, "gpu_ids": -1} | flags
        words = [
            w
            for k, v in flags.items()
            if v is not None
            for w in ([f"--{k}", str(v)] if v is not True else [f"--{k}"])
        ]
        self._monkeypatch.setattr(sys, "argv", ["test_demo_example.py", *words])
        status = 0
        try:
            run_script(test_demo_example.main)
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, Path(str(flags["results_dir"])) / "demo" / "test.mp4", self._capsys.readouterr().err


@pytest.fixture
def demo(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Demo:
    return Demo(tmp_path / "results", capsys, monkeypatch)


@pytest.fixture(scope="session")
def short_voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """0.8 s of the embedded voice as a 16-bit wav."""
    samples = read_voice(VOICE, "--audio_path").samples[8000:20800]
    return write_pcm(tmp_path_factory.mktemp("voice") / "voice.wav", samples, SAMPLE_RATE)


def write_pcm(path: Path, samples: np.ndarray, rate: int, channels: int = 1, width: int = 2) -> Path:
    scaled = (np.repeat(samples[:, None], channels, 1) * (2 ** (8 * width - 1) - 1)).astype("<i4")
    data = scaled.reshape(-1, 1).view(np.uint8)[:, :width].tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)
    return path


def write_clip(path: Path, n_frames: int = 20, voice: Path | None = None, fps: int = FPS) -> Path:
    """The portrait, sliding by a pixel a frame, as a clip."""
    portrait = np.array(Image.open(PORTRAIT).convert("RGB"))[:400, 40:440]
    sound = read_voice(voice, "--audio_path") if voice else None
    with VideoWriter(path, 320, 320, fps=fps, voice=sound) as video:
        for k in range(n_frames):
            video.write(np.ascontiguousarray(portrait[20:340, k : k + 320]))
    return path


def one_line(err: str, *parts: str) -> None:
    """The error is one line on stderr that holds all `parts`."""
    assert err.count("\n") == 1, err
    for part in parts:
        assert part in err, err


def nothing_left(folder: Path) -> None:
    assert not [p for p in folder.rglob("*") if p.is_file()]


def test_photo_and_voice_become_a_video(demo: Demo, short_voice: Path) -> None:
    status, path, err = demo(audio_path=short_voice)
    assert status == 0, err
    box = av.open(str(path))
    assert len(box.streams.video) == len(box.streams.audio) == 1
    video = box.streams.video[0]
    assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert (video.codec_context.width, video.codec_context.height, video.average_rate) == (256, 256, 25)
    assert "ynthetic" in str(box.metadata)
    frames = list(read_frames(path, "video"))
    assert len(frames) == 20
    assert abs(len(read_voice(path, "video").samples) / SAMPLE_RATE - len(frames) / FPS) <= 1 / FPS
    assert all(detect_faces(frames[k]) for k in (0, 10, 19))
    assert path.with_suffix(".png").is_file()
    assert (path.parent / "options.json").is_file()
    assert np.abs(frames[5].astype(int) - frames[12]).mean() > 0.3  # it moves


def test_same_seed_same_video_other_seed_other_video(demo: Demo, short_voice: Path) -> None:
    videos = []
    for seed in (3, 3, 4):
        _, path, _ = demo(audio_path=short_voice, seed=seed)
        videos.append(np.stack(list(read_frames(path, "video"))))
    assert (videos[0] == videos[1]).all()
    assert (videos[0] != videos[2]).any()


@pytest.mark.parametrize("motion", ["audio", "target", "still", "file"])
def test_head_motion(demo: Demo, short_voice: Path, tmp_path: Path, motion: str) -> None:
    flags: dict[str, object] = {"audio_path": short_voice, "head_motion": motion}
    if motion == "target":
        flags["tgt_video_path"] = write_clip(tmp_path / "clip.mp4")
    if motion == "file":
        flags["head_motion"] = tmp_path / "pose.csv"
        flags["head_motion"].write_text("frame,yaw,pitch,roll\n0,0,0,0\n19,15,0,0\n")
    status, path, err = demo(**flags)
    assert status == 0, err
    assert probe(path, "video").n_frames == 20


def test_clip_drives_photo_and_full_frame(demo: Demo, short_voice: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", voice=short_voice)
    status, path, err = demo(tgt_video_path=clip, full_frame=True)
    assert status == 0, err
    frames = list(read_frames(path, "video"))
    portrait = np.array(Image.open(PORTRAIT).convert("RGB"))
    assert frames[0].shape == portrait.shape
    corner = np.abs(frames[10][-60:, :60].astype(int) - portrait[-60:, :60])
    assert corner.mean() < 4  # outside the face nothing but compression changes


def test_several_references(demo: Demo, short_voice: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", voice=short_voice)
    status, _, err = demo(
        ref_video_path=clip, audio_path=short_voice, ref_img_id="0,5,10", n_shot=3, ref_ani_id=5
    )
    assert status == 0, err


def test_refuses_pictures(demo: Demo, short_voice: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = tmp_path / "noise.png"
    Image.fromarray(rng.integers(0, 255, (200, 200, 3), np.uint8)).save(noise)
    tiny = tmp_path / "tiny.png"
    Image.open(PORTRAIT).convert("RGB").crop((170, 60, 280, 200)).resize((16, 20)).save(tiny)
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    for path, part in ((noise, "no face"), (tiny, "face"), (text, "text.png")):
        status, _, err = demo(ref_video_path=path, audio_path=short_voice)
        assert status == 2
        one_line(err, "--ref_video_path", part)
    nothing_left(demo.folder)


@pytest.mark.parametrize("flag", ["audio_path", "ref_video_path", "tgt_video_path"])
def test_refuses_broken_files(demo: Demo, short_voice: Path, tmp_path: Path, flag: str) -> None:
    suffix = ".wav" if flag == "audio_path" else ".mp4"
    text, empty, cut = (tmp_path / (name + suffix) for name in ("text", "empty", "cut"))
    text.write_text("this is no clip\n" * 50)
    empty.write_bytes(b"")
    whole = short_voice if flag == "audio_path" else write_clip(tmp_path / "whole.mp4", voice=short_voice)
    cut.write_bytes(whole.read_bytes()[: 40 if flag == "audio_path" else 1500])
    for path in (text, empty, cut, tmp_path / "missing.mp4"):
        flags: dict[str, object] = {"audio_path": short_voice} if flag == "ref_video_path" else {}
        status, _, err = demo(**flags, **{flag: path})
        assert status == 2, path
        one_line(err, f"--{flag}", path.name)
    nothing_left(demo.folder)


def test_refuses_what_cannot_be_spoken(demo: Demo, tmp_path: Path) -> None:
    short = write_pcm(tmp_path / "short.wav", np.zeros(300, np.float32), SAMPLE_RATE)
    status, _, err = demo(audio_path=short)
    assert status == 2
    one_line(err, "--audio_path", "short.wav")
    mute = write_clip(tmp_path / "mute.mp4")
    status, _, err = demo(tgt_video_path=mute)
    assert status == 2
    one_line(err, "--tgt_video_path", "has no sound", "--audio_path")
    status, _, err = demo()
    assert status == 2
    one_line(err, "--audio_path", "not given")
    nothing_left(demo.folder)


def test_refuses_frames_that_are_not_there(demo: Demo, short_voice: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", voice=short_voice)
    status, _, err = demo(ref_video_path=clip, audio_path=short_voice, ref_img_id=900)
    assert status == 2
    one_line(err, "--ref_img_id 900", "20 frames", "choose 0 to 19")
    status, _, err = demo(ref_video_path=clip, audio_path=short_voice, ref_ani_id=21)
    assert status == 2
    one_line(err, "--ref_ani_id 21", "20 frames")
    nothing_left(demo.folder)


def test_refuses_results_that_cannot_be_written(demo: Demo, short_voice: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    for folder in (blocked, Path("/proc/results")):
        status, _, err = demo(audio_path=short_voice, results_dir=folder)
        assert status == 2
        one_line(err, "--results_dir", str(folder))
    assert blocked.read_text() == "in the way"


def test_full_disk_leaves_the_former_video(
    demo: Demo, short_voice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path, _ = demo(audio_path=short_voice)
    before = path.read_bytes()
    write, count = VideoWriter.write, iter(range(100))

    def full(self: VideoWriter, frame: np.ndarray) -> None:
        if next(count) == 7:
            raise OSError(28, "No space left on device")
        write(self, frame)

    monkeypatch.setattr(VideoWriter, "write", full)
    status, _, err = demo(audio_path=short_voice)
    assert status == 2
    assert "no space is left" in err.splitlines()[-1]
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*part*")) + list(path.parent.glob(".*"))


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ({"audiopath": "x"}, ["--audiopath", "--audio_path"]),
        ({"emotion": "hapy"}, ["--emotion", "happy"]),
        ({"emotion_intensity": 1.5}, ["--emotion_intensity", "1.5"]),
        ({"head_motion": "adio"}, ["--head_motion", "audio"]),
        ({"resolution": 100}, ["--resolution", "100"]),
        ({"seed": "x"}, ["--seed", "x"]),
    ],
)
def test_refuses_flags(demo: Demo, short_voice: Path, flags: dict[str, object], parts: list[str]) -> None:
    status, _, err = demo(audio_path=short_voice, **flags)
    assert status == 2
    one_line(err, *parts)


def test_two_faces_and_odd_names(demo: Demo, short_voice: Path, tmp_path: Path) -> None:
    face = Image.open(PORTRAIT).convert("RGB").crop((110, 0, 350, 260))
    both = Image.new("RGB", (640, 300), (90, 90, 90))
    both.paste(face, (20, 20))
    both.paste(face.resize((190, 206)), (420, 60))
    path = tmp_path / 'it\'s zwei Gesichter 二つ "x".png'
    both.save(path)
    voice = tmp_path / "Stimme ä 'é'.wav"
    voice.write_bytes(short_voice.read_bytes())
    status, _, err = demo(ref_video_path=path, audio_path=voice)
    assert status == 0, err
    assert "2 faces; the largest is taken" in err


def test_silence_keeps_the_lips_closed(demo: Demo, tmp_path: Path) -> None:
    silence = write_pcm(tmp_path / "silence.wav", np.zeros(SAMPLE_RATE, np.float32), SAMPLE_RATE)
    status, path, err = demo(audio_path=silence, head_motion="still", blink="off")
    assert status == 0, err
    gaps = [
        f.vertices[14, 1] - f.vertices[13, 1]
        for f in (detect_faces(x)[0] for x in read_frames(path, "video"))
    ]
    assert max(gaps) < 3  # pixels of 256


@pytest.mark.parametrize(("rate", "channels", "width"), [(8000, 1, 2), (44100, 2, 2), (48000, 1, 3)])
def test_voices_of_all_kinds(
    demo: Demo, short_voice: Path, tmp_path: Path, rate: int, channels: int, width: int
) -> None:
    samples = read_voice(short_voice, "").samples
    stretched = np.interp(np.arange(0, 0.8, 1 / rate), np.arange(len(samples)) / SAMPLE_RATE, samples)
    voice = write_pcm(tmp_path / "voice.wav", stretched, rate, channels, width)
    status, path, err = demo(audio_path=voice)
    assert status == 0, err
    assert probe(path, "video").n_frames == 20


def test_mp3_voice(demo: Demo, short_voice: Path, tmp_path: Path) -> None:
    voice = tmp_path / "voice.mp3"
    samples = read_voice(short_voice, "").samples
    with av.open(str(voice), "w") as box:
        stream = box.add_stream("mp3", rate=SAMPLE_RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        box.mux(stream.encode(frame))
        box.mux(stream.encode(None))
    status, path, err = demo(audio_path=voice)
    assert status == 0, err
    assert 19 <= probe(path, "video").n_frames <= 24


@pytest.mark.parametrize("kind", ["8k", "grey", "alpha", "16-bit", "exif"])
def test_photos_of_all_kinds(demo: Demo, short_voice: Path, tmp_path: Path, kind: str) -> None:
    face = Image.open(PORTRAIT).convert("RGB")
    path = tmp_path / "photo.png"
    if kind == "8k":
        path = tmp_path / "photo.jpg"
        face.resize((7680, 7680)).crop((0, 0, 7680, 4320)).save(path)
    elif kind == "grey":
        face.convert("L").save(path)
    elif kind == "alpha":
        face.putalpha(200)
        face.save(path)
    elif kind == "16-bit":
        Image.fromarray(np.array(face.convert("L")).astype(np.uint16) * 257).save(path)
    else:
        path = tmp_path / "photo.jpg"
        exif = Image.Exif()
        exif[0x0112] = 6  # shown turned right by 90 degrees
        face.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    status, out, err = demo(ref_video_path=path, audio_path=short_voice)
    assert status == 0, err
    frame = next(iter(read_frames(out, "video")))
    (seen, *_) = detect_faces(frame)
    assert seen.vertices[10, 1] < seen.vertices[152, 1] - 60  # upright: forehead above chin


def test_odd_frame_rates(demo: Demo, short_voice: Path, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    portrait = np.ascontiguousarray(np.array(Image.open(PORTRAIT).convert("RGB"))[20:340, 60:380])
    with av.open(str(clip), "w") as box:
        stream = box.add_stream("libx264", rate=30)
        stream.width = stream.height = 320
        stream.pix_fmt = "yuv420p"
        for pts in (0, 1, 3, 4, 8, 9, 12, 13, 17, 20, 23, 24):  # variable: some frames are longer
            frame = av.VideoFrame.from_ndarray(portrait, format="rgb24")
            frame.pts = pts
            box.mux(stream.encode(frame))
        box.mux(stream.encode(None))
    status, path, err = demo(tgt_video_path=clip, audio_path=short_voice)
    assert status == 0, err
    assert probe(path, "video").n_frames == 20


def test_voice_shapes_are_checked() -> None:
    assert Voice(np.zeros(641, np.float32)).n_frames == 2
