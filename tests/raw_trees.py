"""Made-up data sets in the true layouts and codecs of GRID, CREMA-D, VoxCeleb2 and LRS3.

Every clip shows the embedded portrait, moved about, and has the embedded voice where the data set has sound.
Each kind of file is encoded once and then copied, so that trees of a hundred clips cost next to nothing.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import cv2
import numpy as np

from tests.faces import REPO, portrait
from util.audio import read_voice
from util.types import SAMPLE_RATE

VOICE = REPO / "demo" / "voice.flac"
FACE_CENTRE, FACE_WIDTH = (225.0, 125.0), 90.0  # pixels of the embedded portrait
N_SEEDS = 3  # clips that differ; more of them are copies under other names
EMOTION_CODES = ("NEU", "HAP", "SAD", "ANG", "FEA", "DIS")
SENTENCE_CODES = ("IEO", "TIE", "IOM", "IWW", "TAI", "MTI", "IWL", "ITH", "DFA", "ITS", "TSI", "WSI")


@dataclass(frozen=True)
class Media:
    """Codecs of one kind of raw file; an empty codec means that there is no such stream."""

    box: str  # FFmpeg's name of the container
    video: str = ""
    width: int = 0
    height: int = 0
    fps: Fraction = Fraction(25)
    video_bit_rate: int = 1_000_000
    audio: str = ""
    audio_rate: int = 0
    channels: str = "mono"


GRID_VCD = Media("mpeg", "mpeg1video", 360, 288, audio="mp2", audio_rate=44100, channels="stereo")
GRID_6000 = Media("mpeg", "mpeg1video", 720, 576, Fraction(25), 6_000_000, "mp2", 44100, "stereo")
CREMA_FLV = Media("flv", "flv", 480, 360, Fraction(30000, 1001), audio="libmp3lame", audio_rate=44100)
VOX_MP4 = Media("mp4", "libx264", 224, 224)
VOX_M4A = Media("ipod", audio="aac", audio_rate=16000)
LRS_MP4 = Media("mp4", "mpeg4", 224, 224, audio="aac", audio_rate=16000)


def face_frames(width: int, height: int, n_frames: int, seed: int = 0) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8: the portrait's face, nodding and drifting; larger in square clips, which are crops."""
    picture, (x, y) = portrait(), FACE_CENTRE
    if seed % 2:
        picture, x = picture[:, ::-1], picture.shape[1] - 1 - x
    scale = height / (2 if width == height else 3) / FACE_WIDTH
    for k in range(n_frames):
        phase = 2 * np.pi * (k / 25 + seed / N_SEEDS)
        turn = cv2.getRotationMatrix2D((x, y), 6 * np.sin(phase), scale * (1 + 0.05 * np.cos(phase)))
        turn[:, 2] += width / 2 - x, height / 2 - y
        turn[:, 2] += height * 0.02 * np.array([np.sin(phase), np.cos(phase)])
        yield cv2.warpAffine(picture, turn, (width, height), borderMode=cv2.BORDER_REFLECT)


@cache
def _voice() -> np.ndarray:
    return read_voice(VOICE, "voice").samples


def voice(seconds: float, seed: int = 0, rate: int = SAMPLE_RATE) -> np.ndarray:
    """(N,) float32 in [-1, 1] at `rate` Hz out of the embedded voice, another part of it for each seed."""
    samples = np.roll(_voice(), -seed * SAMPLE_RATE)
    at = np.arange(round(seconds * rate)) * SAMPLE_RATE / rate
    return np.interp(at, np.arange(len(samples)), samples, period=len(samples)).astype(np.float32)


@cache
def media_bytes(media: Media, seconds: float = 1.0, seed: int = 0) -> bytes:
    """One file of the face and voice in these codecs."""
    file = io.BytesIO()
    with av.open(file, "w", format=media.box) as box:
        video = _add_video(box, media) if media.video else None
        audio = _add_audio(box, media) if media.audio else None
        packets = []
        if video is not None:
            pictures = face_frames(media.width, media.height, round(seconds * media.fps), seed)
            for k, image in enumerate(pictures):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = k, 1 / media.fps
                packets += video.encode(frame)
            packets += video.encode(None)
        if audio is not None:
            packets += [*audio.encode(_sound(seconds, seed, media)), *audio.encode(None)]
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            box.mux(packet)
    return file.getvalue()


def _add_video(box: av.container.OutputContainer, media: Media) -> av.VideoStream:
    stream = box.add_stream(media.video, rate=media.fps)
    stream.width, stream.height, stream.pix_fmt = media.width, media.height, "yuv420p"
    stream.bit_rate, stream.codec_context.thread_count = media.video_bit_rate, 1
    return stream


