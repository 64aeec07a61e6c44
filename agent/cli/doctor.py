"""`vedette doctor`: examine this board and say what to do; `vedette devices`: list cameras and microphones."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.options import DEFAULT_CONFIG, config_option
from agent.cli.output import console, open_table, print_json
from agent.text import plain

if TYPE_CHECKING:
    from agent.capture.devices import CaptureDevice, Devices
    from agent.cli.checks import Finding, Report
    from agent.cli.checks.models import Tried


_COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}
_WIDE = 100
"""Columns where the output is no terminal."""
_NAME, _LEAST = 22, 20
"""Columns of names at most, and of values at least."""


@click.command()
@config_option("Configuration to check.", required=False)
@click.option("--fresh", is_flag=True, help="Measure each model on every backend, and store the result.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.pass_context
def doctor(ctx: click.Context, path: Path | None, fresh: bool, as_json: bool) -> None:
    """Examine this board, and say what to do about problems.

    Checks the board, the runtime and its answers, backends, cameras and microphones, heat and power supply,
    storage and clock, and the configuration. Tries the broker and each network camera for a few seconds, without
    disturbing a running daemon. The exit code is 1 if there is a problem; warnings do not count.

    Only --fresh changes anything: it takes some seconds for each model and backend. A running daemon uses the new
    measurement after a reload.
    """
    shown = sys.stderr.isatty()

    def progress(section: str) -> None:
        if shown:
            click.echo(f"\r\x1b[Kchecking: {section} …", err=True, nl=False)

    report = examine(path or DEFAULT_CONFIG, asked=path is not None, fresh=fresh, progress=progress)
    if shown:
        click.echo("\r\x1b[K", err=True, nl=False)
    if as_json:
        print_json(report, indent=2)
    else:
        print_report(report)
    ctx.exit(0 if report.healthy else 1)


def examine(
    path: Path,
    *,
    asked: bool = True,
    fresh: bool = False,
    root: Path = Path("/"),
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Run all sections.

    Args:
        path: configuration.
        asked: the user has named the file; otherwise it may be missing.
        fresh: measure every backend now, and store the result; nothing else is changed.
        root: root of the file system.
        progress: called with the section that is next.
    """
    from msgspec.structs import replace

    from agent import __version__
    from agent.cli.checks import Report, board, models, network
    from agent.config import Config
    from agent.config.load import load
    from agent.errors import ConfigError

    try:
        given = load(path).config
    except ConfigError:  # its own section reports why
        given = None
    config, tried = given or Config(), list[models.Tried]()
    sections: dict[str, Callable[[], Iterable[Finding]]] = {
        "board": lambda: board.check_board(root),
        "runtime": board.check_runtime,
        "self-test": lambda: models.check_self_test(tried, root),
        "hardware to run models on": lambda: board.check_hardware(root),
        "models on this hardware": lambda: models.check_models(given, root, fresh=fresh, progress=progress),
        "cameras and microphones": lambda: board.check_devices(root),
        "heat and supply": lambda: board.check_sensors(root),
        "storage and clock": lambda: board.check_storage(config, root),
        "configuration": lambda: check_configuration(path, root, asked=asked, tried=tried),
        # Last: while one of its threads hangs, later sections could not give up root's rights.
        "broker and network": lambda: network.check_network(config, root) if given else (),
    }
    found: list[Finding] = []
    for section, check in sections.items():
        progress(section)
        found += [replace(one, section=section) for one in _guarded(check)]
    healthy = all(one.state != "problem" for one in found)
    return Report(__version__, datetime.now(UTC), healthy, found)


