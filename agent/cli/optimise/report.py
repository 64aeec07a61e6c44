"""`vedette optimise report`: print the report of a step as Markdown."""

from __future__ import annotations

from pathlib import Path

import click

from agent.cli.options import PATH


@click.command()
@click.argument("file", type=PATH)
def report(file: Path) -> None:
    """Print the report in FILE, which a step has written beside its model as .report.json, as Markdown."""
    from agent.optimise.report import markdown, read_report

    click.echo(markdown(read_report(file)), nl=False)
