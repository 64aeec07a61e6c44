from __future__ import annotations

import itertools
import logging
import time
from pathlib import Path

import pytest

from agent.board.vcgencmd import FirmwareQuery, ask_firmware, has_firmware
from tests.support.boards import write
from tests.support.publishing import wait_for

EVER_S = 50.0


def program(folder: Path, script: str) -> str:
    path = folder / "vcgencmd"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def is_running(pid: int) -> bool:
    """True for a process that is neither gone nor dead and only not yet collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def answered(query: FirmwareQuery) -> str:
    ends = time.monotonic() + EVER_S
    while not (answer := query.poll()) and time.monotonic() < ends:
        time.sleep(0.01)
    return answer


def test_the_firmwares_answer(tmp_path: Path) -> None:
    echo = program(tmp_path, 'echo "throttled=0x50000 $1"')
    assert ask_firmware("get_throttled", program=echo) == "throttled=0x50000 get_throttled"
    assert answered(FirmwareQuery("get_throttled", program=echo)) == "throttled=0x50000 get_throttled"


@pytest.mark.parametrize(
    "script", ["exit 1", "exec sleep 60", "echo 'error=1 error_msg=\"Command not registered\"'"]
)
def test_a_program_that_fails_or_hangs_gives_no_answer(tmp_path: Path, script: str) -> None:
    assert ask_firmware("get_throttled", program=program(tmp_path, script), timeout_s=0.2) == ""


def test_a_program_that_is_missing_gives_no_answer(tmp_path: Path) -> None:
    missing = str(tmp_path / "vcgencmd")
    assert ask_firmware("get_throttled", program=missing) == ""
    query = FirmwareQuery("get_throttled", program=missing)
    assert [query.poll() for _ in range(5)] == [""] * 5


def starts_until_logged(query: FirmwareQuery, caplog: pytest.LogCaptureFixture) -> None:
    ends = time.monotonic() + EVER_S
    while not caplog.records and time.monotonic() < ends:
        query.poll()
        time.sleep(0.01)


def test_a_program_that_keeps_failing_is_started_later_and_later_and_works_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    started, now_s = tmp_path / "started", [0.0]
    query = FirmwareQuery(
        "get_throttled",
        program=program(tmp_path, f"echo x >>{started}; exit 1"),
        clock=lambda: now_s[0],
    )
    with caplog.at_level(logging.INFO):
        starts_until_logged(query, caplog)
        for _ in range(10):
            query.poll()
        assert started.read_text().split() == ["x"] * 3
        now_s[0] = 15.0
        query.poll()
        wait_for(lambda: started.read_text().split() == ["x"] * 4, EVER_S)
        now_s[0] = 20.0
        query.poll()
        now_s[0] = 34.0
        assert query.poll() == "", "the pause is twice as long"
        program(tmp_path, "echo throttled=0x1")
        now_s[0] = 400.0
        assert answered(query) == "throttled=0x1"
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"], "does not work; works again"


def test_polling_does_not_wait_for_a_program_that_hangs(tmp_path: Path) -> None:
    seconds = itertools.count(0.0, 10.0)
    query = FirmwareQuery(
        "get_throttled", program=program(tmp_path, "exec sleep 60"), clock=lambda: next(seconds)
    )
    began = time.monotonic()
    assert [query.poll() for _ in range(6)] == [""] * 6
    assert time.monotonic() - began < EVER_S


def test_what_a_program_has_started_is_killed_with_it_and_not_waited_for(tmp_path: Path) -> None:
    mark = tmp_path / "child"
    child = program(tmp_path, f"echo throttled=0x1; sleep 1000 & echo $! >{mark}.new; mv {mark}.new {mark}")
    began = time.monotonic()
    assert ask_firmware("get_throttled", program=child, timeout_s=EVER_S) == "throttled=0x1"
    assert time.monotonic() - began < EVER_S
    wait_for(lambda: not is_running(int(mark.read_text())), EVER_S)


def test_a_program_that_hangs_is_killed_with_what_it_has_started(tmp_path: Path) -> None:
    mark = tmp_path / "child"
    hangs = program(tmp_path, f"sleep 1000 & echo $! >{mark}.new; mv {mark}.new {mark}; sleep 1000")
    assert ask_firmware("get_throttled", program=hangs, timeout_s=2.0) == ""
    wait_for(lambda: not is_running(int(mark.read_text())), EVER_S)


def test_a_program_that_writes_without_end_is_killed(tmp_path: Path) -> None:
    assert ask_firmware("get_throttled", program=program(tmp_path, "exec yes"), timeout_s=0.5) == ""


def test_the_device_tells_whether_there_is_a_firmware(tmp_path: Path) -> None:
    assert not has_firmware(tmp_path)
    assert has_firmware(write(tmp_path, {"dev/vcio": ""}))
