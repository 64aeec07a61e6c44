"""A source that comes and goes fills no log."""

from __future__ import annotations

import logging

import pytest

from agent.daemon.streams.outages import OutageLog


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def run(log: OutageLog, clock: Clock, seconds: float) -> None:
    """Let time pass, with the polls of a stream's thread."""
    until = clock.now_s + seconds
    while clock.now_s < until:
        clock.now_s += 1.0
        log.poll()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "agent.daemon.streams.stream")
    return caplog


def test_an_outage_is_told_when_it_begins_and_when_it_ends(said: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    log = OutageLog("front", clock)
    for _ in range(2):
        log("lost", "no picture for 10 s")
        log("running", "back after 12 s")
        run(log, clock, 60.0)
    assert (
        said.messages
        == [
            "stream front: lost: no picture for 10 s",
            "stream front: running: back after 12 s",
        ]
        * 2
    )


def test_one_that_comes_and_goes_is_told_once_and_again_when_it_is_steady(said: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    log = OutageLog("front", clock)
    for _ in range(20):
        log("lost", "the server stopped sending")
        log("lost", "refused")  # the exact reason
        run(log, clock, 2.0)
        log("running", "back after 2 s")
        run(log, clock, 3.0)
    assert len(said.messages) == 7, "three beginnings, with a reason more of the first two, and two ends"
    assert "it comes and goes" in said.messages[-1]
    run(log, clock, 60.0)
    assert len(said.messages) == 8
    assert "steady for 30 s, after it was lost 20 times in 97 s" in said.messages[-1]
    log("lost", "no picture for 10 s")
    assert said.messages[-1] == "stream front: lost: no picture for 10 s"
