"""Memory that a model may take, on boards that are made of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.compute.infer.vetting.process import spare_bytes

GIB = 2**30


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 2 * GIB),
        ({"system.slice/vedette.service": "max", "system.slice": f"{GIB}\n"}, GIB // 2),
        ({"system.slice/vedette.service": f"{GIB // 2}", "system.slice": f"{GIB}"}, GIB // 4),
        ({"system.slice/vedette.service": "4096"}, 128 * 2**20),
    ],
)
def test_it_is_half_of_what_is_available_or_of_a_lower_limit(
    tmp_path: Path, limits: dict[str, str], expected: int
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/system.slice/vedette.service\n")
    (tmp_path / "sys/fs/cgroup/system.slice/vedette.service").mkdir(parents=True)
    for folder, text in limits.items():
        (tmp_path / "sys/fs/cgroup" / folder / "memory.max").write_text(text)
    assert spare_bytes(tmp_path) == expected
