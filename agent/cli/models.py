"""`vedette models`: list, inspect and calibrate models, and describe manifests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from agent.cli.calibrate import calibrate
from agent.text import plain

if TYPE_CHECKING:
    from agent.cli.inspection import Listed, ModelInspection


_WIDTH = 160
"""Columns of a table where stdout is no terminal."""


@click.group()
def models() -> None:
    """List models, inspect one, calibrate one, or describe their manifests."""


_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")


@models.command("list")
@click.argument("files", nargs=-1)
@_JSON
def list_(files: tuple[str, ...], as_json: bool) -> None:
    """List the bundled models and FILES. Exits with 1 if one of them cannot be used."""
    from agent.cli.inspection import Listed, listed
    from agent.cli.json_output import print_json
    from agent.compute.infer.vetting.unprivileged import without_root
    from agent.models.files import bundled, preloaded

    names = (*bundled(), *files)
    with preloaded(names):
        rows = without_root(lambda: [listed(name) for name in names], list[Listed])
    if as_json:
        print_json(rows, indent=2)
    else:
        _print_list(rows)
    sys.exit(any(row.error for row in rows))


@models.command()
@click.argument("file")
@_JSON
@click.option(
    "--write-manifest",
    "write",
    is_flag=True,
    help="Write a manifest beside the model with every key that was found and its source.",
)
@click.option(
    "--manifest", "path", default="", metavar="TOML", help="Write the manifest to TOML, in the model's folder."
)
@click.option("--force", is_flag=True, help="Overwrite an existing manifest.")
def inspect(file: str, as_json: bool, write: bool, path: str, force: bool) -> None:
    """Inspect FILE: a .tflite, a manifest .toml, or the name of a bundled model.

    It is opened as a stream would open it, in a process of its own. Exits with 1 when a runtime refuses it, or
    when nothing tells how to decode it.
    """
    from agent.cli.inspection import ModelInspection, inspection
    from agent.cli.json_output import print_json
    from agent.compute.infer.vetting.unprivileged import without_root
    from agent.models.files import preloaded

    with preloaded([file]):
        found = _or_faults(lambda: without_root(lambda: inspection(file), ModelInspection))
    if write or path:
        _write_manifest(file, path, force)
    if as_json:
        print_json(found, indent=2)
    else:
        _print_inspection(found)
    sys.exit(found.refused)


@models.command()
def schema() -> None:
    """Print the JSON Schema of a manifest, with every key and every decoder's options, for editors."""
    from agent.cli.json_output import print_json
    from agent.cli.schema import manifest_schema

    print_json(manifest_schema(), indent=2)


models.add_command(calibrate)


def _or_faults(look: Callable[[], ModelInspection]) -> ModelInspection:
    """Return what is found; print several faults as one line each and exit with 1."""
    from agent.errors import ModelError

    try:
        return look()
    except ModelError as error:
        if len(error.faults) == 1:
            raise
        for fault in error.faults:
            click.echo(f"vedette: {plain(fault)}", err=True)
        sys.exit(1)


def _write_manifest(file: str, path: str, force: bool) -> None:
    """Write what is known of a model, and say where and what is missing.

    Raises:
        ModelError: nothing tells how to decode it, or a manifest is there and it is not to be replaced.
    """
    from agent.compute.infer.vetting.unprivileged import without_root
    from agent.models.files import preloaded, write_new
    from agent.models.library import Draft, draft

    with preloaded([file]):
        known = without_root(lambda: draft(file), Draft)
    found = known.manifest, known.sha256, known.sources, known.missing
    written = plain(str(write_new(file, path, *found, force=force)))
    click.echo(f"wrote {written}", err=True)
    if known.missing:
        tables = dict.fromkeys(table for table, _ in known.missing)
        keys = [" and ".join(key for at, key in known.missing if at == table) for table in tables]
        untold = ", ".join(f"[{table}] {names}" for table, names in zip(tables, keys, strict=True))
        click.echo(f"vedette: {written}: unknown: {untold}; fill in the commented lines", err=True)


def _print_list(rows: list[Listed]) -> None:
    from rich import box
    from rich.table import Table

    from agent.cli.console import output

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for column in ("model", "decoder", "labels", "variants", "input", "size", "licence"):
        table.add_column(column, overflow="fold")
    for row in rows:
        if not row.error:
            variants = " ".join(row.variants)
            cells = (row.name, row.decoder, str(row.labels), variants, row.input, _size(row.size), row.licence)
            table.add_row(*map(_plain, cells))
    output(_WIDTH).print(table)
    for row in rows:
        if row.error:
            click.echo(f"vedette: {plain(row.error)}", err=True)


def _print_inspection(found: ModelInspection) -> None:
    from rich.table import Table

    from agent.cli.console import output

    console = output(_WIDTH)
    table = Table(show_header=False, title=_plain(found.file), title_justify="left")
    for key, value in found.summary().items():
        table.add_row(key, _plain(value))
    console.print(table)
    for runtime, reasons in found.refusals.items():
        for reason in reasons:
            console.print(f"[red]{runtime} cannot run it:[/red] {_plain(reason)}")
        if not reasons and not found.crash and not found.decoding_error:
            console.print(f"[green]{runtime}:[/green] compatible")
    if found.crash:
        console.print(f"[red]crashes:[/red] {_plain(found.crash)}")
    for doubt in found.doubts:
        console.print(f"[yellow]doubtful:[/yellow] {_plain(doubt)}")
    if found.decoding_error:
        console.print(f"[red]cannot be used:[/red] {_plain(found.decoding_error)}")


def _plain(text: str) -> str:
    """Escape rich markup and control characters."""
    from rich.markup import escape

    return escape(plain(text, keep="\n"))


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
