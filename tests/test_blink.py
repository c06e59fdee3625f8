"""Blinks and gaze: human statistics, repeatable, of any length."""

from __future__ import annotations

import numpy as np
import pytest

from models.blink import blinks, gaze, phrase_ends
from util.types import FPS, SAMPLE_RATE, Voice

MINUTE = 60 * FPS


def events(closure: np.ndarray) -> list[tuple[int, int, int]]:
    """First frame, peak and last frame of every stretch in which the eyes are not wholly open."""
    shut = np.r_[False, closure.mean(1) > 0.02, False]
    edges = np.flatnonzero(np.diff(shut.astype(int)))
    return [(a, a + int(closure[a:b].mean(1).argmax()), b - 1) for a, b in edges.reshape(-1, 2)]


def tone(*stretches: tuple[float, float]) -> Voice:
    """A buzz (on, off seconds) after one another."""
    parts = []
    for on, off in stretches:
        t = np.arange(int(on * SAMPLE_RATE)) / SAMPLE_RATE
        parts += [0.3 * np.sign(np.sin(2 * np.pi * 120 * t)), np.zeros(int(off * SAMPLE_RATE))]
    return Voice(np.concatenate(parts).astype(np.float32))


def test_shape_range_and_repeatability():
    closure = blinks(MINUTE, 3)
    assert closure.shape == (MINUTE, 2)
    assert closure.dtype == np.float32
    assert closure.min() >= 0
    assert 0.9 < closure.max() <= 1
    assert np.array_equal(closure, blinks(MINUTE, 3))
    assert not np.array_equal(closure, blinks(MINUTE, 4))
    assert np.array_equal(blinks(10 * MINUTE, 3)[:MINUTE], closure)
    assert blinks(0, 0).shape == (0, 2)


def test_rate_intervals_and_first_blink_are_human():
    rates, intervals = [], []
    for seed in range(12):
        closure = blinks(5 * MINUTE, seed)
        assert not closure[: FPS // 2].any()
        found = events(closure)
        rates.append(len(found) / 5)
        intervals += list(np.diff([peak for _, peak, _ in found]) / FPS)
    assert 12 <= np.mean(rates) <= 20
    assert np.std(rates) > 0.3
    assert 0.3 < np.std(np.log(intervals)) < 1.0  # neither a metronome nor bursts
    assert max(intervals) < 12


def test_closing_is_faster_than_opening_and_some_blinks_are_partial():
    closing, opening, peaks = [], [], []
    for seed in range(10):
        closure = blinks(5 * MINUTE, seed)
        for first, peak, last in events(closure):
            closing.append((peak - first + 1) / FPS)
            opening.append((last - peak + 1) / FPS)
            peaks.append(closure[peak].mean())
    assert 0.06 <= np.median(closing) <= 0.16
    assert 0.15 <= np.median(opening) <= 0.30
    assert np.median(opening) > 1.4 * np.median(closing)
    assert 0.05 < np.mean(np.array(peaks) < 0.85) < 0.3
    assert np.median(peaks) > 0.9


def test_both_eyes_close_nearly_alike():
    closure = blinks(5 * MINUTE, 0)
    difference = np.abs(closure[:, 0] - closure[:, 1])
    assert 0 < difference.max() < 0.25
    assert np.corrcoef(closure.T)[0, 1] > 0.99


def test_phrase_ends_are_found_where_speech_stops():
    ends = phrase_ends(tone((2, 1), (1.5, 0.1), (1, 1)))
    assert len(ends) == 2  # the gap of 0.1 s is no end of a phrase
    assert np.abs(ends - [2, 5.6]).max() < 0.15
    assert not len(phrase_ends(Voice(np.zeros(SAMPLE_RATE, np.float32))))
    assert not len(phrase_ends(Voice(np.zeros(0, np.float32))))


def test_blinks_gather_at_phrase_ends():
    voice = tone(*[(2.5, 0.8)] * 40)
    ends = phrase_ends(voice)

    def share_near(closure: np.ndarray) -> float:
        onsets = np.array([first for first, _, _ in events(closure)]) / FPS
        return float((np.abs(onsets[:, None] - ends).min(1) < 0.3).mean())

    with_voice = np.mean([share_near(blinks(voice.n_frames, s, voice)) for s in range(5)])
    without = np.mean([share_near(blinks(voice.n_frames, s)) for s in range(5)])
    assert with_voice > without + 0.2
    rate = np.mean([len(events(blinks(voice.n_frames, s, voice))) for s in range(5)]) / (
        voice.n_frames / MINUTE
    )
    assert 11 <= rate <= 21


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gaze_rests_on_the_camera_and_jumps_in_small_saccades(seed):
    path = gaze(5 * MINUTE, seed)
    assert path.shape == (5 * MINUTE, 2)
    assert path.dtype == np.float32
    assert np.abs(path).max() <= 3.2
    assert 0.45 < (np.hypot(*path.T) < 0.7).mean() < 0.9
    assert path[:, 0].std() > path[:, 1].std()
    moving = np.abs(np.diff(path, axis=0)).max(1) > 0.02
    assert 0.01 < moving.mean() < 0.12  # mostly still
    runs = np.diff(np.flatnonzero(np.diff(np.r_[0, moving, 0].astype(int)))).reshape(-1)[::2]
    assert runs.max() <= 3
    assert np.array_equal(gaze(10 * MINUTE, seed)[:MINUTE], path[:MINUTE])
    assert not np.array_equal(gaze(MINUTE, seed + 1), path[:MINUTE])