def _add_audio(box: av.container.OutputContainer, media: Media) -> av.AudioStream:
    return box.add_stream(media.audio, rate=media.audio_rate, layout=media.channels)


def _sound(seconds: float, seed: int, media: Media) -> av.AudioFrame:
    n_channels = 2 if media.channels == "stereo" else 1
    planes = np.ascontiguousarray(np.stack([voice(seconds, seed, media.audio_rate)] * n_channels))
    frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=media.channels)
    frame.sample_rate, frame.pts, frame.time_base = media.audio_rate, 0, Fraction(1, media.audio_rate)
    return frame


@cache
def wav_bytes(seconds: float = 1.0, seed: int = 0, rate: int = SAMPLE_RATE) -> bytes:
    """A mono 16-bit wav of the voice."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, rate, 0, "NONE", ""))
        out.writeframes((voice(seconds, seed, rate) * 32767).astype("<i2"))
    return file.getvalue()


@cache
def _jpegs(seconds: float, seed: int) -> list[bytes]:
    frames = face_frames(360, 288, round(seconds * 25), seed)
    return [cv2.imencode(".jpg", f[..., ::-1])[1].tobytes() for f in frames]


def _write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


_GRID_WORDS = (
    {"b": "bin", "l": "lay", "p": "place", "s": "set"},
    {"b": "blue", "g": "green", "r": "red", "w": "white"},
    {"a": "at", "b": "by", "i": "in", "w": "with"},
    {letter: letter for letter in "abcdefghijklmnopqrstuvxyz"},
    dict(zip("z123456789", "zero one two three four five six seven eight nine".split(), strict=True)),
    {"a": "again", "n": "now", "p": "please", "s": "soon"},
)


def grid_name(k: int) -> str:
    """The k-th sentence's name, such as bbaf2n: a letter for each of its six words."""
    return "".join(list(words)[(k + k // 4 * i) % len(words)] for i, words in enumerate(_GRID_WORDS))


def grid_text(name: str) -> str:
    """The words of a GRID sentence."""
    return " ".join(words[letter] for words, letter in zip(_GRID_WORDS, name, strict=True))


def grid_align(name: str, seconds: float = 1.0) -> str:
    """An align file: start, end and word, in 25,000ths of a second; silence at both ends, a pause within."""
    words = ["sil", *grid_text(name).split(), "sil"]
    words.insert(3, "sp")
    times = np.linspace(0, seconds * 25_000, len(words) + 1).astype(int)
    return "".join(f"{a} {b} {w}\n" for a, b, w in zip(times, times[1:], words, strict=False))


_GRID_VIDEO = {
    "flat": "{s}/{c}.mpg",
    "mpg_vcd": "{s}/video/mpg_vcd/{c}.mpg",
    "mpg_6000": "{s}/video/mpg_6000/{c}.mpg",
    "frames": "{s}/{c}",
    "frames_6000": "{s}/video/mpg_6000/{c}",
}
_GRID_ALIGN = {
    "speaker": "{s}/align/{c}.align",
    "top": "align/{s}/{c}.align",
    "beside": "{s}/{c}.align",
    "zenodo": "alignments/{s}/{c}.align",
}
_GRID_WAV = {"speaker": "{s}/audio/{c}.wav", "top": "audio/{s}/{c}.wav", "beside": "{s}/{c}.wav"}


def make_grid_tree(
    root: Path,
    n: int = 2,
    variant: str = "flat",  # flat, mpg_vcd, mpg_6000: files; frames, frames_6000: folders of pictures
    speakers: Sequence[str] = ("s1", "s3"),
    align: str = "speaker",  # speaker, top, beside, zenodo; empty: none
    wav: str = "",  # speaker, top, beside; empty: none
    seconds: float = 1.0,
) -> list[Path]:
    """n clips, dealt out to the speakers in turn. Returns the video files, or the folders of pictures."""
    made = []
    for k in range(n):
        name, seed = grid_name(k), k % N_SEEDS
        place = {"s": speakers[k % len(speakers)], "c": name}
        path = root / _GRID_VIDEO[variant].format(**place)
        if variant.startswith("frames"):
            pattern = "{}.jpg" if variant == "frames_6000" else "{:04}.jpg"
            for i, jpeg in enumerate(_jpegs(seconds, seed), 1):
                _write(path / pattern.format(i), jpeg)
        else:
            _write(path, media_bytes(GRID_6000 if variant == "mpg_6000" else GRID_VCD, seconds, seed))
        if align:
            _write(root / _GRID_ALIGN[align].format(**place), grid_align(name, seconds))
        if wav:
            _write(root / _GRID_WAV[wav].format(**place), wav_bytes(seconds, seed, 25_000))
        made.append(path)
    return made


def crema_name(k: int, actors: Sequence[int] = (1001, 1080)) -> str:
    """The k-th clip's name, such as 1001_IEO_NEU_XX; no name twice below 72 clips an actor."""
    take = k // len(actors)
    sentence, emotion = SENTENCE_CODES[take % 12], EMOTION_CODES[(take + take // 12) % 6]
    level = ("LO", "MD", "HI")[take // 12 % 3] if sentence == "IEO" and emotion != "NEU" else "XX"
    return f"{actors[k % len(actors)]}_{sentence}_{emotion}_{level}"


def make_crema_tree(
    root: Path,
    n: int = 2,
    actors: Sequence[int] = (1001, 1080),
    wav: bool = True,
    table: bool = True,
    seconds: float = 1.0,
) -> list[Path]:
    """n clips, dealt out to the actors in turn. Returns the video files."""
    made = []
    for k in range(n):
        name, seed = crema_name(k, actors), k % N_SEEDS
        made.append(_write(root / "VideoFlash" / f"{name}.flv", media_bytes(CREMA_FLV, seconds, seed)))
        if wav:
            _write(root / "AudioWAV" / f"{name}.wav", wav_bytes(seconds, seed))
    if table:
        head = '"ActorID","Age","Sex","Race","Ethnicity"\n'
        rows = [f'{a},{20 + a % 50},"{("Female", "Male")[a % 2]}","Asian","Not Hispanic"\n' for a in actors]
        _write(root / "VideoDemographics.csv", head + "".join(rows))
    return made


def make_vox_tree(
    root: Path,
    n: int = 2,
    parts: Sequence[str] = ("dev", "test"),  # an empty part: mp4 and aac lie in the root itself
    aac: bool = True,
    table: bool = True,
    seconds: float = 1.0,
) -> list[Path]:
    """n clips, dealt out to the parts in turn, four to a video. Returns the video files."""
    made, speakers = [], {}
    for k in range(n):
        part, seed = parts[k % len(parts)], k % N_SEEDS
        speaker, video = f"id{12 + k // 8 + 5000 * (part == 'test'):05}", f"-vid_{k // 4:03}"
        speakers[speaker] = part or "dev"
        place = f"{speaker}/{video}/{k + 1:05}"
        made.append(_write(root / part / "mp4" / f"{place}.mp4", media_bytes(VOX_MP4, seconds, seed)))
        if aac:
            _write(root / part / "aac" / f"{place}.m4a", media_bytes(VOX_M4A, seconds, seed))
    if table:
        rows = [f"{s} ,n{s[2:]} ,{'mf'[int(s[2:]) % 2]} ,{p} \n" for s, p in speakers.items()]
        _write(root / "vox2_meta.csv", "VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set \n" + "".join(rows))
    return made


def make_lrs_tree(
    root: Path,
    n: int = 3,
    parts: Sequence[str] = ("pretrain", "trainval", "test"),
    text: bool = True,
    seconds: float = 1.0,
) -> list[Path]:
    """n clips, dealt out to the parts in turn, each of them a talk of its own. Returns the video files."""
    made = []
    for k in range(n):
        part = parts[k % len(parts)]
        path = root / part / f"yT_{part}_{k // 6:03}" / f"{k + 1:05}.mp4"
        made.append(_write(path, media_bytes(LRS_MP4, seconds, k % N_SEEDS)))
        if text:
            words = "\n".join(f"{w} {i / 2} {i / 2 + 0.4} 9.1" for i, w in enumerate(("IT'S", "GOOD")))
            ref = "Ref:    0Fi83BHQsMA\n\nWORD START END ASDSCORE\n"
            _write(path.with_suffix(".txt"), f"Text:  IT'S GOOD\nConf:   5\n{ref}{words}\n")
    return made


def make_folder_tree(
    root: Path, n: int = 2, speakers: Sequence[str] = ("anna", "ben"), seconds: float = 1.0
) -> list[Path]:
    """n clips in a folder of each speaker's own. Returns the video files."""
    return [
        _write(
            root / speakers[k % len(speakers)] / f"take{k}.mp4", media_bytes(LRS_MP4, seconds, k % N_SEEDS)
        )
        for k in range(n)
    ]
