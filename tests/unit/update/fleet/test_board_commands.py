"""The commands of a board, as they are known here, and as they are known there."""

from __future__ import annotations

import re

import pytest

from agent.errors import FleetError
from agent.update.fleet.board import COMMANDS, check_command
from tests.support.running import ROOT


def test_they_are_those_of_the_boards_own_table() -> None:
    script = (ROOT / "systemd/vedette-ssh").read_text(encoding="utf-8")
    table = script[script.rindex("case $ASKED in") :]
    lines = [line for line in table.splitlines() if "refuse" not in line and "#" not in line]
    found = re.findall(r"(?:'([a-z -]+)'|\b([a-z]+))(?=\)| \|)", "\n".join(lines))
    assert sorted(one or other for one, other in found) == sorted(COMMANDS)


@pytest.mark.parametrize(
    "command",
    ["docter", "rm -rf /", "update", "update  status", "update rollback --help", "rsync --server . .", ""],
)
def test_what_no_board_does_is_refused_with_what_they_do(command: str) -> None:
    with pytest.raises(
        FleetError, match=re.escape(f"{command!r} is not a command of a board: expected status, ")
    ):
        check_command(command)
    for allowed in COMMANDS:
        check_command(allowed)
