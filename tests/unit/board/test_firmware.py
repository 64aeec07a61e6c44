from __future__ import annotations

from pathlib import Path

import pytest

from agent.board.firmware import Firmware, ask_firmware, has_firmware
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


def test_the_firmwares_answer(tmp_path: Path) -> None:
    echo = program(tmp_path, 'echo "throttled=0x50000 $1"')
    assert ask_firmware("get_throttled", program=echo) == "throttled=0x50000 get_throttled"


@pytest.mark.parametrize(
    "script", ["exit 1", "exec sleep 60", "echo 'error=1 error_msg=\"Command not registered\"'"]
)
def test_a_program_that_fails_or_hangs_gives_no_answer(tmp_path: Path, script: str) -> None:
    assert ask_firmware("get_throttled", program=program(tmp_path, script), timeout_s=0.2) == ""


def test_a_program_that_is_missing_gives_no_answer(tmp_path: Path) -> None:
    missing = str(tmp_path / "vcgencmd")
    assert ask_firmware("get_throttled", program=missing) == ""


def test_a_program_that_fails_is_started_again_after_pauses_that_grow(tmp_path: Path) -> None:
    answers, asked, now_s = ["", "", "throttled=0x1", "", "throttled=0x2"], list[float](), [0.0]

    def ask(command: str) -> str:
        asked.append(now_s[0])
        return answers.pop(0)

    firmware = Firmware(write(tmp_path, {"dev/vcio": ""}), ask, lambda: now_s[0])
    found = []
    for now_s[0] in (0.0, 5.0, 10.0, 20.0, 30.0, 31.0, 35.0, 41.0):
        found.append(firmware.ask("get_throttled"))
    assert asked == [0.0, 10.0, 30.0, 31.0, 41.0]
    assert found == ["", "", "", "", "throttled=0x1", "", "", "throttled=0x2"]


def test_nothing_is_asked_of_a_board_without_the_device(tmp_path: Path) -> None:
    assert Firmware(tmp_path, lambda command: "throttled=0x1").ask("get_throttled") == ""


def test_a_program_that_hangs_is_killed_with_what_it_has_started(tmp_path: Path) -> None:
    mark = tmp_path / "child"
    hangs = program(tmp_path, f"sleep 1000 & echo $! >{mark}.new; mv {mark}.new {mark}; sleep 1000")
    assert ask_firmware("get_throttled", program=hangs, timeout_s=2.0) == ""
    wait_for(lambda: not is_running(int(mark.read_text())), EVER_S)


def test_the_device_tells_whether_there_is_a_firmware(tmp_path: Path) -> None:
    assert not has_firmware(tmp_path)
    assert has_firmware(write(tmp_path, {"dev/vcio": ""}))
