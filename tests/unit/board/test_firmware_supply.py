from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.board.firmware import UNDER_VOLTAGE, Supply, decode_throttled, read_supply
from tests.support.boards import write


@pytest.mark.parametrize(
    ("text", "supply"),
    [
        ("0\n", Supply()),
        ("50000\n", Supply((), (UNDER_VOLTAGE, "throttled"))),
        ("50005\n", Supply((UNDER_VOLTAGE, "throttled"), ())),
        ("80008\n", Supply(("the soft temperature limit is reached",), ())),
        ("a0002\n", Supply(("the frequency is capped",), ("the soft temperature limit is reached",))),
    ],
)
@pytest.mark.parametrize(
    "path",
    [
        "sys/devices/platform/soc/soc:firmware/get_throttled",
        "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled",
    ],
)
def test_what_the_firmware_says(tmp_path: Path, path: str, text: str, supply: Supply) -> None:
    assert read_supply(write(tmp_path, {path: text})) == supply


@pytest.mark.parametrize(("alarm", "now"), [("0\n", ()), ("1\n", (UNDER_VOLTAGE,))])
def test_the_upstream_kernel_tells_of_the_voltage_only(tmp_path: Path, alarm: str, now: tuple[str, ...]) -> None:
    write(
        tmp_path,
        {
            "sys/class/hwmon/hwmon0/name": "cpu_thermal\n",
            "sys/class/hwmon/hwmon1/name": "rpi_volt\n",
            "sys/class/hwmon/hwmon1/in0_lcrit_alarm": alarm,
        },
    )
    assert read_supply(tmp_path) == Supply(now)


def test_another_board_does_not_tell(tmp_path: Path) -> None:
    assert read_supply(tmp_path) is None
    write(tmp_path, {"sys/devices/platform/soc/soc:firmware/get_throttled": "nonsense"})
    assert read_supply(tmp_path) is None


@given(st.integers(0, 2**32 - 1))
def test_a_complaint_is_of_now_or_of_before_and_never_both(bits: int) -> None:
    supply = decode_throttled(bits)
    assert not set(supply.now) & set(supply.before)
    assert len(supply.now) == (bits & 0xF).bit_count()
    assert len(supply.before) == (bits >> 16 & ~bits & 0xF).bit_count()
