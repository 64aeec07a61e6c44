"""The rich console for tables: as wide as the terminal, and silent when a pipe is closed."""

from __future__ import annotations

import sys

from rich.console import Console


class _Output(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would exit with 1; `agent.cli.main` ends quietly


def output(width: int, *, markup: bool = True) -> Console:
    """Return a console that writes to stdout, as wide as the terminal.

    Args:
        width: columns where stdout is no terminal.
        markup: interpret rich's markup, such as `[red]`.
    """
    return _Output(width=None if sys.stdout.isatty() else width, highlight=False, markup=markup)
