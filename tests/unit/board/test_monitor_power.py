from __future__ import annotations

import logging
from pathlib import Path

import pytest

from agent.board.firmware import THROTTLING, UNDER_VOLTAGE, Supply
from agent.board.monitor import PowerMonitor
from agent.board.power import PowerReading
from agent.board.sensors import BoardSensors
from tests.support.boards import battery, pi4, write

THROTTLED = "sys/devices/platform/soc/soc:firmware/get_throttled"


class Readings:
    """Supplies that a monitor has told, one in ten seconds."""

    def __init__(self, root: Path) -> None:
        self.root, self.now_s = root, 0.0
        self.monitor = PowerMonitor(root, lambda: self.now_s)

    def after(self, bits: str) -> Supply | None:
        """The supply ten seconds later, when the firmware's file holds this."""
        write(self.root, {THROTTLED: bits})
        self.now_s += 10.0
        self.monitor.poll()
        return self.monitor.supply


def test_the_power_of_a_board_without_sensor_is_an_estimate(tmp_path: Path) -> None:
    root = write(pi4(tmp_path), {"proc/stat": "cpu  0 0 0 0\n" + "cpu0 0\n" * 4})
    monitor = PowerMonitor(root, every_s=0.0)
    monitor.poll()
    write(root, {"proc/stat": "cpu  50 0 0 50\n" + "cpu0 0\n" * 4})
    monitor.poll()
    assert monitor.power == PowerReading(4.55, "estimate")
    assert not monitor.power.is_measured
    assert monitor.supply == Supply()


def test_under_voltage_is_logged_once_when_it_begins_and_once_when_it_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    readings = Readings(pi4(tmp_path))
    with caplog.at_level(logging.INFO):
        for bits in ("0", "50005", "50005", *["50000"] * 8):
            supply = readings.after(bits)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert caplog.messages[1] == "the voltage is high enough again, after 20 s"
    assert supply == Supply((), (UNDER_VOLTAGE, THROTTLING))


def test_a_voltage_that_comes_and_goes_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    readings = Readings(pi4(tmp_path))
    with caplog.at_level(logging.INFO):
        for bits in ("0", *["50001", "50000", "50000"] * 20, *["50000"] * 5):
            readings.after(bits)
    assert len(caplog.records) == 2
    assert "after 580 s" in caplog.messages[1]


def test_a_weakness_of_a_second_is_told_by_the_next_reading_alone(tmp_path: Path) -> None:
    root, now_s = write(pi4(tmp_path), {THROTTLED: "0"}), [0.0]
    sensors = BoardSensors(root, lambda: now_s[0])
    monitor = PowerMonitor(root, lambda: now_s[0], sensors=sensors)
    told = []
    for now_s[0] in range(31):
        write(root, {THROTTLED: "10001" if now_s[0] == 14 else "0" if now_s[0] < 14 else "10000"})
        sensors.chip()
        monitor.poll()
        told.append(monitor.supply)
    weak, before = Supply((UNDER_VOLTAGE,)), Supply((), (UNDER_VOLTAGE,))
    assert told == [*[Supply()] * 20, *[weak] * 10, before]


def test_a_first_weakness_between_two_readings_is_told(tmp_path: Path) -> None:
    readings = Readings(pi4(tmp_path))
    told = [readings.after(bits) for bits in ("0", "10000", "10000")]
    assert told == [Supply(), Supply((UNDER_VOLTAGE,)), Supply((), (UNDER_VOLTAGE,))]


def test_what_a_firmware_counted_before_the_daemon_started_is_not_of_now(tmp_path: Path) -> None:
    readings = Readings(pi4(tmp_path))
    assert [readings.after("10000") for _ in range(2)] == [Supply((), (UNDER_VOLTAGE,))] * 2


def test_a_kernel_that_throttles_is_told_on_any_board(tmp_path: Path) -> None:
    place = "sys/class/thermal/cooling_device0"
    root = write(tmp_path, {f"{place}/type": "cpufreq-cpu0", f"{place}/cur_state": "0"})
    monitor = PowerMonitor(root, every_s=0.0)
    told = []
    for state in ("0", "3", "0"):
        write(root, {f"{place}/cur_state": state})
        monitor.poll()
        told.append(monitor.supply)
    assert told == [None, Supply((THROTTLING,)), Supply((), (THROTTLING,))]


def test_readings_are_as_far_apart_as_asked(tmp_path: Path) -> None:
    now_s = [0.0]
    monitor = PowerMonitor(tmp_path, lambda: now_s[0])
    told = []
    for now_s[0], percent in ((0.0, "50"), (9.0, "49"), (10.0, "48")):
        battery(tmp_path, capacity=percent)
        monitor.poll()
        told.append(monitor.battery and monitor.battery.percent)
    assert told == [50, 50, 48]


def test_a_firmware_that_cannot_be_read_is_no_supply_that_is_well(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    readings, weak = Readings(pi4(tmp_path)), Supply((UNDER_VOLTAGE,))
    with caplog.at_level(logging.INFO):
        assert readings.after("1") == weak
        assert [readings.after("zz") for _ in range(6)] == [weak] * 6, "the last trouble holds for a minute"
        assert readings.after("zz") is None
        assert "again" not in caplog.text
        assert readings.after("1") == weak
        assert [readings.after("0") for _ in range(7)] == [Supply((), (UNDER_VOLTAGE,))] * 7
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING", "INFO"], "weak, well"
    assert "voltage is high enough again, after 90 s" in caplog.messages[-1]


def test_one_reading_that_fails_is_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    readings = Readings(pi4(tmp_path))
    with caplog.at_level(logging.INFO):
        for bits in ("0", "zz", "0", "zz", "0"):
            assert readings.after(bits) == Supply()
    assert not caplog.records


def test_a_program_that_fails_is_asked_again_later(tmp_path: Path) -> None:
    answers = ["throttled=0x1", "", "", ""]

    def ask(command: str) -> str:
        return answers.pop(0) if answers else "throttled=0x10001"

    now_s = [0.0]
    root = write(tmp_path, {"dev/vcio": ""})
    monitor = PowerMonitor(root, lambda: now_s[0], sensors=BoardSensors(root, lambda: now_s[0], ask))
    told = []
    for now_s[0] in (0.0, 10.0, 40.0, 70.0, 120.0):
        monitor.poll()
        told.append(monitor.supply)
    assert told == [Supply((UNDER_VOLTAGE,))] * 3 + [None, Supply((UNDER_VOLTAGE,))]
