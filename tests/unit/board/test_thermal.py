from __future__ import annotations

from pathlib import Path

from agent.board.thermal import THERMAL, Brake, Zone, read_all_zones, read_brakes
from tests.support.boards import pi4, write


def test_a_critical_trip_point_is_not_where_it_is_slowed(tmp_path: Path) -> None:
    assert read_all_zones(pi4(tmp_path) / THERMAL) == [Zone("cpu-thermal", 48.686, None)]


def test_the_lowest_passive_trip_point_counts_and_the_hottest_zone_comes_first(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "thermal_zone0/temp": "40000",
            "thermal_zone1/temp": "71000",
            "thermal_zone1/type": "cpu0-thermal",
            "thermal_zone1/trip_point_0_type": "passive",
            "thermal_zone1/trip_point_0_temp": "95000",
            "thermal_zone1/trip_point_1_type": "hot",
            "thermal_zone1/trip_point_1_temp": "90000",
            "thermal_zone1/trip_point_2_type": "passive",
            "thermal_zone1/trip_point_2_temp": "-274000",
            "thermal_zone1/trip_point_3_type": "active",
            "thermal_zone1/trip_point_3_temp": "50000",
        },
    )
    assert read_all_zones(tmp_path) == [Zone("cpu0-thermal", 71.0, 90.0), Zone("thermal_zone0", 40.0)]


def test_only_processors_that_are_slowed(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "cooling_device0/type": "cpufreq-cpu0",
            "cooling_device0/cur_state": "3",
            "cooling_device0/max_state": "12",
            "cooling_device1/type": "thermal-cpufreq-4",
            "cooling_device1/cur_state": "0",
            "cooling_device2/type": "pwm-fan",
            "cooling_device2/cur_state": "4",
            "cooling_device3/type": "Processor",
            "cooling_device3/cur_state": "1",
        },
    )
    assert read_brakes(tmp_path) == [Brake("cpufreq-cpu0", 3, 12), Brake("Processor", 1, 1)]


def test_a_board_without_zones(tmp_path: Path) -> None:
    assert (read_all_zones(tmp_path / "nothing"), read_brakes(tmp_path / "nothing")) == ([], [])
