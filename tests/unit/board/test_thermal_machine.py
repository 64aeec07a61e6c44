from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from agent.board.process import resident_mb
from agent.board.processors import OtherLoad


def test_memory_grows_with_what_is_held() -> None:
    before = resident_mb()
    with mmap.mmap(-1, 64 << 20) as held:  # pages of its own: a heap may have had these already
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
        assert resident_mb() - before == pytest.approx(len(held) / 2**20, abs=16)


def test_what_others_use_of_the_processor(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 1 2 3\n")
    busy = OtherLoad(stat)
    stat.write_text("cpu  160 0 140 850 150 0 0 0 0 0\ncpu0 1 2 3\n")
    assert busy.share() == pytest.approx(100 / 300, abs=0.01)
    stat.write_text("cpu  160 0 140 850 150 0 0 0 0 0\n")
    assert OtherLoad(stat).share() == 0.0


@pytest.mark.parametrize("text", ["", "nothing\n", "cpu one two\n"])
def test_a_kernel_that_does_not_tell_says_nothing_is_busy(tmp_path: Path, text: str) -> None:
    (tmp_path / "stat").write_text(text)
    assert OtherLoad(tmp_path / "stat").share() == OtherLoad(tmp_path / "gone").share() == 0.0


def test_what_own_children_use_is_not_counted(tmp_path: Path) -> None:
    busy = OtherLoad(tmp_path / "gone")
    subprocess.run([sys.executable, "-c", "for _ in range(10**6): pass"], check=True)
    assert busy.share() == 0.0