def _guarded(check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield the findings of a section; if it raises, a warning follows what it has found."""
    from agent.cli.checks import Finding

    try:
        yield from check()
    except Exception as error:
        value = f"cannot be checked: {type(error).__name__}: {error}"
        yield Finding("vedette doctor", value, "warning", f"please report this internal error: {value}")


def check_configuration(path: Path, root: Path, *, asked: bool, tried: list[Tried]) -> Iterator[Finding]:
    """Report the board's profile, and everything that `vedette config check` finds.

    Unless the user has named the file (`asked`), it may be missing. Its models are opened only if the self-test,
    `tried`, found that models can be opened here.
    """
    from agent.board.identity import read_board
    from agent.cli.checks import Finding
    from agent.config.load import AUTO, choose, load
    from agent.daemon import check
    from agent.errors import ConfigError

    is_seen = os.access(path, os.F_OK)
    if is_seen and (not tried or any(one.error for one in tried)):
        yield Finding("file", f"{path} is not checked: its models cannot be opened, see above", "warning")
        return
    try:
        profile = load(path, root).profile if is_seen else choose(AUTO, read_board(root))
        yield Finding("board's profile", str(profile or "none"))
    except ConfigError:
        pass  # reported below
    if not asked and not is_seen:
        yield Finding("file", f"there is none at {path} that this user can see; -c FILE checks another")
        return
    if is_seen and not os.access(path, os.R_OK):
        yield Finding("file", f"{path}: this user may not read it", "warning", "run sudo vedette doctor")
        return
    wrong = check.problems(path)
    for line in wrong:
        advice = f"correct {line.partition(': ')[0]}, then run vedette config check {path}"
        yield Finding("file", line, "problem", advice)
    for line in check.warnings(path):
        yield Finding("file", line, "warning", line)
    if not wrong:
        yield Finding("file", f"{path}: fine")


def print_report(report: Report) -> None:
    """Print a report section by section, and what to do."""
    width = shutil.get_terminal_size((_WIDE, 24)).columns if sys.stdout.isatty() else _WIDE
    wide = min(_NAME, max(len(one.name) for one in report.findings))
    for section, some in groupby(report.findings, lambda one: one.section):
        click.secho(f"{section[0].upper()}{section[1:]}", bold=True)
        for one in some:
            _print_line(one, wide, width)
    _print_advice(report.findings, width)


def _print_line(one: Finding, wide: int, width: int) -> None:
    lead = f"  {one.state:<7}  "
    head = f"{plain(one.name):<{wide}}  "
    indent = " " * (len(lead) + wide + 2)
    lines = _wrapped(plain(one.value), lead + head, indent, width)
    click.echo(click.style(lead, fg=_COLOURS[one.state]) + lines[0][len(lead) :])
    for line in lines[1:]:
        click.echo(line)


def _print_advice(some: list[Finding], width: int) -> None:
    from agent.cli.checks import advice_of

    counts = {state: sum(one.state == state for one in some) for state in ("problem", "warning")}
    summary = " and ".join(f"{count} {state}{'s' * (count != 1)}" for state, count in counts.items() if count)
    click.secho(f"{summary}; what to do:" if summary else "No problems found.", bold=True)
    for number, sentence in enumerate(advice_of(some), 1):
        for line in _wrapped(plain(sentence), f"  {number}. ", " " * 5, width):
            click.echo(line)


def _wrapped(text: str, first: str, other: str, width: int) -> list[str]:
    """Wrap to `width` columns without breaking paths and commands at hyphens."""
    lines = textwrap.wrap(
        text,
        max(width, len(other) + _LEAST),
        initial_indent=first,
        subsequent_indent=other,
        break_on_hyphens=False,
    )
    return lines or [first.rstrip()]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def devices(as_json: bool) -> None:
    """List the cameras and microphones of this machine with the URI that a configuration needs."""
    from agent.capture.devices import devices as find_devices

    found = find_devices()
    if as_json:
        print_json(found, indent=2)
    else:
        _print_devices(found)


def _print_devices(found: Devices) -> None:
    for kind, some in (("camera", found.cameras), ("microphone", found.microphones)):
        if some:
            _print_kind(f"{kind.capitalize()}s", some)
        else:
            click.echo(f"No {kind} was found.")
    for sentence in found.missing:
        click.echo(plain(sentence))


def _print_kind(title: str, some: list[CaptureDevice]) -> None:
    from rich.text import Text

    table = open_table("name", "offers", "source")
    for device in some:
        table.add_row(*(Text(plain(cell)) for cell in (device.name, device.offers, device.uri)))
    click.echo(title)
    console(160).print(table)
