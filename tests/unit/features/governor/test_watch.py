"""Load and heat of the board, from the files of a kernel."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.board.processors import Quota, Ticks
from agent.config import Config, ThermalConfig
from agent.config.governor import GovernorConfig
from agent.features.governor.readings import BoardReading
from agent.features.governor.watch import (
    BoardLoad,
    ProcessorShares,
    UsableTicks,
    processor_shares,
)
from tests.support.boards import battery, write

CONFIG = Config(thermal=ThermalConfig(warn_c=85.0))


class Kernel:
    """Files below a root, and times of processors, that a test changes."""

    def __init__(self, root: Path) -> None:
        self.root, self.now_s, self.ticks = root, 0.0, Ticks()
        self.load = BoardLoad(root, lambda: self.now_s, lambda: self.ticks, cores=4)

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

    def second(self, busy: float, own: float) -> None:
        """Let a second pass, with shares of four processors."""
        self.now_s += 1.0
        before = self.ticks
        self.ticks = Ticks(before.total + 4.0, before.idle + 4.0 * (1.0 - busy), before.own + 4.0 * own)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def test_the_shares_of_the_processors_are_those_of_the_last_two_seconds(kernel: Kernel) -> None:
    for busy, own in ((1.0, 1.0), (0.5, 0.25), (0.75, 0.5)):
        kernel.second(busy, own)
        board = kernel.load.read(CONFIG)
    assert board.cores == 4
    assert (board.idle, board.others) == pytest.approx((0.375, 0.25))


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
        kernel.second(0.5, 0.5)
        board = kernel.load.read(CONFIG)
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


def test_a_warm_zone_that_cannot_be_read_makes_the_temperature_unknown_for_ten_minutes(kernel: Kernel) -> None:
    kernel.zone(79.0, limit_c=80.0)
    kernel.zone(45.0, limit_c=95.0, name="gpu-thermal", at=1)
    assert kernel.load.read(CONFIG).celsius == 79.0
    kernel.lose_zone()
    board = kernel.after(1.0)
    assert (board.celsius, board.limit_c, board.settles_c, board.limit_in_s) == (None, 77.0, None, None)
    assert kernel.after(590.0).celsius is None
    assert kernel.after(20.0).celsius == 45.0


def test_a_warm_zone_that_is_back_counts_again(kernel: Kernel) -> None:
    kernel.zone(79.0, limit_c=80.0)
    kernel.zone(45.0, limit_c=95.0, name="gpu-thermal", at=1)
    kernel.load.read(CONFIG)
    (kernel.root / "sys/class/thermal/thermal_zone0/temp").write_text("garbage")
    assert kernel.after(1.0).celsius is None
    kernel.zone(78.0, limit_c=80.0)
    assert kernel.after(1.0).celsius == 78.0


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
    kernel.second(0.1, 0.1)
    kernel.second(0.1, 0.1)
    assert kernel.load.read(CONFIG).slowed == ""


def test_the_firmware_is_asked_where_no_file_has_its_warnings(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/vcio").touch()
    asked: list[str] = []

    def ask(command: str) -> str:
        asked.append(command)
        return "throttled=0x4"

    kernel = Kernel(tmp_path)
    kernel.load = BoardLoad(tmp_path, lambda: kernel.now_s, lambda: kernel.ticks, cores=4, ask=ask)
    for _ in range(6):
        assert kernel.load.read(CONFIG).slowed == "the firmware reports: throttled"
        kernel.second(0.1, 0.1)
    assert len(asked) == 2, "once in five seconds"


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


def quota(processors: float, used_s: float | None = None, group: str = "/a") -> Quota:
    return Quota(processors, used_s, group)


def test_a_quota_leaves_no_more_than_its_group_has_not_used() -> None:
    first = Ticks(100.0, 50.0, 10.0, quota=quota(0.5, 20.0), at_s=0.0)
    last = Ticks(108.0, 57.0, 10.1, quota=quota(0.5, 20.6), at_s=2.0)
    shares = processor_shares(first, last, cores=4)
    assert shares.quota == 0.5
    assert shares.idle == pytest.approx((0.5 - 0.3) / 4)
    assert shares.others == pytest.approx(1.0 - 7.0 / 8.0 - 0.1 / 8.0)


def test_a_quota_without_an_account_is_compared_with_this_process() -> None:
    first = Ticks(100.0, 50.0, 10.0, quota=quota(0.5), at_s=0.0)
    last = Ticks(108.0, 57.0, 10.8, quota=quota(0.5), at_s=2.0)
    assert processor_shares(first, last, cores=4).idle == pytest.approx(0.1 / 4)


def test_a_quota_of_all_processors_is_none() -> None:
    first, last = Ticks(100.0, 50.0, 10.0), Ticks(108.0, 57.0, 10.8, quota=quota(4.0), at_s=2.0)
    assert processor_shares(first, last, cores=4) == processor_shares(first, replace(last, quota=None), cores=4)
    assert processor_shares(first, last, cores=4).quota is None


@given(*[st.floats(0.0, 1e6)] * 6, st.integers(1, 64))
def test_shares_are_shares_whatever_the_kernel_counts(
    total: float, idle: float, own: float, limit: float, used_s: float, at_s: float, cores: int
) -> None:
    shares = processor_shares(Ticks(), Ticks(total, idle, own, quota=quota(limit, used_s), at_s=at_s), cores)
    assert isinstance(shares, ProcessorShares)
    assert 0.0 <= shares.idle <= 1.0
    assert 0.0 <= shares.others <= 1.0


def test_a_quota_that_is_set_while_it_runs_is_found(tmp_path: Path) -> None:
    now_s = [0.0]
    files = {"proc/self/cgroup": "0::/a\n", "proc/stat": "cpu  9 0 0 9\ncpu0 9 0 0 9\n"}
    ticks = UsableTicks(write(tmp_path, files), lambda: now_s[0])
    assert ticks.read().quota is None
    write(tmp_path, {"sys/fs/cgroup/a/cpu.max": "50000 100000"})
    now_s[0] = 11.0
    assert ticks.read().quota == Quota(0.5, None, "/a")
    write(tmp_path, {"sys/fs/cgroup/a/cpu.max": "max 100000"})
    now_s[0] = 12.0
    assert ticks.read().quota is None


def test_processors_are_those_that_may_be_used_and_a_change_begins_anew(tmp_path: Path) -> None:
    ticks = [Ticks(10.0, 5.0, 1.0, usable=frozenset({0, 1}))]
    load = BoardLoad(tmp_path, lambda: 0.0, lambda: ticks[-1])
    ticks.append(Ticks(12.0, 6.0, 1.0, usable=frozenset({0, 1})))
    board = load.read(CONFIG)
    assert (board.cores, board.idle) == (2, 0.5)
    ticks.append(Ticks(500.0, 100.0, 1.0, usable=frozenset({3})))
    load.read(CONFIG)
    ticks.append(Ticks(501.0, 101.0, 1.0, usable=frozenset({3})))
    board = load.read(CONFIG)
    assert (board.cores, board.idle, board.quota) == (1, 1.0, None)


def test_the_free_memory_is_a_share(kernel: Kernel) -> None:
    assert kernel.load.read(CONFIG).memory_free is None
    (kernel.root / "proc").mkdir()
    (kernel.root / "proc/meminfo").write_text("MemTotal: 4096 kB\nMemAvailable: 1024 kB\n")
    assert kernel.load.read(CONFIG).memory_free == 0.25
