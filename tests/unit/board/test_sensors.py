"""Sensors that hang, fail or lie: nothing waits for them, and nothing ends."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from agent.board.firmware import Supply
from agent.board.power import Battery
from agent.board.proc import read_number
from agent.board.sensors import BackgroundReader, BoardSensors
from agent.board.thermal import THERMAL, Zone
from tests.support.boards import battery, pi4, write, zones
from tests.support.publishing import wait_for


class Clock:
    """Seconds that pass when a test says so."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Path]:
    """A sensor's file that blocks whoever opens it, until the test ends."""
    path = pi4(tmp_path) / THERMAL / "thermal_zone0/temp"
    path.unlink()
    os.mkfifo(path)
    yield path
    release(path, b"50000\n")


def release(path: Path, text: bytes) -> None:
    """Write to a FIFO if somebody waits for it."""
    with suppress(OSError):
        writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        os.write(writer, text)
        os.close(writer)


def test_sensors_are_read_in_threads_from_the_start_on(tmp_path: Path) -> None:
    sensors = BoardSensors(battery(pi4(tmp_path), capacity="22", status="Discharging"))
    sensors.start()
    try:
        wait_for(lambda: sensors.chip().zones and sensors.energy().battery)
        assert sensors.hottest() == Zone("cpu-thermal", 48.686, 80.0)
        assert sensors.chip().supply == Supply()
        assert sensors.energy().battery == Battery(22, "discharging", feeds_board=True)
        zones(tmp_path, cpu_thermal=51.0)
        wait_for(lambda: sensors.hottest() == Zone("cpu-thermal", 51.0, 80.0))
        names = {thread.name for thread in threading.enumerate() if thread.daemon}
        assert {"sensors-chip", "sensors-power"} <= names
    finally:
        sensors.stop()


def test_a_sensor_that_blocks_stops_nobody_and_leaves_the_others(tmp_path: Path, fifo: Path) -> None:
    sensors = BoardSensors(battery(tmp_path, capacity="22", status="Discharging"))
    sensors.start()
    try:
        wait_for(lambda: sensors.energy().battery)
        assert sensors.hottest() is None
        assert sensors.chip().supply is None
    finally:
        sensors.stop()
        release(fifo, b"50000\n")


def test_what_has_become_old_is_unknown_and_troubles_hold_for_their_time(tmp_path: Path, clock: Clock) -> None:
    root = battery(zones(pi4(tmp_path), cpu_thermal=50.0), capacity="22", status="Discharging")
    write(root, {"sys/class/hwmon/hwmon0/name": "ina219", "sys/class/hwmon/hwmon0/power1_input": "4500000"})
    sensors = BoardSensors(root, clock)
    sensors.start()
    wait_for(lambda: sensors.chip().zones and sensors.energy().power)
    sensors.stop()
    known = []
    for clock.now_s in (4.0, 10.0, 40.0, 70.0, 700.0):
        chip, energy = sensors.chip(), sensors.energy()
        told = bool(chip.zones), chip.supply is not None, energy.power is not None, energy.battery is not None
        known.append(told)
    assert known == [
        (True, True, True, True),
        (False, True, True, True),
        (False, True, False, True),
        (False, False, False, True),
        (False, False, False, False),
    ]


def told_by(reader: BackgroundReader[int], caplog: pytest.LogCaptureFixture) -> str:
    reader.tell_hang()
    return caplog.text


def test_a_reading_that_hangs_is_logged_once_and_so_is_its_end(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def read() -> int:
        entered.set()
        assert go_on.wait(60.0)
        return 1

    reader = BackgroundReader("power", read, 60.0, clock)
    reader.start()
    assert entered.wait(60.0)
    with caplog.at_level(logging.INFO):
        for clock.now_s in (1.0, 4.0, 6.0, 7.0, 60.0):
            reader.tell_hang()
        assert reader.newest()[0] is None
        go_on.set()
        wait_for(lambda: reader.newest()[0] == 1)
        wait_for(lambda: "can be read again" in told_by(reader, caplog))
        reader.tell_hang()
    reader.stop()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert all("power" in message for message in caplog.messages)


def is_released(fifo: Path, reader: BackgroundReader[int | None]) -> bool:
    release(fifo, b"50000\n")
    return reader.newest()[0] is not None and reader._began_s is None


def test_the_file_that_hangs_is_named(
    tmp_path: Path, fifo: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    reader = BackgroundReader("chip", lambda: read_number(fifo), 60.0, clock)
    reader.start()
    wait_for(lambda: reader.file == fifo)
    with caplog.at_level(logging.INFO):
        for clock.now_s in (6.0, 7.0):
            reader.tell_hang()
        wait_for(lambda: is_released(fifo, reader))
        assert reader.file is None
        reader.tell_hang()
    reader.stop()
    assert [str(fifo) in message for message in caplog.messages] == [True, False]


def test_a_sensor_that_raises_is_logged_once_and_read_again(caplog: pytest.LogCaptureFixture) -> None:
    failures = [OverflowError("too large"), OverflowError("too large")]

    def read() -> int:
        if failures:
            raise failures.pop()
        return 8

    reader = BackgroundReader("power", read, 0.01)
    reader.start()
    wait_for(lambda: reader.newest()[0] == 8)
    reader.stop()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("text", ["9" * 308, "9" * 400, "9" * 5000, "-" + "9" * 400, "nan", "1e400", ""])
def test_a_number_that_no_sensor_gives_is_no_reading(tmp_path: Path, text: str) -> None:
    root = pi4(tmp_path)
    for path in root.glob("sys/**/*"):
        if path.is_file() and path.name not in ("type", "name"):
            path.write_text(text)
    write(root, {"sys/class/hwmon/hwmon0/name": "ina219", "sys/class/hwmon/hwmon0/power1_input": text})
    battery(root, capacity=text, status="Discharging", power_now=text, voltage_now=text, current_now=text)
    sensors = BoardSensors(root)
    assert sensors.hottest() is None
    assert sensors.energy().power is None
    assert sensors.energy().battery == Battery(None, "discharging", feeds_board=True)


def test_the_last_charge_holds_for_ten_minutes_while_it_cannot_be_read(tmp_path: Path) -> None:
    now_s = [0.0]
    sensors = BoardSensors(battery(tmp_path, capacity="22", status="Discharging"), lambda: now_s[0])
    assert sensors.energy().battery == Battery(22, "discharging", feeds_board=True)
    battery(tmp_path, capacity="garbage")
    found = []
    for now_s[0] in (1.0, 10.0, 300.0, 599.0, 601.0):
        now = sensors.energy().battery
        found.append(now and now.percent)
    assert found == [22, 22, 22, 22, None]
    battery(tmp_path, capacity="21")
    assert sensors.energy().battery == Battery(21, "discharging", feeds_board=True)


def test_that_a_battery_is_charged_is_known_without_its_charge(tmp_path: Path) -> None:
    sensors = BoardSensors(battery(tmp_path, capacity="10", status="Discharging"))
    assert sensors.energy().battery == Battery(10, "discharging", feeds_board=True)
    battery(tmp_path, capacity="", status="Charging")
    assert sensors.energy().battery == Battery(None, "charging")
