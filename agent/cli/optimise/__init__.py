"""`vedette optimise`: turn a model into one that runs faster on a board, on a workstation.

A verb is a module of this folder, whose first line says what it does: adding one is adding its file.
"""

from __future__ import annotations

import importlib
import keyword
import os
import re
from pathlib import Path

import click

_FIRST = re.compile(r'"""`vedette optimise ([a-z-]+)`: (.*?)\.?(?:""")?\n')


def _verbs() -> dict[str, str]:
    """Return what each verb does, by its name, without importing any."""
    folder, found = Path(__file__).parent, dict[str, str]()
    for path in sorted([*folder.glob("*.py"), *folder.glob("*/__init__.py")]):
        with path.open(encoding="utf-8") as file:
            if first := _FIRST.fullmatch(file.readline()):
                found[first[1]] = f"{first[2][:1].upper()}{first[2][1:]}."
    return found


class _Steps(click.Group):
    """A group whose verbs are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_verbs())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _verbs():
            return None
        name = cmd_name.replace("-", "_") + "_" * keyword.iskeyword(cmd_name)
        command = getattr(importlib.import_module(f"{__package__}.{name}"), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_verbs().items()))


@click.group(cls=_Steps)
def optimise() -> None:
    """Turn a model into one that runs faster on a board."""
    # Before torch is imported: on a busy machine its threads wait for each other longer than they compute, and by
    # default they spin meanwhile. A small network took 20 s of processor time instead of 0.7 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
