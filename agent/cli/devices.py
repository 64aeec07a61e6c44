"""`vedette devices`: list cameras and microphones with the URI of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agent.cli.output import console, print_json
from agent.text import plain

if TYPE_CHECKING:
    from agent.capture.devices import CaptureDevice, Devices


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def devices(as_json: bool) -> None:
    """List the cameras and microphones of this machine with the URI that a configuration needs."""
    from agent.capture.devices import devices as find_devices

    found = find_devices()
    if as_json:
        print_json(found, indent=2)
    else:
        _print(found)


def _print(found: Devices) -> None:
    for kind, some in (("camera", found.cameras), ("microphone", found.microphones)):
        if some:
            _print_table(f"{kind.capitalize()}s", some)
        else:
            click.echo(f"No {kind} was found.")
    for sentence in found.missing:
        click.echo(plain(sentence))


def _print_table(title: str, some: list[CaptureDevice]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for column in ("name", "offers", "source"):
        table.add_column(column, overflow="fold")
    for device in some:
        table.add_row(*(Text(plain(cell)) for cell in (device.name, device.offers, device.uri)))
    console(160).print(table)
