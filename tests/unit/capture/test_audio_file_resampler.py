from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.capture.audio_file import Resampler, mono, to_int16
from agent.types import Samples

pytestmark = pytest.mark.numerics


def tone(rate_hz: int, seconds: float, hz: float = 440.0) -> Samples:
    phase = 2 * np.pi * hz * np.arange(round(rate_hz * seconds)) / rate_hz
    samples: Samples = np.rint(12000 * np.sin(phase)).astype(np.int16)
    return samples


def resampled(samples: Samples, from_hz: int, to_hz: int, cuts: list[int]) -> Samples:
    """In blocks of these sizes, again and again."""
    resampler, parts, begin, number = Resampler(from_hz, to_hz), [], 0, 0
    while begin < len(samples):
        size = cuts[number % len(cuts)]
        parts.append(resampler.change(samples[begin : begin + size]))
        begin, number = begin + size, number + 1
    return np.concatenate([*parts, resampler.rest()])


@pytest.mark.parametrize(("from_hz", "to_hz"), [(48000, 16000), (44100, 16000), (8000, 16000), (15123, 16000)])
def test_a_tone_stays_the_tone_that_it_was(from_hz: int, to_hz: int) -> None:
    changed = resampled(tone(from_hz, 1.0), from_hz, to_hz, [1000])
    expected = tone(to_hz, 1.0)
    assert abs(len(changed) - len(expected)) <= 1
    inner = slice(1000, len(expected) - 1000)
    assert np.abs(changed[inner].astype(int) - expected[inner]).max() < 30


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=6), st.sampled_from([(48000, 16000), (11025, 16000)]))
def test_it_does_not_matter_how_sound_is_cut(cuts: list[int], rates: tuple[int, int]) -> None:
    samples = tone(rates[0], 0.4)
    whole = resampled(samples, *rates, [len(samples)])
    assert (resampled(samples, *rates, cuts) == whole).all()


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=6))
def test_at_the_same_rate_nothing_changes(cuts: list[int]) -> None:
    samples = tone(16000, 0.3)
    assert (resampled(samples, 16000, 16000, cuts) == samples).all()


def test_silence_stays_silent() -> None:
    assert not resampled(np.zeros(48000, np.int16), 48000, 16000, [700]).any()


def test_what_the_filter_holds_back_is_known() -> None:
    resampler = Resampler(48000, 16000)
    went = sum(len(resampler.change(tone(48000, 0.1))) for _ in range(10))
    assert went / 16000 + resampler.behind_s == pytest.approx(1.0, abs=1e-4)
    assert 0 < resampler.behind_s < 0.1


@given(st.lists(st.integers(-32768, 32767), min_size=1, max_size=50))
def test_every_int16_survives_the_way_over_float(values: list[int]) -> None:
    samples = np.array(values, np.int16)
    assert (to_int16(samples.astype(np.float32) / 32768) == samples).all()


def test_what_is_too_loud_is_clipped_and_what_is_no_number_is_silent() -> None:
    values = np.array([2.0, -2.0, np.nan, np.inf, 0.5], np.float32)
    assert to_int16(values).tolist() == [32767, -32768, 0, 32767, 16384]


def test_one_channel_of_several() -> None:
    frames = np.array([[1, 4], [-1, -2], [32767, 32767]], np.int16)
    assert mono(frames, 0).tolist() == [1, -1, 32767]
    assert mono(frames, 1).tolist() == [4, -2, 32767]
    assert mono(frames, None).tolist() == [3, -1, 32767]
    assert mono(frames[:, :1], None).flags.c_contiguous
    assert mono(np.array([[0.5, -0.25]], np.float32), None).tolist() == [0.125]
