from __future__ import annotations

from pathlib import Path

import pytest

from agent.cli.checks import board
from agent.cli.checks.board import check_hardware
from agent.compute.infer.delegates import ROWS, DelegateProbe
from agent.compute.infer.session import BackendSpec


def test_a_bare_board_is_well_and_names_what_it_lacks_in_one_line(tmp_path: Path) -> None:
    found = list(check_hardware(tmp_path))
    assert {one.state for one in found} == {"ok"}
    named = {one.name for one in found} | set(found[-1].value.split(", "))
    assert {"cpu", *(row.name for row in ROWS)} <= named


def test_what_is_here_comes_first_and_how_to_install_it_only_where_the_device_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probes = [
        DelegateProbe("a", "A", missing="no device (/dev/a): install A"),
        DelegateProbe("b", "B", missing="no libb.so: install B"),
        DelegateProbe("c", "C", BackendSpec("c", "delegate"), ("/usr/lib/libc.so",)),
    ]
    monkeypatch.setattr(board, "probe_delegates", lambda root: probes)
    assert [(one.name, one.value) for one in check_hardware(Path("/"))][1:] == [
        ("c", "C: found (/usr/lib/libc.so)"),
        ("b", "B: no libb.so: install B"),
        ("without a device", "a"),
    ]
