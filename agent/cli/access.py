"""Options of the verbs that meet a broker: where it is, and who we are there."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

if TYPE_CHECKING:
    from agent.comms.consumer.client import BrokerOptions


F = TypeVar("F", bound=Callable[..., Any])


def first_line(context: click.Context, option: click.Parameter, path: Path | None) -> str:
    """Of a password's file."""
    try:
        return path.read_text(encoding="utf-8").partition("\n")[0].removesuffix("\r") if path else ""
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"{path}: not UTF-8 at byte {error.start}") from None


def _or_empty(context: click.Context, option: click.Parameter, path: str | None) -> str:
    return path or ""


def _ws_path(context: click.Context, option: click.Parameter, text: str) -> str:
    if not re.fullmatch("/[!-~]*", text):
        raise click.BadParameter(f"{text!r} is no path: it begins with / and holds no spaces")
    return text


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


_FILE = click.Path(exists=True, dir_okay=False)
_OPTIONS = (
    click.option("-H", "--host", default="localhost", show_default=True, help="The broker."),
    click.option(
        "-p",
        "--port",
        type=click.IntRange(1, 65535),
        help="Its port; default: 1883, or 8883 with TLS; over WebSocket 80, or 443 with TLS.",
    ),
    click.option("-u", "--username", default="", help="User name at the broker."),
    click.option(
        "--password-file",
        "password",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        callback=first_line,
        help="Its first line.",
    ),
    click.option("--tls", is_flag=True, help="Encrypt; implied by --ca-file and --cert-file."),
    click.option("--ca-file", type=_FILE, callback=_or_empty, help="Trust this CA (PEM)."),
    click.option("--cert-file", type=_FILE, callback=_or_empty, help="Our client certificate (PEM)."),
    click.option("--key-file", type=_FILE, callback=_or_empty, help="Its key (PEM)."),
    click.option("--alpn", multiple=True, metavar="NAME", help="Protocol offered in the TLS handshake: mqtt."),
    click.option(
        "--transport",
        type=click.Choice(["tcp", "websockets"]),
        default="tcp",
        help="websockets for a broker behind a web server.",
    ),
    click.option("--ws-path", default="/mqtt", show_default=True, callback=_ws_path, help="Of the WebSocket."),
    click.option(
        "--prefix", default="vedette", show_default=True, callback=topic, help="First level of the topics."
    ),
)


def broker_options(verb: F) -> F:
    """Give a verb `access`, how to reach the broker, and `prefix`, for the options that say so."""

    @functools.wraps(verb)
    def with_access(**given: Any) -> Any:
        return verb(access=_access(given), **given)

    wrapped = cast("F", with_access)
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


def _access(given: dict[str, Any]) -> BrokerOptions:
    """Takes what it needs out of the options."""
    from agent.comms.consumer.client import BrokerOptions

    said = {key: given.pop(key) for key in BrokerOptions.__struct_fields__}
    access = BrokerOptions(**said | {"port": said["port"] or 0})
    _check_host(access)
    if access.key_file and not access.cert_file:
        raise click.UsageError("--key-file needs --cert-file")
    if access.alpn and not access.uses_tls:
        raise click.UsageError("--alpn is said in the TLS handshake: add --tls")
    return access


def _check_host(access: BrokerOptions) -> None:
    from agent.comms.consumer.client import as_options
    from agent.comms.mqtt.endpoint import check_host
    from agent.errors import ConfigError

    try:
        check_host(access.config)
    except ConfigError as error:
        raise click.UsageError(as_options(str(error))) from None
