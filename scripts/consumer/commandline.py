"""The command line of the consumer: what it says, checked."""

from __future__ import annotations

import argparse
import ssl
from pathlib import Path

from stores import check_store


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").partition("\n")[0].removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None


def _store(where: str) -> str:
    try:
        return check_store(where)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _tls(parser: argparse.ArgumentParser, given: argparse.Namespace) -> ssl.SSLContext | None:
    """Return the TLS context; None without encryption."""
    if given.key_file and not given.cert_file:
        parser.error("--key-file needs --cert-file")
    if not (given.tls or given.ca_file or given.cert_file):
        if given.alpn:
            parser.error("--alpn is said in the TLS handshake: add --tls")
        return None
    option = "--ca-file"
    try:
        context = ssl.create_default_context(cafile=given.ca_file)
        option = "--cert-file"
        if given.cert_file:
            context.load_cert_chain(
                given.cert_file, given.key_file, lambda: ""
            )  # a password is asked for nowhere
        if given.alpn:
            context.set_alpn_protocols(given.alpn)
    except OSError as error:
        parser.error(f"{option}: {getattr(given, option[2:].replace('-', '_'))}: {error}")
    return context


def options(purpose: str | None) -> argparse.Namespace:
    """Parse the command line; `tls` becomes a context, and `password_file` the password."""
    parser = argparse.ArgumentParser(
        description=purpose, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, help="default: 1883, or 8883 with TLS; over WebSocket 80 or 443")
    parser.add_argument("--username", default="")
    parser.add_argument("--password-file", type=_first_line, help="its first line")
    parser.add_argument("--tls", action="store_true", help="encrypt; implied by --ca-file and --cert-file")
    parser.add_argument("--ca-file", help="trust this CA (PEM)")
    parser.add_argument("--cert-file", help="client certificate (PEM)")
    parser.add_argument("--key-file", help="its key (PEM)")
    parser.add_argument("--alpn", action="append", help="protocol offered in the TLS handshake: mqtt")
    parser.add_argument("--transport", choices=("tcp", "websockets"), default="tcp")
    parser.add_argument("--ws-path", default="/mqtt", help="of the WebSocket")
    parser.add_argument("--prefix", default="vedette", help="first level of the topics")
    parser.add_argument(
        "--store", type=_store, required=True, help="sqlite:FILE or postgresql://USER@HOST/DATABASE"
    )
    parser.add_argument("--share", default="", help="name of a group that divides the events among its members")
    parser.add_argument("--detections", action="store_true", help="also those, where devices send them at QoS 1")
    parser.add_argument("--client-id", default="vedette-consumer", help="another for each consumer")
    parser.add_argument("--patience", type=float, default=30.0, help="seconds until a number counts as missing")
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    given.tls = _tls(parser, given)
    return given
