"""Options of the verbs that meet a broker: where it is, and who we are there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def first_line(context: click.Context, option: click.Parameter, path: Path | None) -> str:
    """Of a password's file."""
    try:
        return path.read_text(encoding="utf-8").partition("\n")[0].removesuffix("\r") if path else ""
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"{path}: not UTF-8 at byte {error.start}") from None


def topic(context: click.Context, option: click.Parameter, text: str) -> str:
    """A topic without wildcards."""
    if not text or set(text) & set("+#\0"):
        raise click.BadParameter(f"{text!r} is no topic: it may not be empty, nor hold + or #")
    return text


def device_name(context: click.Context, option: click.Parameter, text: str) -> str:
    """One level of a topic."""
    if "/" in text:
        raise click.BadParameter(f"{text!r} is no device: its name holds no /")
    return topic(context, option, text)


_OPTIONS = (
    click.option("-H", "--host", default="localhost", show_default=True, help="The broker."),
    click.option(
        "-p", "--port", type=click.IntRange(1, 65535), help="Its port; default: 1883, or 8883 with TLS."
    ),
    click.option("-u", "--username", default="", help="User name at the broker."),
    click.option(
        "--password-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        callback=first_line,
        help="Its first line.",
    ),
    click.option("--tls", is_flag=True, help="Encrypt."),
    click.option("--ca-file", type=click.Path(exists=True, dir_okay=False), help="Trust this CA (PEM)."),
    click.option(
        "--prefix", default="vedette", show_default=True, callback=topic, help="First level of the topics."
    ),
)


def broker_options(verb: F) -> F:
    """Give a verb `host`, `port`, `username`, `password_file` (the password), `tls`, `ca_file` and `prefix`."""
    for option in reversed(_OPTIONS):
        verb = option(verb)
    return verb
