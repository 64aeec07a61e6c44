"""`vedette config`: check, show, migrate, describe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.run import DEFAULT_CONFIG
from agent.text import plain

if TYPE_CHECKING:
    from agent.config import Config
    from agent.config.toml import Keys


_FILE = click.argument("file", type=click.Path(path_type=Path), default=DEFAULT_CONFIG)


@click.group()
def config() -> None:
    """Check, show, migrate or describe the configuration."""


@config.command()
@_FILE
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Also list the keys that take effect only after a restart.")
def check(file: Path, as_json: bool, verbose: bool) -> None:
    """Check FILE and its models. Exits with 1 on any error.

    Opens the model of every stream, and sources that are files or folders; no camera, microphone or broker.
    """
    from agent.cli.json_output import print_json
    from agent.config.diff import RESTART, RULE, names
    from agent.daemon.check import can_start, problems, remarks, warnings

    found, unwise = problems(file), warnings(file)
    if as_json:
        told = {"file": str(file), "ok": not found, "loads": not found or can_start(file), "problems": found}
        told["warnings"] = unwise
        told["wait_for_restart"] = names(RESTART)
        told["remarks"] = [] if found else remarks(file)
        print_json(told)
    else:
        for problem in found:
            click.echo(plain(problem), err=True)
        for warning in unwise:
            click.echo(f"warning: {plain(warning)}", err=True)
        if not found:
            click.echo(plain(f"{file}: fine\n{RULE}" if verbose else f"{file}: fine", keep="\n"))
            for remark in remarks(file):
                click.echo(plain(remark), err=True)
    sys.exit(bool(found))


@config.command()
@_FILE
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of TOML.")
@click.option("--secrets", is_flag=True, help="Show passwords and keys in the sources' URIs.")
def show(file: Path, as_json: bool, secrets: bool) -> None:
    """Print FILE with every default, and with what the board's profile, commands and models say, filled in.

    Of sources on the network the host alone is shown, as in the log, since their URIs may hold passwords: only
    with --secrets is what is printed a file that can be used in place of FILE.
    """
    from agent.cli.config_view import hidden, masked, resolved_config
    from agent.cli.json_output import print_json
    from agent.config.load import dump, load

    read = load(file)
    commanded, by_command = _commanded(read.config)
    used = resolved_config(commanded)
    shown = used.config if secrets else masked(used.config)
    if as_json:
        print_json(shown)
    else:
        remarks = {**read.remarks(), **used.remarks, **by_command, **hidden(used.config, shown)}
        click.echo(dump(shown, {keys: plain(remark) for keys, remark in remarks.items()}), nl=False)


def _commanded(config: Config) -> tuple[Config, dict[Keys, str]]:
    """The configuration with what commands have set on this board, and remarks on that."""
    from agent.daemon.overrides import OverridesFile
    from agent.errors import StorageError
    from agent.storage.files import folder_of

    try:
        found = OverridesFile(folder_of(config.storage, Path("/"))).read()
    except StorageError as error:
        click.echo(f"settings made by commands are not shown: {plain(str(error))}", err=True)
        return config, {}
    kept, _ = found.still_valid(config)
    return kept.apply_to(config), kept.remarks(config)


@config.command()
@_FILE
@click.option("--dry-run", is_flag=True, help="Print what would be changed, and change nothing.")
def migrate(file: Path, dry_run: bool) -> None:
    """Rename keys of earlier versions in FILE, a configuration, a board's profile or a model's manifest.

    Comments and order stay. The file as it was is kept as FILE.before.
    """
    from agent.config.renames import rewrite
    from agent.config.toml import read_toml
    from agent.errors import ConfigError
    from agent.storage.copies import take_copy, write_like

    before = read_toml(file, "the file")
    try:
        text, found = rewrite(file.read_bytes().decode("utf-8-sig"), before.lines)
    except ConfigError as error:
        raise ConfigError(str(error), str(file)) from None
    for old in found:
        click.echo(plain(f"{before.where(*old.keys)}: {old}"))
    if not found:
        click.echo(plain(f"{file}: no key of an earlier version"))
    elif not dry_run:
        target = file.resolve()
        kept = target.with_name(f"{target.name}.before")
        take_copy(target, kept, like_source=True)
        write_like(target, text.encode(), target)
        click.echo(plain(f"{file}: rewritten; as it was: {kept}"))


@config.command()
def schema() -> None:
    """Print the JSON Schema of the configuration, with a description of every key, for editors."""
    from agent.cli.json_output import print_json
    from agent.cli.schema import config_schema

    print_json(config_schema(), indent=2)
