from __future__ import annotations

import math
import time

import pytest

from agent.storage.spool.pending import LINGER_S
from agent.storage.spool.writer import WriteSchedule


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Its only element is what the monotonic clock shows, s."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_without_anything_to_write_the_next_look_ends_the_pause(clock: list[float]) -> None:
    table = WriteSchedule()
    assert table.pause(math.inf) == 60.0
    clock[0] += 59.0
    assert (table.look(), table.pause(math.inf)) == (False, 1.0)
    clock[0] += 1.0
    assert (table.look(), table.look()) == (True, False)
    assert table.pause(math.inf) == 60.0


def test_what_is_due_ends_the_pause(clock: list[float]) -> None:
    table = WriteSchedule()
    assert table.pause(1003.0) == 3.0
    assert table.pause(-math.inf) <= 0.0


def test_a_writer_that_sleeps_long_is_woken_for_what_is_patient_and_one_that_has_just_written_wakes_by_itself(
    clock: list[float],
) -> None:
    table = WriteSchedule()
    table.pause(math.inf)
    assert table.is_late_for(1005.0)
    table.wrote(done=True)
    assert table.pause(math.inf) == LINGER_S
    assert not table.is_late_for(1005.0)


def test_a_disk_that_failed_is_tried_again_later(clock: list[float]) -> None:
    table = WriteSchedule()
    table.wrote(done=True)
    assert table.retry_at == 0.0
    table.wrote(done=False)
    assert table.retry_at == 1005.0


def test_a_look_can_be_asked_for(clock: list[float]) -> None:
    table = WriteSchedule()
    table.look_now()
    assert table.pause(math.inf) == 0.0
    assert (table.look(), table.look()) == (True, False)
