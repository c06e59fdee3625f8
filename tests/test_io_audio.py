"""Reading voices of any kind, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import wave

import numpy as np
import pytest
from conftest import REPO, tone, write_sound

from util.audio import read_voice, write_wav
from util.errors import UserError
from util.types import Voice


def pitch(samples):
    """Strongest frequency in Hz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return spectrum.argmax() * 16000 / len(samples)


@pytest.mark.parametrize(
    ("name", "rate", "codec", "stereo"),
    [
        ("telephone.wav", 8000, "pcm_s16le", False),
        ("cd.wav", 44100, "pcm_s16le", True),
        ("studio.wav", 48000, "pcm_s24le", True),
        ("float.wav", 22050, "pcm_f32le", False),
        ("bytes.wav", 11025, "pcm_u8", False),
        ("law.wav", 8000, "pcm_mulaw", False),
        ("a.mp3", 44100, "libmp3lame", True),
        ("a.m4a", 44100, "aac", True),
        ("a.flac", 96000, "flac", True),
        ("a.ogg", 48000, "libopus", False),
        ("it's ü 100%d.flac", 32000, "flac", True),
    ],
)
def test_any_rate_and_format_becomes_16_khz_mono(tmp_path, name, rate, codec, stereo):
    samples = tone(1.0, rate)
    path = write_sound(tmp_path / name, np.stack([samples, samples]) if stereo else samples, rate, codec)
    voice = read_voice(path, "--audio_path").samples
    assert voice.dtype == np.float32
    assert voice.ndim == 1
    assert len(voice) == pytest.approx(16000, abs=1700 if path.suffix in (".mp3", ".ogg") else 700)
    assert pitch(voice) == pytest.approx(440, abs=2)
    middle = voice[4000:12000]
    assert np.sqrt((middle**2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_the_same_rate_is_left_as_it_is(tmp_path):
    samples = (np.random.default_rng(0).uniform(-0.9, 0.9, 5000)).astype(np.float32)
    write_wav(tmp_path / "a.wav", Voice(samples))
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
    assert np.abs(read_voice(tmp_path / "a.wav", "--x").samples - samples).max() < 1 / 20000


@pytest.mark.parametrize(("hz", "kept"), [(1000, True), (6900, True), (8600, False), (12000, False)])
def test_resampling_keeps_speech_and_folds_nothing_over(tmp_path, hz, kept):
    path = write_sound(tmp_path / "a.wav", tone(0.5, 48000, hz), 48000, "pcm_f32le")
    level = np.sqrt((read_voice(path, "--x").samples[1000:-1000] ** 2).mean()) / (0.5 / np.sqrt(2))
    assert level == pytest.approx(1, abs=0.02) if kept else level < 1e-3


def test_resampling_keeps_time(tmp_path):
    clicks = np.zeros(44100, np.float32)
    clicks[[11025, 33075]] = 0.9
    path = write_sound(tmp_path / "a.wav", clicks, 44100, "pcm_f32le")
    voice = read_voice(path, "--x").samples
    assert abs(int(np.abs(voice[:8000]).argmax()) - 4000) <= 1
    assert abs(8000 + int(np.abs(voice[8000:]).argmax()) - 12000) <= 1


def test_stereo_is_averaged_and_loud_files_are_scaled_not_clipped(tmp_path):
    left, right = tone(0.5, 16000), np.zeros(8000, np.float32)
    half = read_voice(write_sound(tmp_path / "a.wav", np.stack([left, right]), 16000, "pcm_f32le"), "--x")
    assert half.samples.max() == pytest.approx(0.25, abs=0.01)
    loud = read_voice(write_sound(tmp_path / "b.wav", 6 * left, 16000, "pcm_f32le"), "--x")
    assert np.abs(loud.samples).max() == pytest.approx(1)
    assert np.allclose(loud.samples, 2 * left, atol=0.01)


def test_silence_is_a_voice(tmp_path):
    voice = read_voice(
        write_sound(tmp_path / "a.wav", np.zeros(16000, np.float32), 16000, "pcm_s16le"), "--x"
    )
    assert voice.n_frames == 25
    assert not voice.samples.any()


def test_the_sound_of_a_clip(clip):
    voice = read_voice(clip, "--tgt_video_path").samples
    assert len(voice) == pytest.approx(16000, abs=700)
    assert pitch(voice) == pytest.approx(440, abs=2)


def test_broken_samples_are_silenced_with_a_remark(tmp_path, capsys):
    samples = tone(0.5, 16000)
    samples[100:120] = np.nan
    samples[200] = np.inf
    path = write_sound(tmp_path / "a.wav", samples, 16000, "pcm_f32le")
    voice = read_voice(path, "--audio_path").samples
    assert np.isfinite(voice).all()
    assert np.allclose(voice[300:-300], samples[300:-300], atol=1e-3)
    assert (
        capsys.readouterr().err == f"note: --audio_path {path}: 21 broken samples (not finite) are silenced\n"
    )


def refusal(path):
    with pytest.raises(UserError) as caught:
        read_voice(path, "--audio_path")
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"--audio_path {path}: ")


def test_refused_in_one_line(tmp_path, media):
    write_sound(tmp_path / "short.wav", tone(0.039, 16000), 16000, "pcm_s16le")
    assert (
        refusal(tmp_path / "short.wav")
        == "the voice lasts 39 ms; at least 40 ms, one video frame, are needed"
    )
    write_sound(tmp_path / "nan.wav", np.full(9000, np.nan, np.float32), 16000, "pcm_f32le")
    assert refusal(tmp_path / "nan.wav").startswith("no usable sample of sound is in it")
    (tmp_path / "text.wav").write_text("this is no sound\n" * 40)
    assert refusal(tmp_path / "text.wav").startswith("cannot be read as audio (Invalid data found")
    (tmp_path / "empty.wav").touch()
    assert refusal(tmp_path / "empty.wav").startswith("the file is empty (0 bytes); a sound file (wav, mp3")
    assert refusal(tmp_path / "none.wav").startswith("no such file")
    assert refusal(tmp_path).startswith("is a folder")
    assert refusal(media("silent.mp4")).startswith("has no audio (found: video); a sound file (wav, mp3")
    whole = write_sound(tmp_path / "a.wav", tone(1, 16000), 16000, "pcm_s16le").read_bytes()
    (tmp_path / "head.wav").write_bytes(whole[:80])
    assert "the voice lasts 0 ms" in refusal(tmp_path / "head.wav")


_MEMORY = """
import resource, sys
from util.audio import read_voice
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
voice = read_voice(sys.argv[1], "--audio_path")
print(len(voice.samples), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_long_voice_needs_about_its_own_size(tmp_path):
    path = write_sound(tmp_path / "long.wav", tone(200, 44100), 44100, "pcm_s16le")
    ran = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(path)], cwd=REPO, capture_output=True, text=True, timeout=60
    )
    n_samples, kib = map(int, ran.stdout.split())
    assert n_samples == 200 * 16000
    assert kib < 1.3 * n_samples * 4 / 1024 + 6_000
