"""`vedette completion`: tab completion for bash, zsh and fish, by click."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL.

    For bash: vedette completion bash > ~/.local/share/bash-completion/completions/vedette
    """
    from agent.cli.main import vedette

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(vedette, {}, "vedette", "_VEDETTE_COMPLETE").source())
