from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from agent.board.vcgencmd import FirmwareQuery, ask_firmware, has_firmware
from tests.support.boards import write

EVER_S = 50.0


def program(folder: Path, script: str) -> str:
    path = folder / "vcgencmd"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


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


def test_a_program_that_keeps_failing_is_not_started_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    started = tmp_path / "started"
    query = FirmwareQuery("get_throttled", program=program(tmp_path, f"echo x >>{started}; exit 1"))
    with caplog.at_level(logging.INFO):
        ends = time.monotonic() + EVER_S
        while not caplog.records and time.monotonic() < ends:
            assert query.poll() == ""
            time.sleep(0.01)
        for _ in range(10):
            query.poll()
    assert started.read_text().split() == ["x"] * 3
    assert len(caplog.records) == 1


def test_polling_does_not_wait_for_a_program_that_hangs(tmp_path: Path) -> None:
    seconds = iter(range(0, 100, 10))
    query = FirmwareQuery(
        "get_throttled", program=program(tmp_path, "exec sleep 60"), clock=lambda: float(next(seconds))
    )
    began = time.monotonic()
    assert [query.poll() for _ in range(6)] == [""] * 6
    assert time.monotonic() - began < EVER_S


def test_the_device_tells_whether_there_is_a_firmware(tmp_path: Path) -> None:
    assert not has_firmware(tmp_path)
    assert has_firmware(write(tmp_path, {"dev/vcio": ""}))
