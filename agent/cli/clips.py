"""`vedette clips`: list the clips on this device."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.options import config_option, state_folder_option
from agent.cli.output import console, open_table, print_json
from agent.errors import StorageError
from agent.text import plain

if TYPE_CHECKING:
    from agent.storage.clips.file import ClipHeader
    from agent.storage.clips.store import Entry

    _Row = tuple[Entry, ClipHeader]


@click.group()
def clips() -> None:
    """List the clips on this device."""


@clips.command("list")
@config_option("Configuration with the clips' folder.")
@state_folder_option
@click.option("--stream", default="", help="Show only this stream.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def list_(path: Path, folder: Path | None, stream: str, as_json: bool) -> None:
    """List the clips, oldest first. Exits with 1 if one of them is damaged or cut off.

    Clips are in [storage] clips_folder, or in `clips` of the state folder --folder.
    """
    from agent.storage.clips.file import read_header
    from agent.storage.clips.store import clips_in

    rows: list[_Row] = []
    damaged = list[str]()
    for entry in clips_in(folder / "clips" if folder else _folder(path)):
        try:
            header = read_header(entry.path)
        except StorageError as error:
            damaged.append(str(error))
            continue
        if stream in ("", header.label.occasion.stream):
            rows.append((entry, header))
            if header.duration_s is None:  # the end of a complete clip tells its length
                damaged.append(f"{entry.path}: is cut off: what is left of it can be played")
    rows.sort(key=lambda row: row[1].label.began_at)  # the name of a file may tell when it was asked for
    (_print_json if as_json else _print_table)(rows)
    for why in damaged:
        click.echo(f"vedette: {plain(why)}", err=True)
    sys.exit(bool(damaged))


def _folder(path: Path) -> Path:
    from agent.config.load import load
    from agent.storage.state import clips_path, folder_of

    storage = load(path).config.storage
    return clips_path(storage, folder_of(storage))


def _print_json(rows: list[_Row]) -> None:
    found = [
        {
            "path": str(entry.path),
            "stream": header.label.occasion.stream,
            "began_at": header.label.began_at,
            "duration_s": header.duration_s,
            "bytes": entry.bytes,
            "label": header.label.occasion.label,
            "track": header.label.occasion.track,
            "reason": header.label.occasion.reason,
        }
        for entry, header in rows
    ]
    print_json(found, indent=2)


def _print_table(rows: list[_Row]) -> None:
    from rich.text import Text

    from agent.text import local_time, plural

    table = open_table("began", "stream", "what", "length", "size", "path", right=("length", "size"))
    for entry, header in rows:
        began, occasion = local_time(header.label.began_at), header.label.occasion
        length = "?" if header.duration_s is None else f"{header.duration_s:.1f} s"
        what = occasion.label or occasion.reason
        cells = (began, occasion.stream, what, length, f"{entry.bytes / 1e6:.1f} MB", str(entry.path))
        table.add_row(*(Text(plain(cell)) for cell in cells))
    console(200).print(table)
    total = sum(entry.bytes for entry, _ in rows)
    click.echo(f"{plural(len(rows), 'clip')}, {total / 1e6:.1f} MB")
