"""The commands of a board, as they are known here, and as they are known there."""

from __future__ import annotations

import re

import pytest

from agent.errors import FleetError
from agent.update.fleet.board import _LISTED, COMMANDS, check_command, next_words
from tests.support.running import ROOT


def test_they_are_those_of_the_boards_own_table() -> None:
    script = (ROOT / "systemd/vedette-ssh").read_text(encoding="utf-8")
    table = script[script.rindex("case $ASKED in") :]
    lines = [line for line in table.splitlines() if "refuse" not in line and "#" not in line]
    found = re.findall(r"(?:'([a-z -]+)'|\b([a-z]+))(?=\)| \|)", "\n".join(lines))
    assert sorted(one or other for one, other in found) == sorted(COMMANDS)


def test_the_list_that_is_shown_has_all_of_them() -> None:
    shown = []
    for one in _LISTED.split(", "):
        command, _, option = one.partition(" [")
        shown += [command, f"{command} {option[:-1]}"] if option else [command]
    assert sorted(shown) == sorted(COMMANDS)
    for command in COMMANDS:
        check_command(command)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            "docter",
            "'docter' is not a command of a board; did you mean 'doctor'? expected status, doctor [--json], ",
        ),
        ("update histroy", "did you mean 'update history'?"),
        ("rm -rf /", "'rm -rf /' is not a command of a board: expected status, "),
        ("update", "is not a command of a board"),
        ("update  status", "did you mean 'update status'?"),
        ("update rollback --help", "is not a command of a board"),
        ("rsync --server . .", "is not a command of a board: "),
        ("", "'' is not a command of a board: "),
    ],
)
def test_what_no_board_does_is_refused_with_what_they_do(command: str, said: str) -> None:
    with pytest.raises(FleetError) as caught:
        check_command(command)
    assert said in str(caught.value)


def test_words_that_may_follow_are_found() -> None:
    assert next_words((), "") == ["status", "doctor", "update"]
    assert next_words((), "d") == ["doctor"]
    assert next_words(("update",), "") == ["status", "history", "apply", "confirm", "rollback"]
    assert next_words(("update", "rollback"), "") == ["--once"]
    assert next_words(("update", "apply"), "") == next_words(("reboot",), "") == []
