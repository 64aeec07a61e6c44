from __future__ import annotations

from pathlib import Path

import pytest

from agent.board.proc import Clock, ask_kernel, read_clock
from tests.support.boards import write


@pytest.mark.parametrize(("state", "synchronised"), [(0, True), (3, True), (5, False), (-1, None)])
def test_as_the_kernel_says(tmp_path: Path, state: int, synchronised: bool | None) -> None:
    assert read_clock(tmp_path, lambda: state) == Clock(synchronised, False)


def test_timesyncd_has_set_it(tmp_path: Path) -> None:
    write(tmp_path, {"run/systemd/timesync/synchronized": "", "sys/class/rtc/rtc0/name": "rpi-rtc"})
    assert read_clock(tmp_path, lambda: 5) == Clock(True, True)


def test_asking_the_kernel_is_allowed_or_refused() -> None:
    assert -1 <= ask_kernel() <= 5
