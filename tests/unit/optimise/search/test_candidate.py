"""Comparison of candidates: the front, and who is trained further."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="a search needs the extra [optimise]")

from agent.optimise.search.candidate import Figures, beats, pareto_front, reason_to_stop

figures = st.builds(
    Figures,
    st.sampled_from([0.1, 0.5, 0.9]) | st.floats(0, 1),
    st.sampled_from([1.0, 2.0]) | st.floats(0.01, 100),
    st.integers(1, 5),
)


@given(st.lists(figures, max_size=12))
def test_nothing_beats_the_front_and_it_beats_all_else(found: list[Figures]) -> None:
    values = [one.values for one in found]
    front = pareto_front(values)
    assert bool(front) == bool(found)
    for number, one in enumerate(values):
        beaten = [other for other in front if beats(values[other], one)]
        assert (number in front) == (not beaten)


@given(figures, st.lists(figures, max_size=12))
def test_who_is_on_the_front_or_in_the_better_half_goes_on(own: Figures, others: list[Figures]) -> None:
    stopped = bool(reason_to_stop(own, others))
    beaten = any(beats(one.values, own.values) for one in others)
    assert not stopped or beaten
    if own.accuracy == max(one.accuracy for one in (own, *others)):
        assert not stopped


def test_only_candidates_of_similar_latency_are_compared() -> None:
    own = Figures(0.5, 10.0, 100)
    slower = [Figures(0.9, 20.0, 100)] * 4
    similar = [Figures(0.9, 9.0, 100)]
    assert not reason_to_stop(own, slower)
    assert "1 of 1" in reason_to_stop(own, slower + similar)
    assert not reason_to_stop(own, [*similar, Figures(0.4, 9.0, 100)]), "it is in the better half"


def test_the_first_to_finish_a_rung_goes_on() -> None:
    assert not reason_to_stop(Figures(0.0, 1.0, 1), [])
