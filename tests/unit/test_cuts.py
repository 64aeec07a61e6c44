"""The plan of power cuts has as many as were asked for."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "scripts" / "virtual_board"))

from cuts import ALL, SHARES, plan
from snapshots import STATES, Shot

SHOTS = [Shot(f"{state}-{number}", state, 30.0 * number, 30.0, 0) for state in STATES for number in range(2)]


@pytest.mark.parametrize("count", [*range(60), 100, 439])
def test_there_are_exactly_as_many_as_asked_for(count: int) -> None:
    cuts = plan(SHOTS, count)
    assert len({cut.name for cut in cuts}) == len(cuts) == count
    states = Counter(cut.state for cut in cuts)
    if count >= len(SHARES):
        assert set(states) == {state for state, *_ in SHARES}
    for state in states:
        share = sum(one for name, *_, one in SHARES if name == state) * count / ALL
        assert abs(states[state] - share) < 2, state


def test_those_of_the_whole_plan_stay_where_they_were() -> None:
    cuts = plan(SHOTS, ALL)
    assert Counter(cut.state for cut in cuts) == {
        "received": 4,
        "verified": 8,
        "staged": 4,
        "tested": 4,
        "switching": 11,
        "trial": 9,
        "committed": 4,
    }
    assert [cut.name for cut in cuts[:7]] == [f"cut in {state} 1" for state in STATES[1:]]
    assert [cut.name for cut in cuts[-8:]] == [
        "cut in received 4",
        "cut in staged 4",
        "cut in tested 4",
        "cut in trial 4",
        "cut in committed 4",
        "cut in verified 8",
        "cut in trial 9",
        "cut in switching 11",
    ]
    delays = {cut.name: (cut.shot.name, cut.delay_s, cut.second_s) for cut in cuts}
    assert delays["cut in received 1"] == ("received-0", 4.5, 0.0)
    assert delays["cut in verified 7"] == ("verified-1", 17.25, 59.1)
    assert delays["cut in switching 11"] == ("switching-1", 26.182, 67.4)
    assert delays["cut in trial 9"] == ("trial-1", 29.58, 0.0)
