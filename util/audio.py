"""Voices in and out: whatever PyAV reads becomes 16 kHz mono, packet by packet."""

from __future__ import annotations

import contextlib
import wave
from array import array
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from util.errors import DamagedError, UserError, remark
from util.files import atomic_path
from util.media import decoded_packets, open_media, start_time
from util.types import FPS, SAMPLE_RATE, Voice

# Twice swresample's default length: flat to 7 kHz, and what would fold over is down by 40 dB at 8.2 kHz.
_RESAMPLING = "filter_size=64:cutoff=0.96:phase_shift=10:linear_interp=1"
_MAX_LEAD_S = 60.0  # sound that starts later than this after the picture: a fault of the file


def read_voice(path: str | Path, flag: str, max_damaged: int | None = None) -> Voice:
    """The sound of a wav, mp3, m4a, flac, ogg or video file as a 16 kHz mono voice in [-1, 1].

    Channels are averaged; peaks above 1 (float files, resampling) scale the voice down instead of being
    clipped. In a video, sound that starts after the picture is preceded by silence, so both keep in step.
    Broken samples (NaN, infinite) are silenced, with a remark. Memory: about the result's own size.

    Raises UserError, in one line with the flag's name, where the file is missing, empty, not sound, without
    a usable sample, or shorter than one video frame (40 ms). max_damaged: raises DamagedError where more parts
    than this are damaged; otherwise these are left out, with a remark.
    """
    source = f"{flag} {path}"
    samples = array("f")  # grows by a sixteenth at a time, so a long voice is never held twice
    try:
        with open_media(path, flag, "audio") as container:
            for chunk in _resampled(_mono(container, source, max_damaged)):
                samples.frombytes(chunk.tobytes())
    except (av.error.FFmpegError, MemoryError, ValueError) as error:  # a header that asks for the impossible
        raise UserError(f"{source}: the sound is damaged ({error}); copy it again") from None
    voice = np.frombuffer(samples, np.float32) if len(samples) else np.zeros(0, np.float32)
    if len(voice) < SAMPLE_RATE // FPS:
        raise UserError(
            f"{source}: the voice lasts {1000 * len(voice) / SAMPLE_RATE:.0f} ms; at least {1000 // FPS} ms, "
            "one video frame, are needed"
        )
    peak = max(float(voice.max()), -float(voice.min()))
    if peak > 1:
        voice /= peak
    return Voice(voice)


def _mono(
    container: av.container.InputContainer, source: str, max_damaged: int | None
) -> Iterator[tuple[np.ndarray, int]]:
    """Mono float32 pieces (N,) of the first sound stream at its own rate, with that rate in Hz."""
    stream = container.streams.audio[0]
    start, n_samples, n_broken, n_bad = start_time(container), 0, 0, 0
    to_float, setting = None, None
    for frames in decoded_packets(container, stream):
        if frames is None:
            n_bad += 1
            if max_damaged is not None and n_bad > max_damaged:
                raise DamagedError(f"{source}: more than {max_damaged} parts are damaged; copy it again")
            continue
        for frame in frames:
            if setting != (frame.format.name, frame.layout.name, frame.sample_rate):
                setting = (frame.format.name, frame.layout.name, frame.sample_rate)
                to_float = av.AudioResampler(format="fltp", layout=frame.layout)
            if not n_samples and container.streams.video and frame.pts is not None:
                lead = float(frame.pts * frame.time_base) - start
                if 0 < lead < _MAX_LEAD_S:
                    yield np.zeros(round(lead * frame.sample_rate), np.float32), frame.sample_rate
            for piece in to_float.resample(frame):
                mono = piece.to_ndarray().mean(0)
                good = np.isfinite(mono)
                n_samples, n_broken = n_samples + len(mono), n_broken + int((~good).sum())
                yield np.where(good, mono, np.float32(0)), frame.sample_rate
    if not n_samples or n_broken > n_samples // 2:
        raise UserError(
            f"{source}: no usable sample of sound is in it; an undamaged file is needed; copy it again"
        )
    if n_broken:
        remark(f"{source}: {n_broken} broken samples (not finite) are silenced")
    if n_bad:
        remark(f"{source}: {n_bad} damaged parts are left out")


class _To16k:
    """Streaming resampler of mono float32 from one rate to 16 kHz."""

    def __init__(self, rate: int) -> None:
        self.rate, self._n = rate, 0
        self._graph = av.filter.Graph()
        source = self._graph.add_abuffer(
            format="fltp", layout="mono", sample_rate=rate, time_base=Fraction(1, rate)
        )
        resample = self._graph.add("aresample", f"{SAMPLE_RATE}:{_RESAMPLING}")
        self._graph.link_nodes(source, resample, self._graph.add("abuffersink")).configure()

    def __call__(self, mono: np.ndarray | None) -> Iterator[np.ndarray]:
        """What is ready after another piece (N,); None drains the rest."""
        frame = None
        if mono is not None:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(mono[None]), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = self.rate, self._n, Fraction(1, self.rate)
            self._n += len(mono)
        self._graph.push(frame)
        with contextlib.suppress(BlockingIOError, EOFError):  # nothing more yet; nothing more ever
            while True:
                yield self._graph.pull().to_ndarray()[0]


def _resampled(pieces: Iterator[tuple[np.ndarray, int]]) -> Iterator[np.ndarray]:
    """Pieces (N,) at 16 kHz from pieces with their rates in Hz, which may change on the way."""
    to_16k = None
    for mono, rate in pieces:
        if to_16k is None or rate != to_16k.rate:
            if to_16k is not None:
                yield from to_16k(None)
            to_16k = _To16k(rate)
        yield from to_16k(mono)
    if to_16k is not None:
        yield from to_16k(None)


def write_wav(path: str | Path, voice: Voice, flag: str = "--results_dir") -> None:
    """Write a voice as a 16-bit wav file at 16 kHz. Raises UserError where the folder can't be written to."""
    pcm = np.round(np.clip(voice.samples, -1, 1) * 32767).astype("<i2")
    with atomic_path(path, flag) as part, wave.open(str(part), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(pcm.tobytes())
