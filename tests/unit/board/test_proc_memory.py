from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from agent.board.proc import Memory, _table, read_memory
from tests.support.boards import MEMINFO, write


def test_memory_and_swap(tmp_path: Path) -> None:
    assert read_memory(write(tmp_path, {"proc/meminfo": MEMINFO})) == Memory(3793, 3000, 199, 99)


def test_an_old_kernel_does_not_tell_what_is_available(tmp_path: Path) -> None:
    assert read_memory(write(tmp_path, {"proc/meminfo": "MemTotal: 2048 kB\n"})) == Memory(2)


def test_nothing_can_be_read(tmp_path: Path) -> None:
    assert read_memory(tmp_path) == Memory()


@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    assert all(isinstance(number, int) for number in _table(text).values())
