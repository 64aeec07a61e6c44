from __future__ import annotations

from pathlib import Path

from agent.board.proc import CPUFREQ, Frequency, read_frequencies
from tests.support.boards import pi4, write


def test_a_group_of_processors(tmp_path: Path) -> None:
    assert read_frequencies(pi4(tmp_path) / CPUFREQ) == [Frequency("0 1 2 3", 600, 1800, 1800, "ondemand")]


def test_a_driver_that_does_not_tell(tmp_path: Path) -> None:
    write(tmp_path, {"policy0/scaling_cur_freq": "<unknown>\n"})
    assert read_frequencies(tmp_path) == [Frequency("policy0", 0, 0, 0, "")]


def test_no_scaling(tmp_path: Path) -> None:
    assert read_frequencies(tmp_path / "nothing") == []
