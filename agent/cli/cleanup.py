"""`vedette cleanup`: delete what a device left at a broker under a former name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agent.cli.options import broker_options, device_name, topic
from agent.cli.output import print_json
from agent.text import plain, plural

if TYPE_CHECKING:
    from agent.comms.consumer.client import BrokerOptions
    from agent.comms.consumer.request import LeftBehind


_HELP = """Delete what a device left at a broker under a former name.

\b
  vedette cleanup --former-name porch                   show it, and ask
  vedette cleanup --former-name porch --yes             do not ask
  vedette cleanup --former-name porch --prefix old      a device whose [mqtt] prefix was old

Retained topics under PREFIX/NAME are deleted, and Home Assistant's discovery message with its entities, unless
that belongs to another program. A name under which a device is online is left alone.
"""
_CODES = "Exit code: 0 deleted, or nothing was there; 1 declined, or no broker; 2 wrong usage."


@click.command(help=_HELP, epilog=_CODES)
@broker_options
@click.option(
    "--former-name", "name", required=True, callback=device_name, help="The name that is no longer used."
)
@click.option(
    "--discovery-prefix",
    default="homeassistant",
    show_default=True,
    callback=topic,
    help="Home Assistant's, as [homeassistant] prefix.",
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; deletes only with --yes.")
@click.pass_context
def cleanup(
    ctx: click.Context,
    access: BrokerOptions,
    prefix: str,
    name: str,
    discovery_prefix: str,
    yes: bool,
    as_json: bool,
) -> None:
    """Run `vedette cleanup`; `_HELP` is its help text."""
    from agent.comms.consumer.request import FormerName
    from agent.comms.topics import Topics

    with FormerName(access, Topics(prefix, name), discovery_prefix) as former:
        found = former.find()
        if not as_json:
            _show(f"{prefix}/{name}", access.where, found)
        agreed = bool(found.topics) and (yes or (not as_json and click.confirm("Delete them?")))
        if agreed:
            former.delete(found)
    if as_json:
        _print_json(f"{prefix}/{name}", found, deleted=agreed)
    elif agreed:
        click.echo(f"deleted {plural(len(found.topics), 'topic')}")
    ctx.exit(1 if found.topics and not agreed and not as_json else 0)


def _show(name: str, where: str, found: LeftBehind) -> None:
    if not found.topics:
        click.echo(plain(f"{where} retains nothing under {name}"))
        return
    click.echo(plain(f"{where} retains {plural(len(found.topics), 'topic')} under the former name {name}:"))
    for one in found.topics:
        click.echo(plain(f"  {one}"))
    if found.entities:
        count = plural(len(found.entities), "entity", "entities")
        click.echo(f"With the last one, Home Assistant removes {count}.")


def _print_json(name: str, found: LeftBehind, *, deleted: bool) -> None:
    body = {"former_name": name, "topics": found.topics, "entities": found.entities, "deleted": deleted}
    print_json(body)
