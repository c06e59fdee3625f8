"""Audio features: alignment with the video frames, blocks, and the voice's own level."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models import audio_features as audio
from util.types import FPS, SAMPLE_RATE

PER_FRAME = SAMPLE_RATE // FPS


def noise(seconds: float, seed: int = 0, level: float = 0.1) -> np.ndarray:
    n = int(seconds * SAMPLE_RATE)
    return (level * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


def test_mel_filters_have_unit_sum_and_rising_centres() -> None:
    filters = audio.mel_filters()
    assert filters.shape == (257, 64)
    torch.testing.assert_close(filters.sum(0), torch.ones(64))
    centres = (filters * torch.arange(257)[:, None]).sum(0)
    assert (centres.diff() > 0).all()


def test_mel_power_has_four_steps_per_frame() -> None:
    assert audio.mel_power(noise(1), 0, 25).shape == (100, 64)


@pytest.mark.parametrize("frame", [0, 7, 24])
def test_a_sound_in_the_middle_of_a_frame_is_seen_symmetrically_in_that_frame(frame: int) -> None:
    samples = np.zeros(SAMPLE_RATE, np.float32)
    middle = frame * PER_FRAME + PER_FRAME // 2
    samples[middle - 20 : middle + 20] = np.hanning(40)
    energy = audio.mel_power(samples, 0, 25).sum(1).reshape(25, 4)
    assert int(energy.sum(1).argmax()) == frame
    torch.testing.assert_close(energy[frame], energy[frame].flip(0), rtol=0.05, atol=1e-6)


def test_a_tone_rises_in_its_own_band() -> None:
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    low, high = (
        audio.mel_power(np.sin(2 * np.pi * f * time).astype(np.float32), 5, 1)[0] for f in (300, 3000)
    )
    assert low.argmax() < high.argmax()


def test_outside_of_the_voice_there_is_silence() -> None:
    power = audio.mel_power(noise(1), -10, 60)
    assert power.shape == (240, 64)
    assert float(power[:36].max()) == 0
    assert float(power[-96:].max()) == 0


def test_blocks_cover_every_frame_once() -> None:
    assert list(audio.frame_blocks(11, 4)) == [(0, 4), (4, 8), (8, 11)]
    assert list(audio.frame_blocks(0, 4)) == []


@pytest.mark.parametrize("block", [1, 7, 100])
def test_the_speech_level_does_not_depend_on_the_blocks(block: int) -> None:
    samples = noise(3) * np.repeat(np.random.default_rng(1).random(75), PER_FRAME).astype(np.float32)
    torch.testing.assert_close(
        audio.speech_level(samples, 75, block), audio.speech_level(samples, 75), rtol=1e-5, atol=1e-4
    )


def test_loudness_and_microphone_do_not_matter() -> None:
    samples = noise(2) * np.repeat(np.random.default_rng(1).uniform(0.2, 1, 50), PER_FRAME).astype(np.float32)

    def features(x: np.ndarray) -> torch.Tensor:
        return audio.normalise(audio.mel_power(x, 0, 50), audio.speech_level(x, 50))

    torch.testing.assert_close(features(samples), features(samples * 0.1), atol=0.06, rtol=0)


def test_speech_level_leaves_pauses_out() -> None:
    samples = noise(2)
    paused = samples.copy()
    paused[SAMPLE_RATE:] *= 1e-3
    difference = audio.speech_level(paused, 50) - audio.speech_level(samples, 50)
    assert float(difference.abs().max()) < 0.5


@pytest.mark.parametrize("samples", [np.zeros(SAMPLE_RATE, np.float32), noise(1, level=1e-4)])
def test_digital_silence_and_a_quiet_room_stay_far_below_speech(samples: np.ndarray) -> None:
    features = audio.normalise(audio.mel_power(samples, 0, 25), audio.speech_level(samples, 25))
    assert float(features.median()) < -2


def test_features_are_bounded() -> None:
    features = audio.normalise(audio.mel_power(noise(1), -5, 35), audio.speech_level(noise(1), 25))
    low, high = audio.FEATURE_RANGE
    assert float(features.min()) == low
    assert float(features.max()) <= high
    assert torch.isfinite(features).all()
