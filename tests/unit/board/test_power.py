from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.board.firmware import THROTTLING, UNDER_VOLTAGE, Supply, firmware_commands, read_supply
from agent.board.power import POWER_MODELS, PowerReading, pmic_watts, power_model, read_power
from tests.support.boards import battery, pi4, write

PMIC = """ 3V7_WL_SW_A current(0)=0.00000000A
   1V8_SYS_A current(2)=0.50000000A
  VDD_CORE_A current(7)=2.00000000A
 3V7_WL_SW_V volt(8)=3.79999600V
   1V8_SYS_V volt(10)=1.80000000V
  VDD_CORE_V volt(15)=0.90000000V
     EXT5V_V volt(24)=5.06788000V
      BATT_V volt(25)=3.01110800V
"""
THROTTLED = "sys/devices/platform/soc/soc:firmware/get_throttled"


def sensor(root: Path, number: int, name: str, **files: str) -> Path:
    place = f"sys/class/hwmon/hwmon{number}"
    return write(root, {f"{place}/name": f"{name}\n", **{f"{place}/{key}": text for key, text in files.items()}})


def test_a_sensor_that_tells_its_power(tmp_path: Path) -> None:
    sensor(tmp_path, 0, "cpu_thermal", temp1_input="50000")
    sensor(tmp_path, 1, "ina219", power1_input="3210000\n", in1_input="5000", curr1_input="1")
    assert read_power(tmp_path) == PowerReading(3.21, "ina219")


def test_a_sensor_that_tells_voltage_and_current(tmp_path: Path) -> None:
    sensor(tmp_path, 0, "ina226", in0_input="12", in1_input="5100", curr1_input="600")
    assert read_power(tmp_path) == PowerReading(3.06, "ina226")


def test_a_sensor_that_is_the_wrong_way_round(tmp_path: Path) -> None:
    sensor(tmp_path, 0, "ina226", in1_input="5000", curr1_input="-500")
    assert read_power(tmp_path) == PowerReading(2.5, "ina226")


def test_the_channels_of_a_sensor_are_added_unless_one_has_all_of_it(tmp_path: Path) -> None:
    channels = {"in1_input": "5000", "curr1_input": "1000", "in2_input": "5000", "curr2_input": "400"}
    sensor(tmp_path, 0, "ina3221", **channels)
    assert read_power(tmp_path) == PowerReading(7.0, "ina3221")
    sensor(tmp_path, 0, "ina3221", in1_label="VDD_IN\n", **channels)
    assert read_power(tmp_path) == PowerReading(5.0, "ina3221")


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"power1_input": "off"},
        {"power1_input": "-1"},
        {"power1_input": "9" * 12},
        {"power1_input": "9" * 400},
    ],
)
def test_a_sensor_that_does_not_tell_or_lies_is_left_out(tmp_path: Path, files: dict[str, str]) -> None:
    assert read_power(sensor(tmp_path, 0, "ina219", **files)) is None


def test_the_rails_of_a_raspberry_pi_5_are_added(tmp_path: Path) -> None:
    assert pmic_watts(PMIC) == pytest.approx(0.5 * 1.8 + 2.0 * 0.9)
    assert read_power(tmp_path, lambda _: PMIC) == PowerReading(2.7, "pmic")


@given(st.text())
def test_what_is_no_answer_of_the_pmic_is_no_power(text: str) -> None:
    assert pmic_watts(text) is None


def test_a_battery_that_feeds_the_board_tells_its_power(tmp_path: Path) -> None:
    battery(tmp_path, status="Discharging\n", power_now="4500000\n", capacity="80")
    assert read_power(tmp_path) == PowerReading(4.5, "battery")
    battery(tmp_path, power_now="off", voltage_now="3700000", current_now="-1000000")
    assert read_power(tmp_path) == PowerReading(3.7, "battery")
    battery(tmp_path, status="Charging\n")
    assert read_power(tmp_path) is None


def test_the_power_of_boards_by_their_device_tree(tmp_path: Path) -> None:
    assert power_model(pi4(tmp_path)) == POWER_MODELS["raspberrypi,4-model-b"]
    assert power_model(tmp_path / "another") is None


@given(st.sampled_from(sorted(POWER_MODELS)), st.floats(-1.0, 100.0))
def test_an_estimate_lies_between_idle_and_busy_and_has_a_source(name: str, cores: float) -> None:
    model = POWER_MODELS[name]
    assert model.idle_w <= model.watts(cores) <= model.busy_w + 1e-9
    assert model.joules(cpu_s=4.0 * 60.0, seconds=60.0) == pytest.approx(model.busy_w * 60.0)
    assert "http" in model.source


def test_the_firmware_is_asked_where_files_do_not_tell(tmp_path: Path) -> None:
    assert list(firmware_commands(pi4(tmp_path / "pi4"))) == []
    root = write(pi4(tmp_path / "known"), {"dev/vcio": ""})
    assert list(firmware_commands(root)) == []
    (root / THROTTLED).unlink()
    assert list(firmware_commands(root)) == ["get_throttled"]
    write(root, {"proc/device-tree/compatible": "raspberrypi,5-model-b\0brcm,bcm2712\0"})
    assert list(firmware_commands(root)) == ["get_throttled", "pmic_read_adc"]


def test_the_firmwares_answer_counts_where_there_is_no_file(tmp_path: Path) -> None:
    assert read_supply(tmp_path, lambda _: "throttled=0x50005") == Supply((UNDER_VOLTAGE, THROTTLING))
    assert read_supply(tmp_path, lambda _: "nonsense") is None
