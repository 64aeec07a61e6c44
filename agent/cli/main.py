"""`vedette`: each verb is a module of its own, imported only when the verb is called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import click

from agent import __version__
from agent.errors import ReportedError, VedetteError

_INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells have it."""

_VERBS: dict[str, str] = {
    "run": "Run the daemon in the foreground.",
    "demo": "Play a bundled clip through a model to an embedded broker.",
    "watch": "Show what devices publish, live.",
    "command": "Send a command to a device over the broker.",
    "config": "Check, show or describe the configuration.",
    "doctor": "Examine this board, and say what to do about problems.",
    "devices": "List the cameras and microphones of this machine.",
    "models": "List, import, inspect and try models.",
    "bench": "Measure a model on the CPU and on every accelerator of this board.",
    "profile": "Measure each operation of a model.",
    "trace": "Record what a running device does, for Perfetto.",
    "teach": "Teach a stream a state, such as a gate that is open or closed.",
    "optimise": "Train models, make them faster, evaluate and calibrate them.",
    "events": "Show or export published messages, or describe their format.",
    "clips": "List the clips on this device.",
    "update": "Update this board from a signed bundle, or roll it back.",
    "bundle": "Build, sign and inspect the bundles that update boards.",
    "fleet": "Update many boards over SSH, and show their status.",
    "guide": "Show the manual, or search it.",
}
"""Help of each verb in one line, so that `vedette --help` imports nothing."""
_MODULES = {"devices": "doctor", "trace": "command"}
"""Modules of verbs that share one with another verb."""


@contextmanager
def _exit_quietly() -> Iterator[None]:
    """Exit without a message: with 0 when the reader of a pipe is gone, as after `| head`; with 130 on Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        raise click.exceptions.Exit(_INTERRUPTED) from None
    except BrokenPipeError:
        # Flushing the buffered rest at exit would raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(0) from None


@contextmanager
def _errors_as_json() -> Iterator[None]:
    """Print an error as JSON to stdout, too; the message on stderr and the exit code stay."""
    try:
        yield
    except ReportedError:
        raise
    except (VedetteError, click.ClickException) as error:
        from agent.cli.output import print_json

        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        print_json({"error": text})
        raise


class _Verbs(click.Group):
    """A group whose members are commands in modules of `agent.cli`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        command = getattr(importlib.import_module(f"agent.cli.{_MODULES.get(cmd_name, cmd_name)}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        with _exit_quietly():  # --help and --version print here
            return super().make_context(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        as_json = _errors_as_json() if "--json" in ctx.args else nullcontext()
        with _exit_quietly(), as_json:
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_VERBS.items()))


@click.command(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vedette")
def vedette() -> None:
    """Run TFLite models on cameras and microphones, and publish what they detect over MQTT."""
