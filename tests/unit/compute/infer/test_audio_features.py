from __future__ import annotations

from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.infer.audio_features import LogMel, LogMelOptions, mel_filters

pytestmark = pytest.mark.numerics

OPTIONS = LogMelOptions()
SOUND = np.random.default_rng(0).normal(0, 3000, 20_000).astype(np.int16)


def tone(hz: float, amplitude: float, seconds: float = 1.0) -> np.ndarray:
    at = np.arange(int(OPTIONS.rate_hz * seconds)) / OPTIONS.rate_hz
    return (amplitude * np.sin(2 * np.pi * hz * at)).astype(np.int16)


def test_one_second_gives_a_row_for_every_hop_that_has_a_full_window() -> None:
    rows = LogMel(OPTIONS)(SOUND[:8000])
    assert rows.shape == (98, 40)
    assert rows.dtype == np.float32


@given(st.lists(st.integers(0, 1500), max_size=30))
def test_the_rows_do_not_depend_on_how_the_stream_is_cut(lengths: list[int]) -> None:
    ends = np.minimum(np.cumsum([0, *lengths, len(SOUND)]), len(SOUND))
    logmel = LogMel(OPTIONS)
    pieces = [logmel(SOUND[a:b]) for a, b in pairwise(ends)]
    assert np.array_equal(np.concatenate(pieces), LogMel(OPTIONS)(SOUND))


@given(st.lists(st.integers(-32768, 32767), max_size=900))
def test_no_sound_gives_anything_but_finite_numbers(samples: list[int]) -> None:
    assert np.isfinite(LogMel(OPTIONS)(np.array(samples, np.int16))).all()


@pytest.mark.parametrize("level", [0, -32768, 32767])
def test_silence_and_the_loudest_sound_are_finite(level: int) -> None:
    assert np.isfinite(LogMel(OPTIONS)(np.full(4000, level, np.int16))).all()


def test_silence_is_the_logarithm_of_the_offset() -> None:
    rows = LogMel(OPTIONS)(np.zeros(800, np.int16))
    assert rows == pytest.approx(np.log(OPTIONS.offset))


def test_after_a_reset_a_stream_begins_anew() -> None:
    logmel = LogMel(OPTIONS)
    first = logmel(SOUND[:1234])
    logmel.reset()
    assert np.array_equal(logmel(SOUND[:1234]), first)


def test_a_tone_is_loudest_in_the_band_that_it_lies_in() -> None:
    rows = LogMel(OPTIONS)(tone(1000, 8000))
    centre = mel_filters(OPTIONS, 256)[32].argmax()
    assert set(rows.argmax(axis=1)) == {centre}


def test_ten_times_the_amplitude_is_a_hundred_times_the_energy() -> None:
    quiet, loud = (LogMel(OPTIONS)(tone(1000, a)).max() for a in (1000, 10_000))
    assert loud - quiet == pytest.approx(np.log(100), abs=0.02)


def test_samples_of_one_channel_out_of_two_are_read_in_place() -> None:
    both = np.stack([SOUND, SOUND[::-1]], axis=1)
    assert np.array_equal(LogMel(OPTIONS)(both[:, 0]), LogMel(OPTIONS)(SOUND))


def test_every_band_hears_something() -> None:
    options = LogMelOptions(mels=80, window_ms=8.0, hop_ms=4.0)
    assert (mel_filters(options, 64).sum(axis=0) > 0).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"high_hz": 5000.0},
        {"low_hz": 3900.0},
        {"hop_ms": 30.0},
        {"hop_ms": 0.01},
        {"mels": 0},
        {"offset": 0.0},
        {"bands": 4},
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, LogMelOptions)
