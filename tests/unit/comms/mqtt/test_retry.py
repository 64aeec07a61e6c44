from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from agent.comms.mqtt import retry as pause_module
from agent.comms.mqtt.retry import Pause


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pause_module, "_STEP_S", 0.02)


def lasted(what: Callable[[], None]) -> float:
    began = time.monotonic()
    what()
    return time.monotonic() - began


def test_it_lasts_as_long_as_it_is_told() -> None:
    pause = Pause(threading.Event(), lambda: None)
    assert lasted(lambda: pause.wait(0.1)) >= 0.1
    assert lasted(lambda: pause.wait(0.1, by_clock=True)) >= 0.1


@pytest.mark.parametrize("by_clock", [False, True])
def test_it_ends_when_it_is_time_to_stop(by_clock: bool) -> None:
    stopping = threading.Event()
    threading.Timer(0.1, stopping.set).start()
    assert lasted(lambda: Pause(stopping, lambda: False).wait(60.0, by_clock=by_clock)) < 10.0


def test_a_clock_that_is_set_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    began, right = time.monotonic(), time.time
    monkeypatch.setattr(time, "time", lambda: right() if time.monotonic() > began + 0.2 else 1000.0)
    pause = Pause(threading.Event(), lambda: None)
    assert 0.1 < lasted(lambda: pause.wait(60.0, by_clock=True)) < 10.0


def test_a_clock_that_becomes_synchronised_ends_it_and_one_that_was_does_not() -> None:
    began = time.monotonic()
    pause = Pause(threading.Event(), lambda: time.monotonic() > began + 0.2)
    assert 0.1 < lasted(lambda: pause.wait(60.0, by_clock=True)) < 10.0
    assert lasted(lambda: pause.wait(0.1, by_clock=True)) >= 0.1
