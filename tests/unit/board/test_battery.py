from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from agent.board.battery import Battery, BatteryMonitor, read_battery
from tests.support.boards import battery, write


def supply(root: Path, kind: str, online: str) -> Path:
    return write(root, {"sys/class/power_supply/usb/type": kind, "sys/class/power_supply/usb/online": online})


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"status": "Discharging\n", "capacity": "42\n"}, Battery(42, "discharging", feeds_board=True)),
        ({"status": "Charging\n", "capacity": "42\n"}, Battery(42, "charging")),
        ({"status": "Full", "capacity": "100"}, Battery(100, "full")),
        ({"status": "odd", "capacity": "250"}, Battery(None, "unknown", feeds_board=True)),
        ({}, Battery(None, "unknown", feeds_board=True)),
        ({"scope": "Device", "capacity": "42"}, None),
        ({"present": "0", "capacity": "42"}, None),
        ({"type": "Mains", "online": "1"}, None),
    ],
)
def test_the_battery(tmp_path: Path, files: dict[str, str], found: Battery | None) -> None:
    assert read_battery(battery(tmp_path, **files)) == found


@pytest.mark.parametrize(
    "percent", ["101", "-1", "garbage", "50.5", "", "1e2", "٥٠", "5_0", "9" * 400, "9" * 5000]
)
def test_a_charge_that_cannot_be_is_unknown(tmp_path: Path, percent: str) -> None:
    found = read_battery(battery(tmp_path, capacity=percent, status="Discharging"))
    assert found == Battery(None, "discharging", feeds_board=True)


@pytest.mark.parametrize("status", ["Unknown", "Not charging"])
@pytest.mark.parametrize("kind", ["Mains", "USB", "USB_C", "Wireless"])
def test_a_battery_that_is_not_charged_feeds_the_board_unless_another_supply_is_online(
    tmp_path: Path, status: str, kind: str
) -> None:
    battery(tmp_path, capacity="4", status=status)
    assert read_battery(tmp_path) == Battery(4, status.lower(), feeds_board=True)
    assert read_battery(supply(tmp_path, kind, "0")) == Battery(4, status.lower(), feeds_board=True)
    assert read_battery(supply(tmp_path, kind, "1")) == Battery(4, status.lower())


def test_of_several_batteries_the_lowest_that_feeds_the_board_counts(tmp_path: Path) -> None:
    battery(tmp_path, "BAT0", status="Discharging")
    battery(tmp_path, "BAT1", capacity="60", status="Discharging")
    battery(tmp_path, "BAT2", capacity="7", status="Discharging")
    battery(tmp_path, "BAT3", capacity="3", status="Charging")
    assert read_battery(tmp_path) == Battery(7, "discharging", feeds_board=True)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_the_last_charge_holds_for_ten_minutes_while_it_cannot_be_read_and_that_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    monitor = BatteryMonitor(battery(tmp_path, capacity="22", status="Discharging"), clock)
    with caplog.at_level(logging.INFO):
        assert monitor.read() == Battery(22, "discharging", feeds_board=True)
        battery(tmp_path, capacity="garbage")
        told = []
        for clock.now_s in (1.0, 10.0, 300.0, 599.0, 601.0):
            battery_now = monitor.read()
            told.append(battery_now and battery_now.percent)
        assert told == [22, 22, 22, 22, None]
        battery(tmp_path, capacity="21")
        assert monitor.read() == Battery(21, "discharging", feeds_board=True)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "BAT0" in caplog.text


def test_a_battery_whose_files_vanish_keeps_its_charge_and_one_that_is_taken_out_does_not(tmp_path: Path) -> None:
    clock = Clock()
    folder = battery(tmp_path, capacity="22", status="Discharging") / "sys/class/power_supply/BAT0"
    monitor = BatteryMonitor(tmp_path, clock)
    monitor.read()
    shutil.move(folder, tmp_path / "away")
    clock.now_s = 60.0
    assert monitor.read() == Battery(22, "discharging", feeds_board=True)
    shutil.move(tmp_path / "away", folder)
    battery(tmp_path, present="0")
    assert monitor.read() is None


def test_the_lowest_battery_holds_while_another_can_be_read(tmp_path: Path) -> None:
    battery(tmp_path, "BAT0", capacity="10", status="Discharging")
    battery(tmp_path, "BAT1", capacity="50", status="Discharging")
    monitor = BatteryMonitor(tmp_path, Clock())
    monitor.read()
    battery(tmp_path, "BAT0", capacity="")
    assert monitor.read() == Battery(10, "discharging", feeds_board=True)


def test_that_a_battery_is_charged_is_known_without_its_charge(tmp_path: Path) -> None:
    monitor = BatteryMonitor(battery(tmp_path, capacity="10", status="Discharging"), Clock())
    monitor.read()
    battery(tmp_path, capacity="", status="Charging")
    assert monitor.read() == Battery(None, "charging")
