from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.compute.cascade import ExitPolicy
from agent.compute.manifest import Variant

RUNGS = (
    Variant("3", confidence=0.9, complexity=0.3),
    Variant("6", confidence=0.8, complexity=0.7),
    Variant("12"),
)


def test_the_first_answer_is_looked_at_where_the_complexity_says() -> None:
    cascade = ExitPolicy(RUNGS, 10**9)
    assert [cascade.first(c) for c in (0.0, 0.3, 0.31, 0.7, 0.9, 1.0)] == [0, 0, 1, 1, 2, 2]
    assert ExitPolicy(RUNGS[:2], 10**9).first(1.0) == 1, "the deepest there is"


def test_it_goes_on_below_the_learned_confidence_and_never_beyond_the_last() -> None:
    cascade = ExitPolicy(RUNGS, 10**9)
    assert [cascade.needs_deeper(0, c, 0) for c in (0.0, 0.89, 0.9, 1.0)] == [True, True, False, False]
    assert not cascade.needs_deeper(2, 0.0, 0)


@given(
    times=st.lists(st.integers(1, 1000), min_size=3, max_size=3),
    budget=st.integers(1, 2000),
    confidences=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    complexity=st.floats(0, 1),
)
def test_no_variant_is_begun_that_exceeds_the_budget(
    times: list[int], budget: int, confidences: list[float], complexity: float
) -> None:
    cascade = ExitPolicy(RUNGS, budget)
    for index, ns in enumerate(times):
        cascade.record_latency(index, ns)
    spent, index = times[0], 0
    first = cascade.first(complexity)
    ran = [0]
    while index + 1 < len(RUNGS):
        on_the_way = index < first and cascade.fits_budget(index + 1, spent)
        if not on_the_way and not cascade.needs_deeper(index, confidences[index], spent):
            break
        index += 1
        spent += times[index]
        ran.append(index)
        assert spent <= budget
    assert ran == list(range(index + 1)), "each variant once, in order"


def test_the_usual_time_follows_what_is_measured() -> None:
    cascade = ExitPolicy(RUNGS, 100)
    cascade.record_latency(1, 90)
    assert cascade.needs_deeper(0, 0.0, 10)
    assert not cascade.needs_deeper(0, 0.0, 11)
    for _ in range(100):
        cascade.record_latency(1, 10)
    assert cascade.needs_deeper(0, 0.0, 85)


@given(slow=st.integers(101, 100_000), times=st.integers(1, 5))
def test_a_variant_that_was_slow_by_chance_comes_back(slow: int, times: int) -> None:
    cascade = ExitPolicy(RUNGS, 100)
    for _ in range(times):
        cascade.record_latency(1, slow)
    refused = 0
    while not cascade.needs_deeper(0, 0.0, 50):
        refused += 1
        assert refused <= 200
    cascade.record_latency(1, 40)
    assert all(cascade.needs_deeper(0, 0.0, 50) for _ in range(10)), "what was measured anew is what counts"


@given(slow=st.integers(101, 100_000))
def test_a_variant_that_is_slow_is_tried_rarely(slow: int) -> None:
    cascade = ExitPolicy(RUNGS, 100)
    tried = 0
    for _ in range(1000):
        if cascade.needs_deeper(0, 0.0, 0):
            tried += 1
            cascade.record_latency(1, slow)
    assert tried <= 1 + 1000 // 200


def test_nothing_is_tried_again_when_the_budget_is_spent() -> None:
    cascade = ExitPolicy(RUNGS, 100)
    cascade.record_latency(1, 1000)
    assert not any(cascade.needs_deeper(0, 0.0, 101) for _ in range(1000))
