"""Run another program to its end."""

from __future__ import annotations

import subprocess
from typing import Any

from agent.errors import VedetteError, reason_of

_TAIL = 400


def run(
    command: list[str],
    what: str,
    patience_s: float | None,
    error: type[VedetteError],
    *,
    stdin: int | None = None,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Run a program and return its output, whatever its exit code is.

    Args:
        command: program and arguments.
        what: for the error.
        patience_s: timeout, s; None: none.
        error: is raised if the program cannot be started, or does not end in time.
        stdin: descriptor to read from; None: nothing, or `input` of the options.
        options: of `subprocess.run`, such as `cwd`, `env` and `user`.
    """
    if "input" not in options:
        options["stdin"] = subprocess.DEVNULL if stdin is None else stdin
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=patience_s, check=False, **options
        )
    except subprocess.TimeoutExpired:
        raise error(f"{what}: {command[0]} did not end within {patience_s:.0f} s") from None
    except OSError as failure:
        raise error(f"{what}: {command[0]} cannot be run: {reason_of(failure)}") from failure


def output_of(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a program has said, in one line: the end of its stderr, else of its stdout."""
    text = " ".join((done.stderr or done.stdout).split())[-_TAIL:]
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}{': ' if text else ''}{text}"
    return text or f"exit code {done.returncode}"
