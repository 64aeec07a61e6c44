"""What the log has of the governor's changes and of broken promises."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config.features import StreamBudget
from agent.features.governor.governing import BrokenPromises, ChangeLog
from agent.features.governor.steps import EVERYTHING, OFF, ROOM, Change, Decision

NAMES = ("front", "back", "yard")
WHY = "front infers 1.3 of 5 pictures per second"


def stride(stream: str, number: int, why: str = WHY) -> Change:
    return Change(stream, f"one picture in {number} is inferred", why)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> ChangeLog:
    caplog.set_level(logging.INFO)
    return ChangeLog()


def test_the_newest_change_of_a_stream_is_told_at_once_and_then_once_a_minute(
    log: ChangeLog, caplog: pytest.LogCaptureFixture
) -> None:
    log.update([stride("back", 2)], 0.0)
    log.update([stride("back", 3)], 20.0)
    log.update([Change("back", EVERYTHING, ROOM), stride("yard", 2)], 40.0)
    for second in range(41, 200):
        log.update([], second)
    assert caplog.messages == [
        f"stream back: one picture in 2 is inferred: {WHY}",
        f"stream yard: one picture in 2 is inferred: {WHY}",
        f"stream back: {EVERYTHING}: {ROOM}",
    ]


def test_the_event_queue_is_told_without_a_name(log: ChangeLog, caplog: pytest.LogCaptureFixture) -> None:
    log.update([Change("", "each event is synced at once again", ROOM)], 0.0)
    assert caplog.messages == [f"each event is synced at once again: {ROOM}"]


def test_what_is_configured_is_told_at_once_however_often_something_changes(
    log: ChangeLog, caplog: pytest.LogCaptureFixture
) -> None:
    for second in range(300):
        log.update([stride("back", 2 + second % 2)], second)
    log.update([Change("back", EVERYTHING, OFF)], 300.0)
    assert caplog.messages[-1].startswith(f"stream back: {EVERYTHING}")


def test_each_change_is_told_with_level_debug(log: ChangeLog, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for second in range(50):
        log.update([stride("back", 2 + second % 2)], second)
    assert sum(record.levelno == logging.DEBUG for record in caplog.records) == 50


class Lines(logging.Handler):
    """Counts the lines of a log."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 6)), max_size=3), st.integers(1, 40))
def test_streams_that_flap_for_an_hour_tell_once_a_minute(flaps: list[tuple[str, int]], every_s: int) -> None:
    lines, logger, log = Lines(), logging.getLogger(ChangeLog.__module__), ChangeLog()
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    try:
        for second in range(3600):
            is_even = second // every_s % 2
            changes = [
                Change(name, EVERYTHING, ROOM) if is_even else stride(name, number) for name, number in flaps
            ]
            log.update(changes if second % every_s == 0 else [], second)
    finally:
        logger.removeHandler(lines)
        logger.setLevel(logging.NOTSET)
    assert lines.count <= 61 * len({name for name, _ in flaps})


FULL = {"front": StreamBudget()}
SLOW, OTHERS = "infers 5.0 of 8: this board is too slow for it", "infers 5.0 of 8: other programs use 60%"


def decided(unmet: dict[str, str], broken: dict[str, str] | None = None, *, is_there: bool = True) -> Decision:
    return Decision(FULL if is_there else {}, 0.0, (), {}, unmet, unmet if broken is None else broken)


def test_a_broken_promise_is_told_once_with_its_newest_figures_until_it_is_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    promises = BrokenPromises()
    for second in range(30):
        helped = {"front": f"infers {second} of 8: others give way for it"}
        unmet = {} if second % 4 == 3 else {"front": f"infers {second} of 8: this board is too slow for it"}
        promises.update(decided(unmet, unmet or helped), second)
        assert promises.why("front") == (unmet or helped)["front"]
    for second in range(30, 45):
        promises.update(decided({}), second)
    assert promises.why("front") == ""
    assert caplog.messages == [
        "stream front: infers 0 of 8: this board is too slow for it",
        "stream front: as promised again, after 30 s",
    ]


def test_a_promise_that_others_can_help_is_not_told_before_nothing_is_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    promises = BrokenPromises()
    promises.update(decided({}, {"front": "infers 5.0 of 8: others give way for it"}), 0.0)
    assert promises.why("front") == ""
    assert caplog.messages == []


def test_a_stream_that_comes_and_goes_with_a_broken_promise_is_told_every_ten_minutes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    promises = BrokenPromises()
    for second in range(1200):
        is_there = second % 12 < 6
        promises.update(
            decided({"front": SLOW if second % 2 else OTHERS} if is_there else {}, is_there=is_there), second
        )
        assert bool(promises.why("front")) is is_there
    assert len(caplog.messages) == 2


def test_the_board_is_told_to_be_within_its_limits_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    promises = BrokenPromises()
    promises.update(decided({"": "the board is at 90 °C"}), 0.0)
    for second in range(1, 12):
        promises.update(decided({}), second)
    assert caplog.messages == ["the board is at 90 °C", "the board is within its limits again, after 1 s"]
