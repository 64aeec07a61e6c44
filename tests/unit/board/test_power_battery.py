from __future__ import annotations

from pathlib import Path

import pytest

from agent.board.power import Battery, read_battery
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
