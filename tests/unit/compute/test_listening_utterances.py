"""Utterances in rows of sound: where words begin and end, in quiet and in noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.compute.infer.audio_input import LogMel, LogMelOptions
from agent.compute.listening import LONGEST_S, Utterance, UtteranceFinder
from agent.types import Samples

pytestmark = pytest.mark.numerics

RATE, HOP_S = 16000, 0.01


def noise(seconds: float, level: float = 8.0) -> Samples:
    return (np.random.default_rng(3).standard_normal(round(seconds * RATE)) * level).astype(np.int16)


def tone(seconds: float) -> Samples:
    at = np.arange(round(seconds * RATE)) / RATE
    return np.asarray(sum(np.sin(2 * np.pi * 140 * k * at + k) / k for k in range(1, 25)) * 4000, np.int16)


def rows_of(*parts: Samples) -> np.ndarray:
    front = LogMel(LogMelOptions(rate_hz=RATE, mels=32, offset=1e-9))
    return front(np.concatenate(parts))


def found(rows: np.ndarray, size: int = 16) -> list[tuple[int, int]]:
    """The first row and the number of rows of each utterance, of rows that come `size` at a time."""
    finder, spans, before = UtteranceFinder(HOP_S, 1.0), [], 0
    for at in range(0, len(rows), size):
        part = rows[at : at + size]
        before += len(part)
        for one, ago in finder.add(part):
            end = before - ago
            spans.append((end - (one.end - one.begin), one.end - one.begin))
    last = finder.flush()
    return [*spans, *([(len(rows) - last.end + last.begin, last.end - last.begin)] if last else [])]


@pytest.mark.parametrize("level", [1.0, 30.0, 300.0])
def test_a_word_has_the_same_edges_in_any_noise(level: float) -> None:
    background = noise(4.0, level)
    background[RATE : RATE + RATE // 2] += tone(0.5)
    ((begin, length),) = found(rows_of(background))
    assert abs(begin - 98) <= 3
    assert abs(length - 52) <= 4


def test_words_with_a_pause_between_them_are_two_and_without_one() -> None:
    assert len(found(rows_of(noise(1), tone(0.4), noise(0.5), tone(0.4), noise(1)))) == 2
    ((_, length),) = found(rows_of(noise(1), tone(0.3), noise(0.1), tone(0.3), noise(1)))
    assert length >= 68


@pytest.mark.parametrize("seconds", [0.05, LONGEST_S + 0.4, 6.0])
def test_clicks_and_sentences_are_none_and_the_next_word_is_found(seconds: float) -> None:
    assert found(rows_of(noise(1), tone(seconds), noise(1.2))) == []
    assert len(found(rows_of(noise(1), tone(seconds), noise(1.2), tone(0.4), noise(1)))) == 1


def test_silence_and_steady_noise_are_none() -> None:
    assert found(rows_of(np.zeros(3 * RATE, np.int16))) == []
    assert found(rows_of(noise(10, 500.0))) == []


def test_a_word_at_the_end_of_a_recording_is_found() -> None:
    ((_, length),) = found(rows_of(noise(1), tone(0.4)))
    assert 36 <= length <= 46
    assert UtteranceFinder(HOP_S, 1.0).flush() is None


def test_a_gap_ends_nothing() -> None:
    finder = UtteranceFinder(HOP_S, 1.0)
    assert list(finder.add(rows_of(noise(1), tone(0.3)))) == []
    assert finder.is_open
    finder.reset()
    assert finder.flush() is None


@settings(deadline=None, max_examples=15)
@given(size=st.integers(1, 120))
def test_pieces_of_any_size_give_the_same_words(size: int) -> None:
    rows = rows_of(noise(1), tone(0.4), noise(0.6), tone(0.7), noise(1))
    expected = found(rows, 10)
    assert len(expected) == 2
    given_ = found(rows, size)
    assert len(given_) == 2
    assert all(
        abs(a - b) <= 2 for one, two in zip(expected, given_, strict=True) for a, b in zip(one, two, strict=True)
    )


def test_a_window_has_silence_where_there_is_no_sound() -> None:
    one = Utterance(np.ones((10, 3), np.float32), 2, 8)
    window = one.window(12, 14, -5.0)
    assert window.shape == (14, 3)
    assert window[:, 0].tolist() == [-5.0] * 2 + [1.0] * 10 + [-5.0] * 2
    assert one.window(8, 4, -5.0)[:, 0].tolist() == [1.0] * 4
    assert one.window(-3, 4, -5.0)[:, 0].tolist() == [-5.0] * 4
