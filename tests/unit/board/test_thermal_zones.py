from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from agent.board.sensors import ProcessorSensor
from agent.board.thermal import THERMAL, Zone, firmware_limit_c
from tests.support.boards import pi4, write, zones


@pytest.mark.parametrize("wrong", [-273.15, -274.0, 200.0, 1e6, 125.0])
def test_a_reading_that_cannot_be_is_left_out_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, wrong: float
) -> None:
    sensor = ProcessorSensor(zones(tmp_path, cpu_thermal=wrong, gpu_thermal=50.0))
    with caplog.at_level(logging.INFO):
        readings = [sensor.read() for _ in range(3)]
        zones(tmp_path, cpu_thermal=60.0, gpu_thermal=50.0)
        again = sensor.read()
    assert readings == [Zone("gpu-thermal", 50.0)] * 3
    assert again == Zone("cpu-thermal", 60.0)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "cpu-thermal" in caplog.records[0].message


def test_a_zone_that_vanishes_is_logged_once_and_again_when_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sensor = ProcessorSensor(zones(tmp_path, cpu_thermal=50.0))
    with caplog.at_level(logging.INFO):
        assert sensor.read() == Zone("cpu-thermal", 50.0)
        shutil.rmtree(tmp_path / THERMAL)
        assert [sensor.read(), sensor.read()] == [None, None]
        zones(tmp_path, cpu_thermal=51.0)
        assert sensor.read() == Zone("cpu-thermal", 51.0)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


@pytest.mark.parametrize("other", ["battery", "ambient", "iwlwifi-1", "skin-therm", "pm8150b-chg", "xo-therm"])
def test_zones_of_batteries_and_of_the_air_are_not_the_processors(tmp_path: Path, other: str) -> None:
    zones(tmp_path, **{other: 70.0, "cpu0_thermal": 50.0})
    assert ProcessorSensor(tmp_path).read() == Zone("cpu0-thermal", 50.0)


def test_the_firmware_throttles_a_raspberry_pi_where_the_kernel_has_no_limit(tmp_path: Path) -> None:
    assert ProcessorSensor(pi4(tmp_path)).read() == Zone("cpu-thermal", 48.686, 80.0)
    write(tmp_path, {"proc/device-tree/compatible": "raspberrypi,3-model-b-plus\0brcm,bcm2837\0"})
    assert firmware_limit_c(tmp_path) == 60.0
    write(tmp_path, {"proc/device-tree/compatible": "thundercomm,db845c\0qcom,sdm845\0"})
    assert firmware_limit_c(tmp_path) is None


def test_the_kernels_limit_comes_first(tmp_path: Path) -> None:
    place = "sys/class/thermal/thermal_zone0"
    limits = {f"{place}/trip_point_0_type": "passive", f"{place}/trip_point_0_temp": "75000"}
    assert ProcessorSensor(write(pi4(tmp_path), limits)).read() == Zone("cpu-thermal", 48.686, 75.0)


def test_one_reading_that_jumps_is_not_the_temperature(tmp_path: Path) -> None:
    now_s = [0.0]
    sensor = ProcessorSensor(zones(tmp_path, cpu_thermal=50.0), lambda: now_s[0])
    told = []
    for now_s[0], celsius in ((0.0, 50.0), (5.0, 100.0), (10.0, 50.0)):
        zones(tmp_path, cpu_thermal=celsius)
        zone = sensor.read()
        told.append(zone and zone.temperature_c)
    assert told == [50.0, 50.0, 50.0]
