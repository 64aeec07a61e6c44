from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from agent.board.firmware import UNDER_VOLTAGE, Supply
from agent.board.power import POWER_MODELS, Battery, PowerReading
from agent.board.proc import Frequency
from agent.board.thermal import Brake, Zone
from agent.cli.checks.board import check_frequencies, check_heat, check_power, check_sensors, check_supply
from tests.support.boards import pi4, write


def test_a_board_that_is_well(tmp_path: Path) -> None:
    found = {one.name: one for one in check_sensors(pi4(tmp_path))}
    assert {one.state for one in found.values()} == {"ok"}
    assert found["cpu-thermal"].value.startswith("48.7 °C")
    assert found["processor 0 1 2 3"].value == "600 of 1800 MHz, governor ondemand: faster under load only"
    assert found["supply"].state == "ok"


def test_a_sensor_that_blocks_is_a_warning(tmp_path: Path) -> None:
    sensor = pi4(tmp_path) / "sys/class/thermal/thermal_zone0/temp"
    sensor.unlink()
    os.mkfifo(sensor)
    (hangs, *others) = check_sensors(tmp_path, longest_s=0.5)
    assert (hangs.name, hangs.state) == ("sensors", "warning")
    assert hangs.value.startswith("heat: ")
    assert "journalctl" in hangs.advice
    assert [one.name for one in others] == ["processor 0 1 2 3", "supply", "power"], "they are read nevertheless"
    with suppress(OSError):  # let the thread that waits for it end
        os.close(os.open(sensor, os.O_WRONLY | os.O_NONBLOCK))


def test_a_number_that_no_sensor_gives_ends_nothing(tmp_path: Path) -> None:
    write(pi4(tmp_path), {"sys/class/thermal/thermal_zone0/temp": "9" * 400})
    found = {one.name: one for one in check_sensors(tmp_path)}
    assert "cpu-thermal" not in found
    assert "processor 0 1 2 3" in found


def test_a_board_that_does_not_tell_is_no_problem(tmp_path: Path) -> None:
    found = list(check_sensors(tmp_path))
    assert [one.name for one in found] == ["power"]
    assert {one.state for one in found} == {"ok"}


@pytest.mark.parametrize(
    ("zone", "state"),
    [
        (Zone("cpu", 69.9), "ok"),
        (Zone("cpu", 70.0), "warning"),
        (Zone("cpu", 80.0), "problem"),
        (Zone("cpu", 84.0, 95.0), "ok"),
        (Zone("cpu", 85.0, 95.0), "warning"),
        (Zone("cpu", 95.0, 95.0), "problem"),
    ],
)
def test_heat(zone: Zone, state: str) -> None:
    (found,) = check_heat([zone], [])
    assert found.state == state
    assert bool(found.advice) == (state != "ok")


def test_of_many_zones_the_hottest_and_those_near_their_limit() -> None:
    zones = [Zone("a", 75.0, 105.0), Zone("b", 60.0, 65.0), Zone("c", 50.0, 90.0)]
    assert [(one.name, one.state) for one in check_heat(zones, [])] == [("a", "ok"), ("b", "warning")]


def test_a_processor_that_is_slowed_is_a_problem() -> None:
    (_, found) = check_heat([Zone("a", 50.0)], [Brake("cpufreq-cpu0", 3, 12)])
    assert (found.state, found.value) == ("problem", "slowed by heat, step 3 of 12")


@pytest.mark.parametrize(
    ("frequency", "state"),
    [
        (Frequency("0", 1800, 1800, 1800, "performance"), "ok"),
        (Frequency("0", 600, 1800, 1800, "powersave"), "warning"),
        (Frequency("0", 600, 1200, 1800, "schedutil"), "warning"),
        (Frequency("0", 600, 0, 0, ""), "ok"),
    ],
)
def test_frequencies(frequency: Frequency, state: str) -> None:
    (found,) = check_frequencies([frequency])
    assert found.state == state


def test_a_weak_supply_is_a_problem_now_and_a_warning_afterwards() -> None:
    (now, before) = check_supply(Supply((UNDER_VOLTAGE,), ("throttled",)))
    assert (now.state, before.state) == ("problem", "warning")
    assert now.advice == before.advice
    assert "power" in now.advice


def test_throttled_without_under_voltage_is_heat() -> None:
    (found,) = check_supply(Supply(("throttled",), ()))
    assert found.advice.startswith("cool the board")


def test_a_zone_that_cannot_be_right_is_a_warning_and_not_the_hottest() -> None:
    lying, right = check_heat([Zone("a", 200.0), Zone("b", 50.0)], [])
    assert (lying.state, right.state) == ("warning", "ok")
    assert right.value.startswith("50.0 °C")


def test_measured_power_is_told_apart_from_what_others_measured() -> None:
    (measured,) = check_power(PowerReading(3.21, "ina219"), POWER_MODELS["raspberrypi,4-model-b"], None)
    (published,) = check_power(None, POWER_MODELS["raspberrypi,4-model-b"], None)
    (unknown,) = check_power(None, None, None)
    assert "3.21 W" in measured.value
    assert "ina219" in measured.value
    assert published.value.startswith("not measured; by others 2.7 W idle")
    assert unknown.value == "not measured"


@pytest.mark.parametrize(
    ("battery", "state"),
    [
        (Battery(80, "discharging", feeds_board=True), "ok"),
        (Battery(10, "discharging", feeds_board=True), "warning"),
        (Battery(10, "unknown", feeds_board=True), "warning"),
        (Battery(10, "charging"), "ok"),
        (Battery(None, "unknown", feeds_board=True), "ok"),
    ],
)
def test_a_battery_that_runs_out_is_a_warning(battery: Battery, state: str) -> None:
    (_, found) = check_power(None, None, battery)
    assert found.state == state
