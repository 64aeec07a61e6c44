"""Audio from before the gate opened."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.gate.voice import PreRoll


@given(size=st.integers(1, 50), parts=st.lists(st.integers(1, 30), max_size=10), newest=st.integers(0, 20))
def test_the_newest_are_taken_and_no_more_than_it_holds(size: int, parts: list[int], newest: int) -> None:
    stream = np.arange(sum(parts) + newest)
    held, at = PreRoll(size), 0
    for part in parts:
        held.add(stream[at : at + part])
        at += part
    taken = held.take(stream[at:])
    assert np.array_equal(taken, stream[-min(len(stream), size + newest) :] if len(taken) else stream[:0])
    assert len(taken) == min(sum(parts), size) + newest
    assert not held.forgot
    assert len(held.take(stream[:0])) == 0


def test_that_something_was_forgotten_is_known_until_it_is_taken() -> None:
    held = PreRoll(3)
    forgot = [held.forgot]
    for _ in range(2):
        held.add(np.arange(3))
        forgot.append(held.forgot)
    held.clear()
    forgot.append(held.forgot)
    assert forgot == [False, False, True, False]


def test_what_is_remembered_is_a_copy() -> None:
    held, samples = PreRoll(3), np.arange(3)
    held.add(samples)
    samples[:] = 9
    assert held.take(np.arange(0)).tolist() == [0, 1, 2]
