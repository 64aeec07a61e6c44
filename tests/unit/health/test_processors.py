from __future__ import annotations

from pathlib import Path

import pytest

from agent.health.processors import on_arm, unreadable
from tests.support.boards import pi4

CPU = "sys/devices/system/cpu"


def test_everything_can_be_read(tmp_path: Path) -> None:
    assert unreadable(pi4(tmp_path)) == []


def test_one_of_the_lists_will_do(tmp_path: Path) -> None:
    (pi4(tmp_path) / CPU / "possible").write_text("")
    assert unreadable(tmp_path) == []


def test_hidden_folders_are_told_file_by_file(tmp_path: Path) -> None:
    (pi4(tmp_path) / CPU / "possible").unlink()
    (tmp_path / CPU / "present").unlink()
    assert unreadable(tmp_path) == [f"/{CPU}/possible", f"/{CPU}/present"]
    (tmp_path / "proc/cpuinfo").unlink()
    assert unreadable(tmp_path)[-1] == "/proc/cpuinfo"


@pytest.mark.parametrize(
    ("arch", "arm"), [("aarch64", True), ("armv7l", True), ("x86_64", False), ("riscv64", False)]
)
def test_arm(arch: str, arm: bool) -> None:
    assert on_arm(arch) is arm
