"""Check that the port of `[metrics]` or `[page]` is free, or served by the running daemon."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator
from urllib.parse import unquote

from agent.cli.checks import Finding
from agent.comms.http import SERVER, listen, server_header
from agent.config.http import ServedConfig
from agent.errors import ConfigError, reason_of
from agent.text import plain

_TRY_S = 3.0


def findings(section: str, config: ServedConfig, device: str) -> Iterator[Finding]:
    """Report who uses the port of a device, which has this name. Nothing is left listening on it."""
    where, name = config.listen, config.TABLE
    try:
        host, port = config.address
    except ConfigError:
        return  # reported by the configuration's section
    try:
        listen(host, port).close()
    except OSError as error:
        server = server_of(host, port, encrypted=bool(config.cert_file))
        if server in (SERVER, server_header(device)):  # earlier versions did not tell their name
            yield Finding(section, name, f"{where}: served by the running daemon")
            return
        is_other = server.startswith(f"{SERVER} (")
        why = f"used by the daemon of the device {device_of(server)!r}" if is_other else reason_of(error)
        advice = (
            f"[{name}] listen = {where!r} cannot be used: {why}; end the other program, or choose another port"
        )
        yield Finding(section, name, f"{where}: {why}", "problem", advice)
        return
    yield Finding(section, name, f"{where}: free; no daemon serves it now")


def device_of(server: str) -> str:
    """Return the name of the device that sends this header `Server`, see `server_header`."""
    return plain(unquote(server.removeprefix(f"{SERVER} (").removesuffix(")")))


def server_of(host: str, port: int, *, encrypted: bool) -> str:
    """Return the header `Server` of who answers there, with or without letting this program in; empty: none."""
    connection: http.client.HTTPConnection
    target = _reachable(host)
    if encrypted:
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE  # nothing is sent that is secret
        connection = http.client.HTTPSConnection(target, port, timeout=_TRY_S, context=trusting)
    else:
        connection = http.client.HTTPConnection(target, port, timeout=_TRY_S)
    try:
        connection.request("HEAD", "/")
        return connection.getresponse().getheader("Server") or ""
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def _reachable(host: str) -> str:
    """Return an address at which a server on `host` answers: nobody connects to the unspecified one."""
    try:
        packed = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    except OSError:
        return "127.0.0.1"  # localhost
    return ("::1" if ":" in host else "127.0.0.1") if not any(packed) else host
