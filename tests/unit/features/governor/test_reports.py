"""When a broken promise is told: when it begins, has another reason, is replaced, and is kept again."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from agent.features.governor.readings import Decision, StreamReading
from agent.features.governor.reports import BrokenPromises

FRONT = {"front": StreamReading(min_fps=8.0)}
SLOW, OTHERS = "infers 5.0 of 8: this board is too slow for it", "infers 5.0 of 8: other programs use 60%"


def decided(unmet: dict[str, str] | None = None, broken: dict[str, str] | None = None) -> Decision:
    return Decision({}, 0.0, (), {}, unmet or {}, broken if broken is not None else unmet or {})


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    class Messages(list[str]):
        def __eq__(self, other: object) -> bool:
            return [record.getMessage() for record in caplog.records] == other

    caplog.set_level("INFO")
    return Messages()


def test_a_broken_promise_is_told_once_with_its_newest_figures_until_it_is_kept(said: list[str]) -> None:
    promises = BrokenPromises()
    for second in range(30):
        helped = {"front": f"infers {second} of 8: others give way for it"}
        unmet = {} if second % 4 == 3 else {"front": f"infers {second} of 8: this board is too slow for it"}
        promises.update(decided(unmet, unmet or helped), FRONT, second)
        assert promises.why("front") == (unmet or helped)["front"]
    for second in range(30, 45):
        promises.update(decided(), FRONT, second)
    assert promises.why("front") == ""
    assert said == [
        "stream front: infers 0 of 8: this board is too slow for it",
        "stream front: as promised again, after 30 s",
    ]


def test_another_reason_is_told_after_a_minute_and_then_more_and_more_rarely(
    caplog: pytest.LogCaptureFixture,
) -> None:
    promises, at_s = BrokenPromises(), list[int]()
    for second in range(3600):
        why = SLOW if second % 2 else OTHERS
        promises.update(decided({"front": why}), FRONT, second)
        at_s += [second] * (len(caplog.records) - len(at_s))
    assert at_s[:4] == [0, 61, 182, 423]
    assert len(at_s) < 10


def test_promises_that_are_broken_for_one_reason_are_one_line(said: list[str]) -> None:
    promises = BrokenPromises()
    back = "infers 2.0 of 4: this board is too slow for it"
    promises.update(decided({"front": SLOW, "back": back}), {**FRONT, "back": StreamReading(min_fps=4.0)}, 0.0)
    promises.update(decided({"front": OTHERS, "back": back}), {**FRONT, "back": StreamReading(min_fps=4.0)}, 70.0)
    assert said == [
        "stream front: infers 5.0 of 8; stream back: infers 2.0 of 4: this board is too slow for it",
        f"stream front: {OTHERS}",
    ]


def test_a_promise_for_which_others_give_way_soon_is_not_told_yet(said: list[str]) -> None:
    promises, waits = BrokenPromises(), {"front": "infers 5.0 of 8: others give way for it in 9 s"}
    promises.update(replace(decided(waits), waiting=frozenset({"front"})), FRONT, 0.0)
    assert promises.why("front") == waits["front"]
    assert said == []
    promises.update(decided({"front": SLOW}), FRONT, 9.0)
    assert said == [f"stream front: {SLOW}"]


def test_a_promise_that_others_can_help_is_not_told_before_nothing_is_left(said: list[str]) -> None:
    promises = BrokenPromises()
    promises.update(decided({}, {"front": "infers 5.0 of 8: others give way for it"}), FRONT, 0.0)
    assert promises.why("front") == ""
    assert said == []


@pytest.mark.parametrize(
    ("promised", "told"),
    [
        (StreamReading(min_fps=5.0), ["stream front: now promised 5 pictures per second"]),
        (StreamReading(max_latency_ms=90.0), ["stream front: now promised 90 ms from capture to result"]),
        (
            StreamReading(min_fps=5.0, max_latency_ms=90.0),
            ["stream front: now promised 5 pictures per second and 90 ms from capture to result"],
        ),
        (StreamReading(), ["stream front: nothing is promised any more"]),
        (None, []),
    ],
    ids=["rate", "latency", "both", "none", "the stream is lost"],
)
def test_a_promise_that_is_replaced_is_not_told_as_kept(
    promised: StreamReading | None, told: list[str], said: list[str]
) -> None:
    promises = BrokenPromises()
    promises.update(decided({"front": SLOW}), FRONT, 0.0)
    for second in range(1, 20):
        promises.update(decided(), {"front": promised} if promised is not None else {}, second)
    assert promises.why("front") == ""
    assert said == [f"stream front: {SLOW}", *told]


def test_a_replaced_promise_that_is_broken_too_is_told_anew(said: list[str]) -> None:
    promises, less = BrokenPromises(), "infers 5.0 of 6: this board is too slow for it"
    promises.update(decided({"front": SLOW}), FRONT, 0.0)
    promises.update(decided({"front": less}), {"front": StreamReading(min_fps=6.0)}, 1.0)
    assert promises.why("front") == less
    assert said == [
        f"stream front: {SLOW}",
        "stream front: now promised 6 pictures per second",
        f"stream front: {less}",
    ]


def test_time_in_which_nothing_was_decided_does_not_count_as_kept(said: list[str]) -> None:
    promises = BrokenPromises()
    promises.update(decided({"front": SLOW}), FRONT, 0.0)
    promises.update(decided(), FRONT, 12.0)
    assert promises.why("front") == SLOW
    assert said == [f"stream front: {SLOW}"]


def test_a_stream_that_comes_and_goes_with_a_broken_promise_is_told_every_ten_minutes(said: list[str]) -> None:
    promises = BrokenPromises()
    for second in range(1200):
        is_there = second % 12 < 6
        promises.update(decided({"front": SLOW} if is_there else {}), FRONT if is_there else {}, second)
    assert said == [f"stream front: {SLOW}"] * 2


def test_nothing_is_broken_while_nothing_is_governed(said: list[str]) -> None:
    promises = BrokenPromises()
    promises.update(decided({"front": SLOW, "": "the board is at 90 °C"}), FRONT, 0.0)
    promises.update(decided(), None, 1.0)
    assert (promises.why("front"), promises.why("")) == ("", "")
    assert said == [f"stream front: {SLOW}", "the board is at 90 °C"]


def test_the_board_is_told_to_be_within_its_limits_again(said: list[str]) -> None:
    promises = BrokenPromises()
    promises.update(decided({"": "the board is at 90 °C"}), {}, 0.0)
    for second in range(1, 12):
        promises.update(decided(), {}, second)
    assert said == [
        "the board is at 90 °C",
        "the board is within its limits again, after 1 s",
    ]
