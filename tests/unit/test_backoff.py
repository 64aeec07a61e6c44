from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.backoff import Backoff


@given(st.floats(0.01, 3600), st.integers(1, 60))
def test_pauses_are_never_none_and_never_too_long(max_s: float, attempts: int) -> None:
    backoff = Backoff(1.0, max_s)
    for _ in range(attempts):
        assert min(0.1, max_s) <= backoff.next_s() <= max_s


def test_pauses_grow_until_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    backoff = Backoff(1.0, 60.0)
    assert [backoff.next_s() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    backoff.reset()
    assert backoff.next_s() == 1
    backoff.skip(3)
    assert backoff.next_s() == 16
    assert backoff.next_s(limit_s=5.0) == 5


@pytest.mark.parametrize(("jitter", "least"), [(1.0, 0.1), (0.5, 2.0), (0.0, 4.0)])
def test_only_the_jitter_is_random(jitter: float, least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: low)
    assert Backoff(4.0, jitter=jitter).next_s() == least


def test_the_limit_holds_for_the_first_pause_too() -> None:
    assert Backoff(0.5, 0.1, jitter=0.0).next_s() == 0.1
