"""A device that is opened again and again, and what may come in between."""

from __future__ import annotations

import threading
from typing import cast

import pytest

from agent.compute.infer.failover import DeviceReopener
from agent.compute.infer.worker import WorkerSession
from agent.errors import BackendError
from tests.support.publishing import wait_for


class Device:
    """Device with the methods that `DeviceReopener` uses."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


class Opens:
    """Gives devices, or the errors that are in the way."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.given = list(errors), list[Device]()
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self) -> WorkerSession:
        self.gate.wait(60.0)
        if self.errors:
            raise self.errors.pop(0)
        self.given.append(Device())
        return cast("WorkerSession", self.given[-1])


def test_a_device_that_is_there_is_taken_once() -> None:
    opens = Opens()
    recovery = DeviceReopener(opens, "model: gpu", 0.01)
    assert "is being opened" in recovery.reason
    recovery.start(10.0)
    assert recovery.is_ready
    assert recovery.take_ready() is cast("object", opens.given[0])
    assert (recovery.reason, recovery.take_ready()) == ("", None)
    recovery.close()
    assert opens.given[0].closed == 0


@pytest.mark.parametrize(
    "error", [BackendError("it is busy"), OSError(24, "Too many open files"), ZeroDivisionError("a defect")]
)
def test_whatever_is_in_the_way_it_is_tried_again(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    opens = Opens(error, error, error)
    recovery = DeviceReopener(opens, "model: gpu", 0.01)
    recovery.start(10.0)
    assert recovery.reason in str(error)
    wait_for(lambda: recovery.is_ready)
    assert recovery.take_ready() is not None
    assert caplog.text.count("the CPU answers until it comes back") == 1
    recovery.close()


def test_nobody_waits_for_a_device_that_hangs() -> None:
    opens = Opens()
    opens.gate.clear()
    recovery = DeviceReopener(opens, "model: gpu", 0.01)
    recovery.start(0.0)
    assert (recovery.is_ready, recovery.take_ready()) == (False, None)
    recovery.close()
    opens.gate.set()
    wait_for(lambda: opens.given and opens.given[0].closed == 1)
    assert not recovery.is_ready


def test_a_device_that_fails_soon_is_tried_less_and_less_often() -> None:
    opens = Opens()
    recovery = DeviceReopener(opens, "model: gpu", 0.01)
    recovery.start(10.0)
    pauses = []
    for _ in range(5):
        recovery.reopen(recovery.take_ready(), "it crashed")
        pauses.append(recovery._pause_s)
        wait_for(lambda: recovery.is_ready)
    assert pauses == [0.01, 0.02, 0.04, 0.08, 0.16]
    recovery.close()
    assert all(device.closed == 1 for device in opens.given)


def test_a_device_that_fails_after_a_long_time_is_tried_soon() -> None:
    recovery = DeviceReopener(Opens(), "model: gpu", 0.01, stable_s=0.0)
    recovery.start(10.0)
    for _ in range(3):
        recovery.reopen(recovery.take_ready(), "it crashed after a long time")
        assert recovery._pause_s == 0.01
        wait_for(lambda: recovery.is_ready)
    recovery.close()


def test_pauses_have_an_end() -> None:
    opens = Opens(*[BackendError("gone")] * 6)
    recovery = DeviceReopener(opens, "model: gpu", 0.01, longest_pause_s=0.03)
    recovery.start(10.0)
    wait_for(lambda: recovery.is_ready)
    assert recovery._pause_s == 0.03
    recovery.close()
