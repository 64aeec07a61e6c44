"""`vedette`: each verb is a module that is imported only when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from click.shell_completion import get_completion_class

from agent import __version__

_INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells have it."""

_VERBS: dict[str, str] = {
    "run": "Run the daemon in the foreground.",
    "demo": "A real clip through a real model to a real broker.",
    "watch": "Show what devices publish, live.",
    "command": "Command a device over the broker.",
    "cleanup": "Delete what a device left at a broker under a former name.",
    "config": "Check, show, migrate or describe the configuration.",
    "doctor": "Say what is wrong with this board, and what to do.",
    "devices": "List the cameras and microphones of this machine.",
    "models": "List models, look inside one, and calibrate one.",
    "bench": "Measure every way to run a model on this board.",
    "profile": "Show which operations of a model take the time.",
    "events": "Show or export what has been published; describe the messages.",
    "clips": "List the clips that were recorded here.",
    "update": "Update this board by a signed bundle, and go back.",
    "bundle": "Build, sign and look into bundles, which update boards.",
    "fleet": "Update many boards over SSH, and ask them how they are.",
    "guide": "Show the manual, or search it.",
    "completion": "Print the completion script of a shell.",
}
"""Name → help in one line; nothing is imported, so that `vedette --help` is instant."""

_RENAMED = {"tell": "command"}
"""New name by old verb."""


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    """Exit with 0, silently, when the reader of a pipe is gone, as after `| head`."""
    try:
        yield
    except BrokenPipeError:
        # What is still buffered would raise the same once more when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(0) from None


class _Verbs(click.Group):
    """A group whose members are modules `agent.cli.<verb>` with a command of the same name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _RENAMED:
            ctx.fail(f"`vedette {cmd_name}` is called `vedette {_RENAMED[cmd_name]}` now.")
        if cmd_name == "completion":
            return completion
        if cmd_name not in _VERBS:
            return None
        command = getattr(importlib.import_module(f"agent.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        with _reader_may_leave():  # --help and --version print here
            return super().make_context(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _reader_may_leave():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(_INTERRUPTED)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_VERBS.items()))


@click.command(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vedette")
def vedette() -> None:
    """Run TFLite models on cameras and microphones, and publish what they detect over MQTT."""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL.

    For bash: vedette completion bash > ~/.local/share/bash-completion/completions/vedette
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(vedette, {}, "vedette", "_VEDETTE_COMPLETE").source())
