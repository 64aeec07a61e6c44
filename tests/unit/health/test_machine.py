from __future__ import annotations

from pathlib import Path

import pytest

from agent.health.machine import resident_mb, temperature_c


def zone(folder: Path, number: int, text: str) -> None:
    (folder / f"thermal_zone{number}").mkdir()
    (folder / f"thermal_zone{number}" / "temp").write_text(text)


def test_the_hottest_zone_counts(tmp_path: Path) -> None:
    zone(tmp_path, 0, "41250\n")
    zone(tmp_path, 1, "63500\n")
    assert temperature_c(tmp_path) == 63.5


def test_a_zone_that_does_not_tell_is_left_out(tmp_path: Path) -> None:
    zone(tmp_path, 0, "off")
    (tmp_path / "thermal_zone1" / "temp").mkdir(parents=True)
    zone(tmp_path, 2, "20000")
    assert temperature_c(tmp_path) == 20.0


def test_a_board_without_zones_has_no_temperature(tmp_path: Path) -> None:
    assert temperature_c(tmp_path / "nothing") is None


def test_memory_grows_with_what_is_held() -> None:
    before = resident_mb()
    held = b"x" * (32 << 20)
    assert resident_mb() - before == pytest.approx(len(held) / 2**20, abs=4)
