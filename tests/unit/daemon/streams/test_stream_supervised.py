"""Supervision of a stream: it ends, fails and is restarted, or stays failed."""

from __future__ import annotations

import pytest

from agent.comms.topics import Topics
from agent.config import StreamConfig
from agent.daemon.streams.services import State, StreamServices
from agent.daemon.streams.stream import HANGING_MAX, Stream
from agent.errors import BackendError, ModelError
from tests.support.doubles import Kept
from tests.support.publishing import wait_for


class Run(Stream):
    """Ends as it is told to, attempt by attempt; after that it runs until it is stopped."""

    def __init__(self, *ends: Exception | None, state: State = "starting", restart_first_s: float = 0.01) -> None:
        kept = Kept()
        services = StreamServices(Topics("vedette", "porch"), kept, kept, restart_first_s=restart_first_s)
        super().__init__("front", StreamConfig("test:", "nanodet"), services)
        self.state = state
        self.ends, self.attempts, self.closed = list(ends), 0, 0

    @property
    def _hanging_max(self) -> int:
        return HANGING_MAX

    def _run(self) -> None:
        self.attempts += 1
        if not self.ends:
            self.state = "running"
            self._stop.wait()
        elif (end := self.ends.pop(0)) is not None:
            raise end

    def _close(self) -> None:
        self.closed += 1


def test_what_ends_by_itself_is_over() -> None:
    run = Run(None)
    run.start()
    assert run.join(60.0)
    assert (run.state, run.finished, run.attempts, run.closed) == ("ended", True, 1, 1)


def test_what_breaks_by_a_defect_or_its_device_is_started_again_and_closed_each_time() -> None:
    run = Run(BackendError("gone"), RuntimeError("a defect"))
    run.start()
    wait_for(lambda: run.state == "running")
    assert (run.attempts, run.closed, run.finished) == (3, 2, False)
    run.ask_to_stop()
    assert run.join(60.0)
    assert run.closed == 3


def test_broken_input_stays_broken_with_its_reason() -> None:
    run = Run(ModelError("no such model"))
    run.start()
    assert run.join(60.0)
    assert (run.state, run.detail, run.finished, run.attempts) == ("failed", "no such model", True, 1)


def test_one_that_is_to_be_tried_again_is_not_over_and_can_be_stopped_while_it_waits() -> None:
    run = Run(BackendError("gone"), restart_first_s=60.0)
    run.start()
    wait_for(lambda: run.closed == 1)
    assert (run.state, run.finished) == ("failed", False)
    run.ask_to_stop()
    assert run.join(60.0)


@pytest.mark.parametrize("state", ["disabled", "failed"])
def test_what_is_off_or_refused_does_not_start(state: State) -> None:
    run = Run(state=state)
    run.start()
    assert (run.join(0.0), run.attempts, run.finished) == (True, 0, True)


def test_what_was_prepared_and_never_begun_is_closed() -> None:
    run = Run()
    run.ask_to_stop()
    run.start()
    assert run.join(60.0)
    assert (run.attempts, run.closed) == (0, 1)


def test_while_two_hang_a_third_waits() -> None:
    before = [Run(), Run()]
    for one in before:
        one.start()
    wait_for(lambda: all(one.state == "running" for one in before))
    run = Run()
    run.start(before)
    wait_for(lambda: run.detail)
    assert (run.attempts, run.detail) == (0, "waiting for 2 earlier inferences of this stream to end")
    before[0].ask_to_stop()
    wait_for(lambda: run.state == "running")
    assert run.detail == ""
    for one in (run, before[1]):
        one.ask_to_stop()
        assert one.join(60.0)
