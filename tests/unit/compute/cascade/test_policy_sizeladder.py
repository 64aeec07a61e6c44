from __future__ import annotations

from collections.abc import Collection
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.compute.cascade.policy import SizeCascade
from agent.compute.manifest import Variant

RUNGS = (Variant("256", confidence=0.7), Variant("320", confidence=0.7), Variant("416"))
TIMES = (40, 60, 100)
NO_BUDGET = 10**9
ALL, NONE = (0, 1, 2), ()


def looked(
    cascade: SizeCascade,
    sure: Collection[int],
    *,
    times: tuple[int, ...] = TIMES,
    complexity: float = 0.0,
    agrees: bool = True,
) -> list[int]:
    """The sizes that look at one picture, of which some are sure."""
    began = cascade.begin(complexity)
    cascade.record_latency(began, times[began])
    is_sure = cascade.is_confident(began, 0.9 if began in sure else 0.5)
    larger = cascade.larger(began, sure=is_sure, spent_ns=times[began])
    if larger is None:
        cascade.settle(began, began, sure=is_sure)
        return [began]
    cascade.record_latency(larger, times[larger])
    cascade.settle(began, larger, sure=is_sure, agreed=agrees)
    return [began, larger]


def cost(runs: list[list[int]]) -> float:
    return sum(TIMES[index] for run in runs for index in run) / len(runs)


def test_where_small_ones_are_sure_the_smallest_looks() -> None:
    cascade = SizeCascade(RUNGS, NO_BUDGET)
    runs = [looked(cascade, ALL) for _ in range(1000)]
    assert runs[:4] == [[0], [1], [2], [0]], "each once, to learn how long it takes"
    assert cost(runs) < 45


def test_where_small_ones_are_never_sure_they_cost_little() -> None:
    cascade = SizeCascade(RUNGS, NO_BUDGET)
    runs = [looked(cascade, NONE) for _ in range(1000)]
    assert all(run[-1] == 2 for run in runs)
    assert cost(runs) < 105, "always the largest costs 100"


def test_a_size_between_is_found_where_only_a_smaller_one_fails() -> None:
    cascade = SizeCascade(RUNGS, NO_BUDGET)
    runs = [looked(cascade, (1, 2)) for _ in range(1000)]
    assert [1] in runs[-3:]
    assert cost(runs) < 67


@settings(max_examples=40, deadline=None)
@given(chance=st.floats(0.0, 1.0), seed=st.integers(0, 100))
def test_it_costs_little_more_than_the_best_way_to_begin(chance: float, seed: int) -> None:
    cascade, random = SizeCascade(RUNGS, NO_BUDGET), Random(seed)
    runs = [looked(cascade, (0, 1) if random.random() < chance else NONE) for _ in range(3000)]
    best = min(100, TIMES[0] + (1.0 - chance) * 100, TIMES[1] + (1.0 - chance) * 100)
    assert cost(runs) <= best + 25, "where chances are near the break-even, the newest pictures mislead"


def test_a_size_that_is_hardly_faster_does_not_begin() -> None:
    cascade = SizeCascade(RUNGS, NO_BUDGET)
    runs = [looked(cascade, ALL if number % 4 else NONE, times=(90, 95, 100)) for number in range(500)]
    assert runs.count([2]) > 400, "three of four are no gain at nine tenths of the time"


def test_a_scene_that_changes_is_noticed_at_once_and_forgotten_soon() -> None:
    cascade = SizeCascade(RUNGS, NO_BUDGET)
    for _ in range(100):
        looked(cascade, ALL)
    assert all(looked(cascade, NONE)[-1] == 2 for _ in range(500))
    again = [looked(cascade, ALL) for _ in range(100)]
    assert again[-20:].count([0]) >= 18


def test_what_a_size_is_sure_of_is_checked() -> None:
    cascade = SizeCascade(RUNGS, NO_BUDGET)
    runs = [looked(cascade, ALL) for _ in range(330)]
    assert 9 <= sum(len(run) == 2 for run in runs) <= 10
    assert runs[-1] == [0], "the largest said the same each time"


def test_a_size_that_is_sure_and_wrong_is_asked_no_more() -> None:
    cascade = SizeCascade(RUNGS, NO_BUDGET)
    runs = [looked(cascade, ALL, agrees=False) for _ in range(1000)]
    assert max(number for number, run in enumerate(runs) if run[-1] != 2) < 70
    assert runs[-100:].count([2]) > 90
    assert [0] in [looked(cascade, ALL) for _ in range(400)], "until it is right again"


@given(complexity=st.floats(0, 1))
def test_complexity_says_where_to_begin_at_least(complexity: float) -> None:
    variants = (
        Variant("256", confidence=0.7, complexity=0.3),
        Variant("320", confidence=0.7, complexity=0.6),
        RUNGS[2],
    )
    cascade = SizeCascade(variants, NO_BUDGET)
    least = 0 if complexity <= 0.3 else 1 if complexity <= 0.6 else 2
    runs = [looked(cascade, ALL, complexity=complexity) for _ in range(50)]
    assert min(index for run in runs for index in run) == least


SURE = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=300, max_size=300)


@given(
    times=st.tuples(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300)),
    budget=st.integers(1, 400),
    story=SURE,
)
def test_the_budget_holds_as_far_as_usual_times_tell(
    times: tuple[int, int, int], budget: int, story: list[tuple[bool, bool]]
) -> None:
    cascade = SizeCascade(RUNGS, budget)
    beyond = 0
    for sure, agrees in story:
        run = looked(cascade, ALL if sure else NONE, times=times, agrees=agrees)
        if run != [0] and sum(times[index] for index in run) > budget:
            beyond += 1
    assert beyond <= 2 + 2 * len(story) // 200, (
        "each to learn its time, and now and then to see if it has changed"
    )


@given(hiccups=st.lists(st.tuples(st.integers(0, 2), st.integers(200, 10**6)), max_size=5))
def test_a_hiccup_bans_no_size_for_ever(hiccups: list[tuple[int, int]]) -> None:
    cascade = SizeCascade(RUNGS, 150)
    for index, ns in hiccups:
        cascade.record_latency(index, ns)
    runs = [looked(cascade, NONE) for _ in range(1500)]
    assert runs[-40:].count([2]) >= 30
    again = [looked(cascade, ALL) for _ in range(600)]
    assert again[-5:].count([0]) >= 4
