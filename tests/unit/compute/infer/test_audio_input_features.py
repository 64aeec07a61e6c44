from __future__ import annotations

from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.infer.audio_input import LogMel, LogMelOptions, Mfcc, MfccOptions, Micro, mel_filters

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


def test_magnitudes_are_the_features_of_tensorflow() -> None:
    """Source of the recipe: tensorflow/tensorflow, python/ops/signal, `mfccs_from_log_mel_spectrograms`."""
    options = MfccOptions(16_000, 30.0, 20.0, 40, 20.0, 4000.0, 1e-6, magnitude=True, coefficients=10)
    samples = SOUND[:16_000]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(480) / 480)
    windows = np.stack([samples[at : at + 480] / 32768 * hann for at in range(0, 16_000 - 479, 320)])
    hz = np.linspace(0, 8000, 257)[1:, None]
    edges = np.linspace(1127 * np.log(1 + 20 / 700), 1127 * np.log(1 + 4000 / 700), 42)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    mel = 1127 * np.log(1 + hz / 700)
    filters = np.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clip(0)
    logs = np.log(np.abs(np.fft.rfft(windows, 512))[:, 1:] @ filters + 1e-6)
    n = np.arange(40)
    expected = logs @ (2 * np.cos(np.pi / 40 * (n[:, None] + 0.5) * n[:10]) / np.sqrt(80))
    rows = Mfcc(options)(samples)
    assert rows.shape == (49, 10)
    assert np.abs(rows - expected).max() < 0.05 * np.abs(expected).std()


def test_preemphasis_is_that_of_the_samples() -> None:
    options = LogMelOptions(preemphasis=0.9)
    sharpened = SOUND[1:] - 0.9 * SOUND[:-1]
    expected = LogMel(OPTIONS)(np.rint(sharpened).astype(np.int16))
    assert np.abs(LogMel(options)(SOUND[1:]) - expected).mean() < 0.05
    assert np.abs(LogMel(OPTIONS)(SOUND[1:]) - expected).mean() > 0.5


def test_a_step_of_20_ms_takes_every_second_row_however_the_stream_is_cut() -> None:
    pytest.importorskip("pymicro_features", reason="the extra [wakeword] is not installed")
    every, second = Micro(16_000)(SOUND), Micro(16_000, 20)
    assert second.hop_s == 0.02
    pieces = [second(SOUND[at : at + 777]) for at in range(0, len(SOUND), 777)]
    assert np.array_equal(np.concatenate(pieces), every[1::2])
