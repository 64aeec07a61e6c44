from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from agent.board.identity import read_board
from agent.board.proc import Memory
from agent.cli.checks.board import check_board, check_memory, check_system
from tests.support.boards import pi4


def test_a_board_that_is_well(tmp_path: Path) -> None:
    found = {one.name: one for one in check_board(pi4(tmp_path))}
    assert {one.state for one in found.values()} == {"ok"}
    assert found["model"].value == "Raspberry Pi 4 Model B Rev 1.1"
    assert found["SoC"].value == "bcm2711"
    assert found["memory"].value == "3000 of 3793 MB available"


def test_a_board_of_which_nothing_can_be_read(tmp_path: Path) -> None:
    found = {one.name: one for one in check_board(tmp_path)}
    assert found["memory"].state == "warning"
    assert found["model"].value == "not reported by this machine"


@pytest.mark.parametrize(
    ("memory", "states"),
    [
        (Memory(4000, 3000, 200, 100), ["ok", "ok"]),
        (Memory(4000, 3000), ["ok"]),
        (Memory(4000, 200), ["warning"]),
        (Memory(4000, 50), ["problem"]),
        (Memory(426, 260), ["ok", "warning"]),
        (Memory(), ["warning"]),
    ],
)
def test_memory(memory: Memory, states: list[str]) -> None:
    found = list(check_memory(memory))
    assert [one.state for one in found] == states
    assert all(one.advice for one in found if one.state != "ok")


@pytest.mark.parametrize(
    ("arch", "bits", "state"), [("aarch64", 64, "ok"), ("aarch64", 32, "warning"), ("armv7l", 32, "ok")]
)
def test_a_32_bit_system_on_a_64_bit_kernel(tmp_path: Path, arch: str, bits: int, state: str) -> None:
    assert check_system(replace(read_board(pi4(tmp_path)), arch=arch), bits).state == state
