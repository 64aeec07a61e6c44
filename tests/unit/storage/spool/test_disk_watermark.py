from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from agent.storage.spool.disk import BLOCK, Watermark


@pytest.mark.parametrize(
    ("text", "value", "trusted"),
    [("00000000000000000042 disk\n", 42, True), ("00000000000000000042 lost\n", 42, False), ("42 what", 0, True)],
)
def test_the_watermark_reads_what_it_wrote_and_nothing_else(
    tmp_path: Path, text: str, value: int, trusted: bool
) -> None:
    path = tmp_path / "spool.seq"
    path.write_text(text)
    mark = Watermark(path)
    assert (mark.value, mark.trusted) == (value, trusted)
    mark.reserve(value + 1)
    mark.trust(False)
    again = Watermark(path)
    assert (again.value, again.trusted) == (value + 1 + BLOCK, False)
    assert again.after() == value + 2 + BLOCK


def test_without_a_watermark_a_number_comes_from_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Watermark(tmp_path / "none").after() > 1_700_000_000_000_000
    monkeypatch.setattr(time, "time", lambda: 5.0)
    numbers = [Watermark(tmp_path / "none").after() for _ in range(2)]
    assert numbers[0] != numbers[1]
    assert all(1_735_689_600_000_000 <= number <= 1_767_225_600_000_000 for number in numbers)


def test_a_pipe_in_its_place_holds_nothing_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "spool.seq")
    assert not Watermark(tmp_path / "spool.seq").known
