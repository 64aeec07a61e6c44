from __future__ import annotations

from pathlib import Path

import pytest

from agent.board.proc import cpu_info_unreadable
from tests.support.boards import pi4

CPU = "sys/devices/system/cpu"
LISTS = [f"/{CPU}/possible", f"/{CPU}/present"]


def test_everything_can_be_read(tmp_path: Path) -> None:
    assert cpu_info_unreadable(pi4(tmp_path), "aarch64") == []


def test_one_of_the_lists_will_do(tmp_path: Path) -> None:
    (pi4(tmp_path) / CPU / "possible").write_text("")
    assert cpu_info_unreadable(tmp_path, "aarch64") == []


@pytest.mark.parametrize(
    ("arch", "hidden"),
    [("aarch64", LISTS), ("armv7l", LISTS), ("x86_64", [])],
)
def test_only_arm_needs_the_lists(tmp_path: Path, arch: str, hidden: list[str]) -> None:
    (pi4(tmp_path) / CPU / "possible").unlink()
    (tmp_path / CPU / "present").unlink()
    assert cpu_info_unreadable(tmp_path, arch) == hidden


def test_every_processor_needs_its_description(tmp_path: Path) -> None:
    (pi4(tmp_path) / "proc/cpuinfo").unlink()
    assert (
        cpu_info_unreadable(tmp_path, "aarch64") == cpu_info_unreadable(tmp_path, "x86_64") == ["/proc/cpuinfo"]
    )


@pytest.mark.parametrize("arch", ["aarch64", "x86_64"])
def test_a_description_that_is_empty_turns_nothing_off(tmp_path: Path, arch: str) -> None:
    (pi4(tmp_path) / "proc/cpuinfo").write_text("")
    assert cpu_info_unreadable(tmp_path, arch) == []
