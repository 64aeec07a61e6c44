from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.gate.voice import SpeechComplexity, SpeechRate
from agent.types import Samples

pytestmark = pytest.mark.numerics

RATE = 16_000


def spoken(syllables_hz: float, seconds: float = 3.0) -> Samples:
    """Noise whose level rises and falls as that of speech does."""
    t = np.arange(round(seconds * RATE)) / RATE
    level = 0.55 - 0.45 * np.cos(2 * np.pi * syllables_hz * t)
    return (np.random.default_rng(1).standard_normal(len(t)) * level * 4000).astype(np.int16)


def rate(samples: Samples, step: int = 1536) -> float:
    counter = SpeechRate(RATE)
    return float(np.mean([counter.update(samples[at : at + step]) for at in range(0, len(samples), step)][-10:]))


@pytest.mark.parametrize("hz", [2.0, 4.0, 6.0, 8.0])
def test_syllables_are_counted(hz: float) -> None:
    assert rate(spoken(hz)) == pytest.approx(hz, rel=0.25)


def test_what_does_not_rise_and_fall_is_no_speech() -> None:
    assert rate(np.full(3 * RATE, 1000, np.int16)) == 0.0
    assert rate(np.zeros(3 * RATE, np.int16)) == 0.0


def test_a_pause_begins_anew() -> None:
    counter = SpeechRate(RATE)
    assert counter.update(spoken(5.0)) > 3.0
    counter.pause()
    assert counter.update(np.zeros(1536, np.int16)) == 0.0


def test_fast_speech_is_harder() -> None:
    hardness = []
    for hz in (2.0, 6.0, 8.0):
        difficulty, samples = SpeechComplexity(RATE), spoken(hz)
        for at in range(0, len(samples), 1536):
            value = difficulty.update(samples[at : at + 1536], 15.0, 3.0, np.linspace(1.0, 0.0, 100))
        hardness.append(value)
    assert hardness == sorted(hardness)
    assert hardness[-1] - hardness[0] > 0.08


@given(
    above=st.floats(-100, 200), flux=st.floats(0, 200), power=st.lists(st.floats(0, 1e9), min_size=2, max_size=50)
)
def test_it_is_within_bounds(above: float, flux: float, power: list[float]) -> None:
    difficulty = SpeechComplexity(RATE)
    for _ in range(5):
        assert 0.0 <= difficulty.update(spoken(4.0, 0.1), above, flux, np.array(power)) <= 1.0
