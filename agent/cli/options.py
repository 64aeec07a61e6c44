"""Options that several verbs share: access to a broker, durations, times, and the state folder."""

from __future__ import annotations

import functools
import math
import os
import re
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from agent.errors import ConfigError

if TYPE_CHECKING:
    from agent.comms.consumer import BrokerOptions


F = TypeVar("F", bound=Callable[..., Any])
DEFAULT_CONFIG = Path("/etc/vedette/vedette.toml")


class FilePath(click.Path):
    """A path, as `pathlib.Path`. An empty text, as of a shell variable that is not set, is refused."""

    def __init__(self, *, dir_okay: bool = True, file_okay: bool = True) -> None:
        super().__init__(path_type=Path, dir_okay=dir_okay, file_okay=file_okay)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not os.fspath(value).strip():
            self.fail("is empty: expected a path", param, ctx)
        return super().convert(value, param, ctx)


PATH = FilePath()


class NumberRange(click.FloatRange):
    """A range of finite numbers; NaN compares as neither below nor above."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is {'not a number' if math.isnan(found) else 'infinite'}", param, ctx)
        return found


def config_option(text: str, *, required: bool = True) -> Callable[[F], F]:
    """Return the option `-c`, passed as `path`; if not `required`, None unless it is given."""
    if required:
        return click.option(
            "-c", "--config", "path", type=PATH, default=DEFAULT_CONFIG, show_default=True, help=text
        )
    text = f"{text}  [default: {DEFAULT_CONFIG}, if it exists]"
    return click.option("-c", "--config", "path", type=PATH, help=text)


def first_line(context: click.Context, option: click.Parameter, path: Path | None) -> str:
    """Read the first line of a password file."""
    try:
        return path.read_text(encoding="utf-8").partition("\n")[0].removesuffix("\r") if path else ""
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"{path}: not UTF-8 at byte {error.start}") from None


def _or_empty(context: click.Context, option: click.Parameter, path: str | None) -> str:
    return path or ""


def _ws_path(context: click.Context, option: click.Parameter, text: str) -> str:
    if not re.fullmatch("/[!-~]*", text):
        raise click.BadParameter(f"expected a path that begins with / and has no spaces, found {text!r}")
    return text


def topic(context: click.Context, option: click.Parameter, text: str) -> str:
    """Check that a topic is not empty and has no wildcards."""
    if not text:
        raise click.BadParameter("is empty")
    if set(text) & set("+#\0"):
        raise click.BadParameter(f"expected a topic without + and #, found {text!r}")
    return text


def device_name(context: click.Context, option: click.Parameter, text: str) -> str:
    """Check that a device name is one level of a topic."""
    if "/" in text:
        raise click.BadParameter(f"expected the name of a device, without /, found {text!r}")
    return topic(context, option, text)


_FILE = click.Path(exists=True, dir_okay=False)
_OPTIONS = (
    click.option("-H", "--host", default="localhost", show_default=True, help="Host name of the broker."),
    click.option(
        "-p",
        "--port",
        type=click.IntRange(1, 65535),
        help="Port; default: 1883, or 8883 with TLS; over WebSocket 80, or 443 with TLS.",
    ),
    click.option("-u", "--username", default="", help="User name at the broker."),
    click.option(
        "--password-file",
        "password",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        callback=first_line,
        help="File whose first line is the password.",
    ),
    click.option("--tls", is_flag=True, help="Encrypt the connection; implied by --ca-file and --cert-file."),
    click.option("--ca-file", type=_FILE, callback=_or_empty, help="Trust this CA only (PEM)."),
    click.option("--cert-file", type=_FILE, callback=_or_empty, help="Client certificate (PEM)."),
    click.option("--key-file", type=_FILE, callback=_or_empty, help="Key of the client certificate (PEM)."),
    click.option("--alpn", multiple=True, metavar="NAME", help="Protocol to offer in the TLS handshake."),
    click.option(
        "--transport",
        type=click.Choice(["tcp", "websockets"]),
        default="tcp",
        help="Use websockets for a broker behind a web server.",
    ),
    click.option("--ws-path", default="/mqtt", show_default=True, callback=_ws_path, help="WebSocket path."),
    click.option(
        "--prefix", default="vedette", show_default=True, callback=topic, help="First level of every topic."
    ),
)


def broker_options(verb: F) -> F:
    """Add the broker's options to a verb, which receives them as `access` and `prefix`."""

    @functools.wraps(verb)
    def with_access(**given: Any) -> Any:
        return verb(access=_access(given), **given)

    wrapped = cast("F", with_access)
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


def _access(given: dict[str, Any]) -> BrokerOptions:
    from agent.comms.consumer import BrokerOptions, as_options
    from agent.comms.mqtt.endpoint import check_host

    values = {key: given.pop(key) for key in BrokerOptions.__struct_fields__}
    access = BrokerOptions(**values | {"port": values["port"] or 0})
    try:
        check_host(access.config)
    except ConfigError as error:
        raise click.UsageError(as_options(str(error))) from None
    if access.key_file and not access.cert_file:
        raise click.UsageError("--key-file needs --cert-file")
    if access.alpn and not access.uses_tls:
        raise click.UsageError("--alpn needs TLS: add --tls")
    return access


def this_device() -> str:
    """Return the name of the device that this machine's configuration gives, else the host name."""
    from agent.config import Config
    from agent.config.load import load
    from agent.daemon.runtime import device_name as name_of

    try:
        return name_of(load(DEFAULT_CONFIG).config)
    except ConfigError:
        return name_of(Config())


_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(text: str) -> float:
    """Convert `20`, `20s`, `2m`, `3h` or `7d` to seconds, more than 0.

    Raises:
        click.BadParameter: the text has another form.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text)
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if seconds <= 0.0:
        raise click.BadParameter(f"expected a duration such as 20s or 2m, found {text!r}")
    return seconds


def moment(text: str) -> float:
    """Convert a duration before now, or an ISO 8601 date or time, to Unix time, s.

    A time without a zone is local.

    Raises:
        click.BadParameter: the text is neither.
    """
    try:
        return time.time() - duration(text)
    except click.BadParameter:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(f"expected a time such as 2h, 7d or 2026-11-25T08:30, found {text!r}") from None


def state_folder_option(verb: F) -> F:
    """Add the option `--folder`, passed as `folder`: the state folder, or None."""
    kind = click.Path(exists=True, file_okay=False, path_type=Path)
    return click.option("--folder", type=kind, help="State folder, in place of the configured one.")(verb)
