from __future__ import annotations

import numpy as np
import pytest

from agent.compute.gate.voice import Pauses
from agent.types import Samples

pytestmark = pytest.mark.numerics

RATE = 8000
random = np.random.default_rng(5)


def noise(seconds: float, level: float) -> Samples:
    return (random.standard_normal(round(seconds * RATE)) * level).astype(np.int16)


def heard(told_s: float, now_s: float, *parts: Samples, late_s: float = 0.0) -> float | None:
    """When the pause was that is found at `now_s` after a word was told at `told_s`, s."""
    pauses = Pauses(RATE)
    for at in range(0, len(sound := np.concatenate(parts)), 240):
        pauses.add(sound[at : at + 240])
    ago_s = pauses.find(now_s - told_s, late_s)
    return None if ago_s is None else now_s - ago_s


@pytest.mark.parametrize("background", [0.0, 10.0, 300.0])
@pytest.mark.parametrize("told_s", [0.8, 1.0, 1.1])
def test_the_pause_after_a_word_is_found(background: float, told_s: float) -> None:
    at_s = heard(told_s, 1.2, noise(0.5, background), noise(0.4, 3000), noise(0.3, background))
    assert at_s is not None
    assert 0.9 < at_s <= 1.2


def test_the_pause_is_found_when_the_next_word_has_begun() -> None:
    at_s = heard(1.1, 1.3, noise(0.5, 10), noise(0.4, 3000), noise(0.2, 10), noise(0.2, 3000))
    assert at_s is not None
    assert 0.9 < at_s <= 1.11


def test_sound_after_the_end_of_an_inference_does_not_count() -> None:
    parts = noise(0.5, 10), noise(0.4, 3000), noise(0.3, 10)
    assert heard(0.8, 0.9, *parts, late_s=0.3) is None
    assert heard(0.8, 1.1, *parts, late_s=0.1) is not None


@pytest.mark.parametrize("depth", [0.0, 0.5])
def test_a_held_note_has_no_pause(depth: float) -> None:
    t = np.arange(2 * RATE) / RATE
    note = (4000 * np.sin(2 * np.pi * 220 * t) * (1 + depth * np.sin(2 * np.pi * 5.5 * t))).astype(np.int16)
    assert heard(1.0, 2.5, noise(0.5, 10), note) is None


def test_a_pause_before_the_word_is_not_that_after_it() -> None:
    assert heard(1.0, 1.1, noise(0.3, 3000), noise(0.2, 10), noise(0.6, 3000)) is None


def test_sound_that_was_forgotten_has_no_pause() -> None:
    pauses = Pauses(RATE)
    pauses.add(np.concatenate((noise(0.5, 3000), noise(0.5, 10))))
    pauses.reset()
    pauses.add(noise(0.5, 10))
    assert pauses.find(0.5) is None


@pytest.mark.parametrize("count", [0, 1, 79, 399, 400])
def test_little_sound_is_no_pause(count: int) -> None:
    pauses = Pauses(RATE)
    pauses.add(noise(1.0, 3000)[:count])
    assert pauses.find(0.1) is None
