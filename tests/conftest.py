"""Small real media, made on the fly with PyAV itself, so that reading is not tested with our own writer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

REPO = Path(__file__).resolve().parents[1]
PACK = REPO.parent / "shared" / "pack" / "data"
GOLDEN = REPO.parent / "shared" / "parity" / "rhm" / "vec_data_functions.npz"


@dataclass(frozen=True)
class ClipSpec:
    """What `write_clip` makes: grey frames, frame i of level 16 + 3 i, and a 440 Hz tone."""

    n_frames: int = 25
    width: int = 64
    height: int = 48
    rate: Fraction | int = 25
    codec: str = "libx264"
    pix_fmt: str = "yuv420p"
    sound_s: float = 0.0
    starts_ms: Sequence[int] | None = None  # of the frames, instead of an even rate
    rotation: int = 0
    options: tuple[tuple[str, str], ...] = ()


def level_of(frame: np.ndarray) -> int:
    """The number of the frame that `write_clip` drew in this grey."""
    return round((float(frame.mean()) - 16) / 3)


def write_clip(path: Path, spec: ClipSpec) -> Path:
    with av.open(str(path), "w", options=dict(spec.options)) as box:
        stream = box.add_stream(spec.codec, rate=Fraction(spec.rate))
        stream.width, stream.height, stream.pix_fmt = spec.width, spec.height, spec.pix_fmt
        base = Fraction(1, 1000) if spec.starts_ms else 1 / Fraction(spec.rate)
        stream.time_base = stream.codec_context.time_base = base
        if spec.rotation:
            stream.set_display_rotation(spec.rotation)
        sound = (
            box.add_stream("aac" if path.suffix != ".mpg" else "mp2", rate=48000) if spec.sound_s else None
        )
        for i in range(spec.n_frames):
            image = np.full((spec.height, spec.width, 3), 16 + 3 * i, np.uint8)
            image[: spec.height // 4, : spec.width // 4] = 255 if spec.rotation else 16 + 3 * i
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = spec.starts_ms[i] if spec.starts_ms else i, base
            box.mux(stream.encode(frame))
        box.mux(stream.encode(None))
        if sound is not None:
            box.mux(sound.encode(_sound_frame(tone(spec.sound_s, 48000), 48000)))
            box.mux(sound.encode(None))
    return path


def tone(seconds: float, rate: int, hz: float = 440.0) -> np.ndarray:
    """(N,) float32 sine of amplitude 0.5."""
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def _sound_frame(samples: np.ndarray, rate: int) -> av.AudioFrame:
    channels = np.atleast_2d(samples)
    layout = "mono" if len(channels) == 1 else "stereo"
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels), format="fltp", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    return frame


def write_sound(path: Path, samples: np.ndarray, rate: int, codec: str) -> Path:
    """samples: (N,) or (2, N) float32."""
    with av.open(str(path), "w") as box:
        stream = box.add_stream(codec, rate=rate, layout="mono" if samples.ndim == 1 else "stereo")
        box.mux(stream.encode(_sound_frame(samples, rate)))
        box.mux(stream.encode(None))
    return path


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """The pipeline sets torch's threads for the whole process; results equal to the bit need the number they had."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """media("a.mp4", n_frames=50, ...) is the path of such a clip, made once a session (fields: ClipSpec)."""
    folder, made = tmp_path_factory.mktemp("media"), {}

    def make(name: str, **fields: object) -> Path:
        spec = ClipSpec(**fields)
        if (name, spec) not in made:
            (folder / str(len(made))).mkdir()
            made[name, spec] = write_clip(folder / str(len(made)) / name, spec)
        return made[name, spec]

    return make


@pytest.fixture(scope="session")
def clip(media: Callable[..., Path]) -> Path:
    """One second of 25 grey frames with a tone."""
    return media("clip.mp4", sound_s=1.0)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one prepared clip of 128 pixels, clips/ann/a, with its index; not to be written to."""
    from prepared import prepare_portrait  # late: it needs the tracker

    root = tmp_path_factory.mktemp("prepared")
    prepare_portrait(root)
    return root / "out"


@pytest.fixture(scope="session")
def portrait() -> Path:
    """The embedded portrait: a face that looks at the camera."""
    return REPO / "demo" / "portrait.png"


@pytest.fixture(scope="session")
def pack() -> Path:
    """The data folder of the real mini pack; tests that need it are skipped where it is absent."""
    if not PACK.is_dir():
        pytest.skip(f"no pack of real clips at {PACK}")
    return PACK


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    """The data contract's golden vectors; tests that need them are skipped where they are absent."""
    if not GOLDEN.is_file():
        pytest.skip(f"golden vectors not found: {GOLDEN}")
    with np.load(GOLDEN) as vectors:
        return dict(vectors)
