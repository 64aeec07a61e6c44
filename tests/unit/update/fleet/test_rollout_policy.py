"""Policy of a rollout: an unreachable board has not failed, and a canary has to prove its health."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from agent.update.fleet.board import BAD, GOOD, KINDS, BoardOutcome, Kind
from agent.update.fleet.rollout import stop_reason

OUTCOMES = some.lists(some.sampled_from(KINDS), max_size=30).map(
    lambda kinds: [BoardOutcome(f"b{number}", kind) for number, kind in enumerate(kinds)]
)
SHARES = some.floats(0, 1)


def of(*kinds: Kind) -> list[BoardOutcome]:
    return [BoardOutcome(f"b{number}", kind) for number, kind in enumerate(kinds)]


@pytest.mark.parametrize(
    ("kinds", "share", "canary", "stops"),
    [
        (("updated",), 0.0, True, False),
        (("current",), 0.0, True, False),
        (("rolled_back",), 1.0, True, True),
        (("unreachable",), 1.0, True, True),
        (("updated", "unreachable"), 1.0, True, True),
        (("updated", "unreachable", "unreachable"), 0.0, False, False),
        (("updated", "rolled_back", "unreachable", "unreachable"), 0.2, False, True),
        (("updated", "updated", "updated", "updated", "failed"), 0.2, False, False),
        (("updated", "updated", "updated", "updated", "failed"), 0.19, False, True),
        (("updated", "refused"), 0.5, False, False),
        (("unreachable", "unreachable"), 1.0, False, True),
        ((), 0.0, False, False),
    ],
)
def test_what_stops_a_rollout(kinds: tuple[Kind, ...], share: float, canary: bool, stops: bool) -> None:
    assert bool(stop_reason(of(*kinds), share, canary=canary)) == stops


def test_the_reason_names_the_boards() -> None:
    said = stop_reason(of("updated", "failed", "refused"), 0.1, canary=False)
    assert said == "2 of 3 boards failed (b1, b2), 10% may"
    assert stop_reason([BoardOutcome("b1", "failed")], 0.1, canary=False) == "1 of 1 board failed (b1), 10% may"


@given(OUTCOMES, SHARES)
def test_boards_that_are_away_never_stop_what_would_go_on_without_them(
    outcomes: list[BoardOutcome], share: float
) -> None:
    reached = [one for one in outcomes if one.kind != "unreachable"]
    if reached:
        assert stop_reason(outcomes, share, canary=False) == stop_reason(reached, share, canary=False)


@given(OUTCOMES, SHARES, SHARES)
def test_who_allows_more_never_stops_earlier(outcomes: list[BoardOutcome], one: float, other: float) -> None:
    less, more = sorted((one, other))
    if stop_reason(outcomes, more, canary=False):
        assert stop_reason(outcomes, less, canary=False)


@given(OUTCOMES)
def test_canaries_pass_only_if_every_one_has_it(outcomes: list[BoardOutcome]) -> None:
    assert bool(stop_reason(outcomes, 1.0, canary=True)) == any(not one.is_good for one in outcomes)


def test_every_kind_is_good_or_bad_or_away() -> None:
    assert {*GOOD, *BAD, "unreachable"} == set(KINDS)
