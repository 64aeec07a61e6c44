from __future__ import annotations

from pathlib import Path

from agent.cli.checks.board import check_candidates, hardware_findings
from agent.compute.infer.delegates import ROWS, DelegateProbe
from agent.compute.infer.session import BackendSpec


def test_a_bare_board_is_well_and_every_way_has_its_reason(tmp_path: Path) -> None:
    found = list(hardware_findings(tmp_path))
    assert [one.name for one in found] == ["cpu", *(row.name for row in ROWS)]
    assert {one.state for one in found} == {"ok"}
    assert all(": no " in one.value for one in found[1:])


def test_what_is_here_comes_first_and_how_to_install_it_only_where_the_device_is() -> None:
    found = [
        DelegateProbe("a", "A", missing="no device (/dev/a): install A"),
        DelegateProbe("b", "B", missing="no libb.so: install B"),
        DelegateProbe("c", "C", BackendSpec("c", "delegate"), ("/usr/lib/libc.so",)),
    ]
    assert [one.value for one in check_candidates(found)][1:] == [
        "C: found (/usr/lib/libc.so)",
        "A: no device (/dev/a)",
        "B: no libb.so: install B",
    ]
