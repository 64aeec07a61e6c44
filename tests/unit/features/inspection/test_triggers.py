"""The reject output: pulses in time, for the right part, and for none after the stream has stopped."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest

from agent.comms.messages import PartVerdict
from agent.config.features import InspectionConfig
from agent.features.inspection.rules import ClosedPart
from agent.features.inspection.triggers import RejectOutput, Trigger
from tests.support.publishing import wait_for

_KEYS = count(1)


class Pin:
    """A reject output that records when it is switched."""

    def __init__(self) -> None:
        self.switched: list[tuple[bool, float]] = []
        self.is_closed = False

    def set(self, *, active: bool) -> None:
        assert not self.is_closed
        self.switched.append((active, time.monotonic()))

    def close(self) -> None:
        self.is_closed = True

    @property
    def pulses(self) -> int:
        return sum(active for active, _ in self.switched)


def rejecting(pin: Pin, **keys: Any) -> RejectOutput:
    return RejectOutput("line", pin, InspectionConfig(**{"trigger": "command", "reject_pulse_s": 0.02, **keys}))


def triggered(part: str = "a") -> Trigger:
    return Trigger(next(_KEYS), part, time.monotonic_ns(), datetime.now(UTC))


def closed(one: Trigger, kind: Any = "ng") -> ClosedPart:
    return ClosedPart(one.key, PartVerdict(one.part, kind, "red", 0.9, 1, one.at), one.now_ns)


def test_a_part_that_is_not_ok_is_pulsed_out_at_once() -> None:
    pin = Pin()
    output, one = rejecting(pin), triggered()
    output.expect(one)
    assert output.decide(closed(one), reject=True)
    wait_for(lambda: len(pin.switched) == 2)
    (on, began), (off, ended) = pin.switched
    assert (on, off) == (True, False)
    assert ended - began >= 0.019
    output.close()
    assert pin.is_closed


def test_a_part_that_is_ok_is_not() -> None:
    pin = Pin()
    output, one = rejecting(pin, deadline_s=2.0), triggered()
    output.expect(one)
    assert not output.decide(closed(one, "ok"), reject=False)
    time.sleep(2.2)
    output.close()
    assert pin.switched == []


def test_the_pulse_comes_when_the_part_is_at_the_ejector() -> None:
    pin = Pin()
    output, one = rejecting(pin, deadline_s=0.1, reject_after_s=0.3), triggered()
    output.expect(one)
    output.decide(closed(one), reject=True)
    wait_for(lambda: pin.switched)
    assert pin.switched[0][1] - one.now_ns / 1e9 >= 0.3
    output.close()


def test_a_part_of_which_no_verdict_comes_is_rejected_once_and_that_is_told() -> None:
    pin = Pin()
    output, one = rejecting(pin, deadline_s=0.05), triggered()
    output.expect(one)
    wait_for(lambda: pin.pulses == 1)
    assert output.decide(closed(one, "ok"), reject=False), "it has acted, whatever is found now"
    time.sleep(0.05)
    output.close()
    assert pin.pulses == 1


def test_equal_ids_have_a_pulse_each() -> None:
    pin = Pin()
    output = rejecting(pin, deadline_s=0.1, reject_after_s=3.0)
    bad, good = triggered("LOT7"), triggered("LOT7")
    for one in (bad, good):
        output.expect(one)
    output.decide(closed(bad), reject=True)
    output.decide(closed(good, "ok"), reject=False)
    wait_for(lambda: pin.pulses == 1)
    output.close()


def test_doubtful_parts_pass_where_the_line_wants_that() -> None:
    pin = Pin()
    output = rejecting(pin, deadline_s=0.03, reject_unsure=False)
    output.expect(triggered())
    time.sleep(0.06)
    output.close()
    assert pin.switched == []


def test_a_closing_output_pulses_for_no_part_that_is_not_there_yet(caplog: pytest.LogCaptureFixture) -> None:
    pin = Pin()
    output, one, other = rejecting(pin, deadline_s=60.0, reject_after_s=60.0), triggered(), triggered("b")
    output.expect(one)
    output.expect(other)
    output.decide(closed(one), reject=True)
    output.close()
    assert (pin.switched, pin.is_closed) == ([], True)
    assert "2 parts on the way pass unrejected" in caplog.text


def test_a_pulse_that_runs_when_it_closes_is_ended() -> None:
    pin = Pin()
    output, one = rejecting(pin, reject_pulse_s=30.0), triggered()
    output.decide(closed(one), reject=True)
    wait_for(lambda: pin.pulses == 1)
    output.close()
    assert pin.is_closed
    time.sleep(0.05)  # its thread switches nothing that is closed
    assert len(pin.switched) == 1


def test_parts_close_together_hold_the_output() -> None:
    pin = Pin()
    output = rejecting(pin, reject_pulse_s=2.0)
    for name in ("a", "b"):
        output.decide(closed(triggered(name)), reject=True)
        time.sleep(0.1)
    wait_for(lambda: len(pin.switched) == 2)
    output.close()
    assert pin.switched[1][1] - pin.switched[0][1] >= 2.08


def test_a_broken_output_is_told_once_and_the_line_runs_on(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Pin):
        def set(self, *, active: bool) -> None:
            super().set(active=active)
            raise OSError("no chip")

    pin = Broken()
    output = rejecting(pin)
    output.decide(closed(triggered()), reject=True)
    wait_for(lambda: len(pin.switched) == 2)
    output.close()
    assert sum("reject output fails" in one.message for one in caplog.records) == 1
