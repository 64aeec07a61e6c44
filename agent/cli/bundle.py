"""`vedette bundle`: build, sign and inspect update bundles on a workstation."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agent.cli.output import print_json
from agent.errors import BundleError
from agent.text import plain

if TYPE_CHECKING:
    from agent.update.bundle import Migration, Target
    from agent.update.bundle.build import BundleInspection, Plan


T = TypeVar("T")

_PATH = click.Path(path_type=Path)
_THERE = click.Path(path_type=Path, exists=True, dir_okay=False)
_FILE = click.argument("file", type=_PATH)


@click.group()
def bundle() -> None:
    """Build, sign and inspect the bundles that update boards."""


@bundle.command()
@click.option(
    "--counter",
    type=click.IntRange(1, 2**53),
    help="Must exceed the previous bundle's: boards refuse a lower one.",
)
@click.option("--arch", type=click.Choice(["aarch64", "x86_64"]), default="aarch64", show_default=True)
@click.option("--python", default="3.11", show_default=True, help="Python version of the board.")
@click.option("--glibc", default="2.34", show_default=True, help="Oldest glibc of the boards.")
@click.option("--board", "boards", multiple=True, help="Board profile; repeatable.")
@click.option("--model", "models", multiple=True, help="Model, name or file; repeatable.")
@click.option(
    "--config", "configs", multiple=True, type=_PATH, help="Configuration for a fresh install; repeatable."
)
@click.option("--migrations", type=_PATH, help="TOML file of [[migrations]] for the configuration.")
@click.option(
    "--health", multiple=True, metavar="KEY=NUMBER", help="Limit of the trial, such as steady_s=30; repeatable."
)
@click.option(
    "--shadow",
    multiple=True,
    metavar="KEY=NUMBER",
    help="Run new models beside those in use first, such as agreement=0.9; repeatable.",
)
@click.option("--extra", "extras", multiple=True, help="Extra of Vedette, such as wakeword; repeatable.")
@click.option("--models-only", is_flag=True, help="Bundle models only, for boards of any kind.")
@click.option("--wheel", type=_PATH, help="Vedette's wheel; default: built from the clone.")
@click.option("--lock", type=_PATH, help="Lock file of the dependencies; default: the clone's.")
@click.option("--name", show_default="models", help="Name of a bundle of models.")
@click.option("--out", type=_PATH, help="File to write; default: NAME-COUNTER[-ARCH-PYTHON].vedette.")
@click.option("--sign", "key", type=_PATH, help="Sign it with this key.")
def build(out: Path | None, key: Path | None, **options: Any) -> None:
    """Build a bundle: Vedette with its dependencies, models with golden answers, configurations.

    Wheels of the board are downloaded as locked, and checked by hash. The same sources give the same bytes.
    """
    from tempfile import TemporaryDirectory

    from agent.update.bundle import build as building
    from agent.update.bundle import signing

    if key is not None:
        signing.check_key(key)
    plan = _plan(**options)
    out = out or Path(_default_name(plan))
    with TemporaryDirectory(prefix="vedette-bundle-") as work:
        building.build(plan, out, Path(work), _print_step)
    if key is not None:
        _sign(out, key)
    name = plain(str(out))
    click.echo(f"{name}{'' if key else f'; not signed yet: vedette bundle sign {name} --key KEY'}")


@bundle.command()
@_FILE
@click.option("--key", type=_PATH, required=True, help="Private key, or the public one of a key in ssh-agent.")
def sign(file: Path, key: Path) -> None:
    """Sign FILE with a key made by ssh-keygen; the signature is written to FILE.sig."""
    from agent.update import bundle as archive

    archive.check_files(file, archive.read_description(file))
    click.echo(plain(str(_sign(file, key))))


@bundle.command()
@_FILE
@click.option("--signers", type=_THERE, help="File of allowed signers that must have signed it.")
@click.option("--revoked", type=_THERE, help="File of revoked keys, together with --signers.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def inspect(file: Path, signers: Path | None, revoked: Path | None, as_json: bool) -> None:
    """Check every file of the bundle FILE and list its content. Exits with 1 if a board would refuse it."""
    from agent.update.bundle.build import inspection

    if revoked is not None and signers is None:
        raise click.UsageError("--revoked needs --signers")
    found = inspection(file, signers, revoked)
    if as_json:
        print_json(found, indent=2)
    else:
        _print(found)
    sys.exit(bool(found.error))


def _plan(*, counter: int | None, models_only: bool, name: str | None, **given: Any) -> Plan:
    from agent.update.bundle import HealthGate, ShadowGate
    from agent.update.bundle.build import Plan

    if counter is None:
        raise BundleError(
            "--counter is missing: give a number above the previous bundle's (`vedette bundle inspect`), "
            "or 1 for the first"
        )
    for key in ("boards", "configs", "extras", "wheel", "lock") if models_only else ("shadow",):
        if given[key]:
            how = "cannot be combined with" if models_only else "needs"
            raise BundleError(f"--{key.removesuffix('s')} {how} --models-only")
    target = [given.pop(key) for key in ("arch", "python", "glibc", "boards")]
    shadow, health, migrations = (given.pop(key) for key in ("shadow", "health", "migrations"))
    return Plan(
        counter=counter,
        target=None if models_only else _read_target(*target),
        name=name or "models",
        migrations=read_migrations(migrations) if migrations else (),
        health=read_gate("--health", health, HealthGate),
        shadow=read_gate("--shadow", shadow, ShadowGate) if shadow else None,
        full=not models_only,
        **given,
    )


def _default_name(plan: Plan) -> str:
    if plan.target is None:
        return f"{plan.name}-{plan.counter}.vedette"
    return f"vedette-{plan.counter}-{plan.target.arch}-{plan.target.python}.vedette"


def _sign(file: Path, key: Path) -> Path:
    from agent.update.bundle import signing

    signing.check_key(key)
    _print_step(f"signing with {key}, which may ask for a passphrase or a touch")
    return signing.sign(file, key)


def _print_step(what: str) -> None:
    click.echo(f"{plain(what)} …", err=True)


def _print(found: BundleInspection) -> None:
    if found.file is not None:  # else it cannot be read, and the error says why
        for name, value in found.summary().items():
            click.echo(f"{name:<11} {plain(value)}")
    if found.description is not None:
        import tomli_w

        from agent.update.bundle import without_files

        click.echo(plain(tomli_w.dumps(without_files(found.description)), keep="\n"))
        for path, file in sorted(found.description.files.items()):
            click.echo(f"{file.size:>11} {file.sha256[:12]} {path}")
    if found.error:
        click.echo(f"vedette: {plain(found.error)}", err=True)


def _read_target(arch: str, python: str, glibc: str, boards: Sequence[str]) -> Target:
    from agent.config.load import shipped
    from agent.config.wording import nearest
    from agent.update.bundle import GLIBC, PYTHON, Target

    known = [path.stem for path in shipped()]
    for board in boards:
        if board not in known:
            raise BundleError(f"--board {board}: no such profile{nearest(board, known)}")
    if not re.fullmatch(PYTHON, python):
        raise BundleError(f"--python {python}: expected the version of the board's Python, such as 3.11 or 3.13")
    if not re.fullmatch(GLIBC, glibc):
        raise BundleError(f"--glibc {glibc}: expected the oldest that a board may have, such as 2.34")
    return _converted("--board", {"arch": arch, "python": python, "glibc": glibc, "boards": boards}, Target)


def read_migrations(path: Path) -> list[Migration]:
    """Read the tables `[[migrations]]` of a TOML file.

    Raises:
        ConfigError: the file cannot be read. BundleError: a migration is wrong.
    """
    import msgspec

    from agent.config.toml import read_toml
    from agent.update.bundle import Migration

    kind: Any = msgspec.defstruct("Migrations", [("migrations", list[Migration])], forbid_unknown_fields=True)
    found: Any = _converted(str(path), read_toml(path, "the migrations").data, kind)
    return list(found.migrations)


def read_gate(option: str, given: Sequence[str], kind: type[T]) -> T:
    """Parse limits, such as `steady_s=30`; raise BundleError if one is wrong."""
    from agent.config.wording import nearest

    known = kind.__struct_fields__  # type: ignore[attr-defined]
    values: dict[str, str] = {}
    for pair in given:
        key, sign, value = pair.partition("=")
        if not sign or key not in known:
            raise BundleError(f"{option} {pair}: expected KEY=NUMBER{nearest(key, known)}")
        values[key] = value
    return _converted(option, values, kind)


def _converted(option: str, values: Any, kind: type[T]) -> T:
    import msgspec

    from agent.config.wording import plain_fault
    from agent.structs import convert

    try:
        return convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise BundleError(f"{option}: {plain_fault(str(error))}") from error
