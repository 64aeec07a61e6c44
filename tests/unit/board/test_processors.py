from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.board.proc import read_cpu_ticks
from agent.board.processors import Quota, Ticks, read_quota, read_ticks, usable_processors
from tests.support.boards import write

V2 = "sys/fs/cgroup"


def test_a_quota_of_systemd(tmp_path: Path) -> None:
    service = f"{V2}/system.slice/vedette.service"
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/system.slice/vedette.service\n",
            f"{service}/cpu.max": "9000 100000\n",
            f"{service}/cpu.stat": "usage_usec 2500000\nuser_usec 1\n",
        },
    )
    assert read_quota(tmp_path) == Quota(0.09, 2.5, "/system.slice/vedette.service")


def test_the_tightest_quota_of_the_groups_above_counts(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/machine/inner\n",
            f"{V2}/machine/inner/cpu.max": "max 100000\n",
            f"{V2}/machine/cpu.max": "50000 100000\n",
            f"{V2}/cpu.max": "200000 100000\n",
        },
    )
    assert read_quota(tmp_path) == Quota(0.5, None, "/machine")


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/../../..\n", f"{V2}/cpu.max": "150000 100000\n"}
    assert read_quota(write(tmp_path, files)) == Quota(1.5, None, "/")


@pytest.mark.parametrize("text", ["max 100000", "", "0 100000", "1 0", "-1 100000", "nonsense", "9" * 400])
def test_what_is_no_quota(tmp_path: Path, text: str) -> None:
    write(tmp_path, {"proc/self/cgroup": "0::/\n\n:\nnonsense", f"{V2}/cpu.max": text})
    assert read_quota(tmp_path) is None
    assert read_quota(tmp_path / "nothing") is None


def test_this_process_may_use_processors() -> None:
    assert usable_processors() == os.sched_getaffinity(0)


def test_the_ticks_of_some_processors(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  9 0 0 9 0 0 0 0 0 0\ncpu0 1 0 1 6 0 0 0 0 0 0\ncpu1 7 0 0 3 0 0 0 0 0 0\nintr 5\n")
    assert read_cpu_ticks(stat) == (9, 18)
    assert read_cpu_ticks(stat, {0, 1, 7}) == (9, 18)
    assert read_cpu_ticks(stat, {0}) == (2, 8)
    assert read_cpu_ticks(stat, {5}) == (0, 0)


def test_ticks_are_read_from_the_kernel(tmp_path: Path) -> None:
    now = read_ticks()
    assert 0.0 < now.own < now.total
    assert 0.0 <= now.idle <= now.total
    assert read_ticks(tmp_path / "nothing") == Ticks()
    (tmp_path / "stat").write_text("cpu  a b c\n")
    assert read_ticks(tmp_path / "stat") == Ticks()
