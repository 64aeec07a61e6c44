"""When what breaks in a trial of delivery."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tests.support.faults import Kind, schedule

kinds = st.dictionaries(
    st.sampled_from(["broker", "agent", "link"]), st.builds(Kind, st.integers(1, 30), st.floats(0.2, 20.0))
)


@given(st.integers(), st.floats(10.0, 900.0), kinds)
def test_each_kind_breaks_as_often_as_asked_and_is_whole_again_in_time(
    seed: int, seconds: float, asked: dict[str, Kind]
) -> None:
    steps = schedule(seed, seconds, asked)
    assert [step.at for step in steps] == sorted(step.at for step in steps)
    for name, kind in asked.items():
        own = [step for step in steps if step.kind == name]
        assert [step.breaks for step in own] == [True, False] * kind.times
        assert 0.0 <= own[0].at < own[-1].at <= seconds
        for begin, end in zip(own[::2], own[1::2], strict=True):
            assert 0.09 < end.at - begin.at <= kind.longest_s + 1e-6


@given(st.integers(), st.integers(1, 20))
def test_what_was_broken_is_whole_for_a_while_before_it_breaks_again(seed: int, count: int) -> None:
    steps = schedule(seed, count * 10.0, {"broker": Kind(count, 30.0)})
    assert all(after.at - mended.at >= 0.99 for mended, after in list(pairwise(steps))[1::2])


def test_a_seed_gives_the_same_each_time_and_another_gives_others() -> None:
    asked = {"agent": Kind(5, 2.0)}
    assert schedule(7, 60.0, asked) == schedule(7, 60.0, asked) != schedule(8, 60.0, asked)
