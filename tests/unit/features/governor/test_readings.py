"""Heat, supply and battery of the board, from the files of a kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config import Config, ThermalConfig
from agent.config.features import GovernorConfig
from agent.features.governor.readings import BoardLoad, BoardReading
from tests.support.boards import battery

CONFIG = Config(thermal=ThermalConfig(warn_c=85.0))


class Kernel:
    """Files below a root that a test changes."""

    def __init__(self, root: Path) -> None:
        self.root, self.now_s = root, 0.0
        self.load = BoardLoad(root, lambda: self.now_s)

    def lose_zone(self, at: int = 0) -> None:
        (self.root / f"sys/class/thermal/thermal_zone{at}/temp").unlink()

    def zone(self, celsius: float, limit_c: float | None = None, name: str = "cpu-thermal", at: int = 0) -> None:
        folder = self.root / f"sys/class/thermal/thermal_zone{at}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "type").write_text(name)
        (folder / "temp").write_text(f"{celsius * 1000:.0f}")
        if limit_c is not None:
            (folder / "trip_point_0_type").write_text("passive")
            (folder / "trip_point_0_temp").write_text(f"{limit_c * 1000:.0f}")

    def firmware(self, bits: str) -> None:
        folder = self.root / "sys/devices/platform/soc/soc:firmware"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "get_throttled").write_text(bits)

    def after(self, seconds: float) -> BoardReading:
        """Return the board after so many seconds in which nothing ran."""
        self.now_s += seconds
        return self.load.read(CONFIG)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def test_the_limit_lies_below_the_kernels_unless_it_is_configured(kernel: Kernel) -> None:
    kernel.zone(60.0, limit_c=80.0)
    assert (kernel.load.read(CONFIG).celsius, kernel.load.read(CONFIG).limit_c) == (60.0, 77.0)
    kernel.zone(60.0, limit_c=110.0)
    assert kernel.load.read(CONFIG).limit_c == 85.0
    stated = Config(governor=GovernorConfig(max_temperature_c=70.0))
    assert kernel.load.read(stated).limit_c == 70.0


def test_each_zone_has_a_limit_of_its_own(kernel: Kernel) -> None:
    kernel.zone(50.0, limit_c=85.0)
    kernel.zone(27.8, limit_c=49.0, name="acpitz", at=1)
    board = kernel.load.read(CONFIG)
    assert (board.celsius, board.limit_c) == (27.8, 46.0)
    kernel.zone(81.0, limit_c=85.0)
    kernel.after(1.0)
    board = kernel.after(1.0)
    assert (board.celsius, board.limit_c) == (81.0, 82.0)


@pytest.mark.parametrize("limit_c", [1.0, 20.0, 200.0])
def test_a_limit_that_cannot_be_is_none(kernel: Kernel, limit_c: float) -> None:
    kernel.zone(50.0, limit_c=limit_c)
    assert kernel.load.read(CONFIG).limit_c == 85.0


def test_a_board_that_warms_up_is_told_when_it_reaches_the_limit(kernel: Kernel) -> None:
    for second in range(100):
        kernel.zone(50.0 + 0.2 * second, limit_c=80.0)
        board = kernel.after(1.0)
    assert board.limit_in_s is not None
    assert 20.0 < board.limit_in_s < 120.0
    kernel.load.load_changed()
    assert kernel.load.read(CONFIG).limit_in_s is None


def test_a_zone_that_lies_or_vanishes_is_an_unknown_temperature(kernel: Kernel) -> None:
    kernel.zone(-273.0)
    assert kernel.load.read(CONFIG).celsius is None
    kernel.zone(61.0)
    assert kernel.load.read(CONFIG).celsius == 61.0
    (kernel.root / "sys/class/thermal/thermal_zone0/temp").unlink()
    assert kernel.load.read(CONFIG).celsius is None


def test_the_zones_that_can_be_read_count(kernel: Kernel) -> None:
    kernel.zone(55.0, limit_c=80.0)
    kernel.zone(45.0, limit_c=95.0, name="gpu-thermal", at=1)
    assert kernel.load.read(CONFIG).celsius == 55.0
    kernel.lose_zone()
    assert kernel.after(1.0).celsius == 45.0


def test_a_reading_that_jumps_counts_when_the_next_one_confirms_it(kernel: Kernel) -> None:
    kernel.zone(50.0)
    kernel.load.read(CONFIG)
    kernel.zone(100.0)
    assert kernel.after(1.0).celsius == 50.0
    kernel.zone(50.0)
    assert kernel.after(1.0).celsius == 50.0
    kernel.zone(75.0)
    assert [kernel.after(1.0).celsius, kernel.after(1.0).celsius] == [50.0, 75.0]


def test_the_firmwares_warning_is_passed_on_and_ends(kernel: Kernel) -> None:
    kernel.firmware("50005")
    assert kernel.load.read(CONFIG).slowed == "the firmware reports: under-voltage, throttled"
    kernel.firmware("50000")
    assert kernel.load.read(CONFIG).slowed, "it is asked again after two seconds"
    assert kernel.after(2.0).slowed == ""


def test_a_battery_counts_while_the_board_runs_on_it(kernel: Kernel) -> None:
    folder = kernel.root / "sys/class/power_supply/BAT0"
    folder.mkdir(parents=True)
    for name, text in (("type", "Battery"), ("capacity", "18"), ("status", "Discharging")):
        (folder / name).write_text(text)
    assert kernel.load.read(CONFIG).battery_percent == 18
    (folder / "status").write_text("Charging")
    assert kernel.load.read(CONFIG).battery_percent is None


def test_a_battery_whose_charge_cannot_be_read_counts_with_its_last_one(kernel: Kernel) -> None:
    battery(kernel.root, capacity="22", status="Discharging")
    assert kernel.load.read(CONFIG).battery_percent == 22
    battery(kernel.root, capacity="")
    assert kernel.after(10.0).battery_percent == 22
    assert kernel.after(600.0).battery_percent is None


def test_trouble_of_the_supply_holds_for_a_minute_while_it_is_unknown(kernel: Kernel) -> None:
    kernel.firmware("1")
    assert kernel.load.read(CONFIG).slowed
    kernel.firmware("zz")
    assert kernel.after(30.0).slowed
    assert kernel.after(31.0).slowed == ""


def test_another_warm_zone_stands_in_for_one_that_cannot_be_read(kernel: Kernel) -> None:
    kernel.zone(79.0, limit_c=80.0)
    kernel.zone(83.0, limit_c=95.0, name="gpu-thermal", at=1)
    kernel.load.read(CONFIG)
    kernel.lose_zone()
    assert kernel.after(1.0).celsius == 83.0


def test_a_cold_zone_that_cannot_be_read_is_no_reason_to_hold_back(kernel: Kernel) -> None:
    kernel.zone(55.0, limit_c=80.0)
    kernel.zone(45.0, limit_c=95.0, name="gpu-thermal", at=1)
    assert kernel.load.read(CONFIG).celsius == 55.0
    kernel.lose_zone()
    assert kernel.after(1.0).celsius == 45.0
