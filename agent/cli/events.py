"""`vedette events`: what is published."""

from __future__ import annotations

import click


@click.group()
def events() -> None:
    """Describe the messages that are published."""


@events.command()
def schema() -> None:
    """Print the JSON Schema of every message."""
    import msgspec

    from agent.comms import payload

    click.echo(msgspec.json.format(msgspec.json.encode(payload.schema()), indent=2))
