"""`[mqtt]` and the tables of what is served over HTTP; passwords and certificates are in files of their own."""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from msgspec import Meta, Struct

from agent.config.toml import Seconds
from agent.errors import ConfigError, VedetteError, reason_of
from agent.text import has_variable, replace_variable

_VARIABLE = "CREDENTIALS_DIRECTORY"
_OF_UNIT = "/run/credentials/vedette.service"
_LONGEST = 0xFFFF
"""Most bytes of a password in MQTT."""
_ANYBODY = 0o007
Wrong = Callable[[str], VedetteError]
"""Makes the error of a message that begins with what follows the key, such as `= /etc/x: Permission denied`."""


def expand(name: str, wrong: Wrong) -> Path:
    """Return the path of a file with `$CREDENTIALS_DIRECTORY` and `~` expanded.

    Raises:
        VedetteError: as `wrong` makes it: the variable is not set, or the user does not exist.
    """
    try:
        return Path(_with_folder(name, wrong)).expanduser()
    except RuntimeError as error:  # the home of a user who does not exist
        raise wrong(f"= {name}: {error}; set it to a full path") from error


def _with_folder(name: str, wrong: Wrong) -> str:
    if not wants_credentials(name):
        return name
    folder = os.environ.get(_VARIABLE, "")
    if not folder and os.access(_OF_UNIT, os.R_OK | os.X_OK):  # root may see the unit's credentials while it runs
        folder = _OF_UNIT
    if not folder:
        missing = KeyError(_VARIABLE)
        raise wrong(f"= {name}: ${_VARIABLE} is not set; systemd sets it with LoadCredential=") from missing
    return replace_variable(name, _VARIABLE, folder)


def wants_credentials(name: str) -> bool:
    """Return True if a path lies among the unit's credentials, which no other program may read."""
    return has_variable(name, _VARIABLE)


def is_open_to_all(path: Path) -> bool:
    """Return True if every user of this machine may read or change a plain file.

    Devices, pipes and folders hold no password, and their permissions must stay.
    """
    try:
        mode = path.stat().st_mode
        return stat.S_ISREG(mode) and bool(mode & _ANYBODY)
    except (OSError, ValueError):
        return False


def readable(name: str, wrong: Wrong) -> Path:
    """Return the expanded path of a file that can be read. Raises VedetteError, as `wrong` makes it."""
    path = expand(name, wrong)
    _read(path, wrong, 0)
    return path


def read_password(name: str, wrong: Wrong) -> str:
    """Return the first line of a file. No error holds anything of its content.

    Raises:
        VedetteError: as `wrong` makes it: the file cannot be read, or its first line is no password.
    """
    path = expand(name, wrong)
    line = _read(path, wrong, _LONGEST + 3).partition(b"\n")[0].removesuffix(b"\r")
    try:
        text = line.decode("utf-8-sig")  # Windows editors write a byte order mark
    except UnicodeDecodeError:
        text = ""
    if not text or len(line) > _LONGEST or any(char < " " and char != "\t" for char in text):
        raise wrong(f"= {path}: its first line must be the password: text in UTF-8, at most {_LONGEST} bytes")
    return text


def _read(path: Path, wrong: Wrong, size: int) -> bytes:
    try:
        # Without waiting for the writer of a pipe.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise wrong(f"= {path}: is a pipe, a device or a socket, and must be a file")
            return file.read(size)
    except (OSError, ValueError) as error:
        raise wrong(f"= {path}: {reason_of(error)}") from error


Host = Annotated[str, Meta(min_length=1)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Transport = Literal["tcp", "websockets"]
MqttVersion = Literal["auto", "5", "3.1.1"]
_PREFIX = {
    "use": "use one or more parts with / between them, none of them empty, without +, # and control characters, "
    "the first of them without $ at its beginning"
}
_USERNAME = {"use": "leave out control characters"}
_WS_PATH = {"use": "begin with /, and use printable ASCII characters without spaces"}
_ALPN = {"use": "use 1 to 255 printable ASCII characters without spaces"}
WsPath = Annotated[str, Meta(pattern=r"^/[!-~]*$", extra=_WS_PATH)]
Alpn = tuple[Annotated[str, Meta(pattern=r"^[!-~]{1,255}$", extra=_ALPN)], ...]
# Brokers end a connection that sends a control character in a name: MQTT 5.0, section 1.5.4.
_LEVEL = r"[^+#/\x00-\x1f\x7f-\x9f]+"
Prefix = Annotated[str, Meta(pattern=rf"^(?!\$){_LEVEL}(/{_LEVEL})*$", extra=_PREFIX)]
Username = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$", extra=_USERNAME)]


class MqttConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[mqtt]`: the broker. In the names of its files `$CREDENTIALS_DIRECTORY`, which systemd sets, is expanded.

    Attributes:
        host: name or address of the broker.
        port: 0 means 1883, or 8883 with TLS; over WebSocket 80, or 443 with TLS.
        transport: `websockets` for a broker behind a web server or a proxy.
        ws_path: path of the WebSocket.
        username: empty for an anonymous connection.
        password_file: file whose first line is the password.
        tls: encrypt; implied by `ca_file` and `cert_file`.
        ca_file: PEM bundle to trust instead of the system's.
        cert_file, key_file: client certificate and key, PEM.
        alpn: protocols offered in the TLS handshake, for a broker that shares port 443 with others: `["mqtt"]`;
            `["x-amzn-mqtt-ca"]` for AWS IoT.
        protocol: `auto` tries MQTT 5 first, then 3.1.1.
        prefix: first level of every topic.
        keepalive_s: silence after which the broker reports the device offline, s.
        reconnect_max_s: longest pause between two attempts to connect, s. Left out: 60, and 5 while a broker of
            the local network cannot be reached.
        commands: whether commands are taken from the broker. Left out: they are if this device logs in to it with
            `username` and `password_file` or with a client certificate, so that its access list can say who
            commands. A broker without that may let anybody on the network in, also one on this machine.
        event_expiry_s: time that the broker keeps an event for a disconnected subscriber, s; 0: the broker's
            choice. MQTT 5 only.
    """

    host: Host = "localhost"
    port: Port = 0
    transport: Transport = "tcp"
    ws_path: WsPath = "/mqtt"
    username: Username = ""
    password_file: str = ""
    tls: bool = False
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    alpn: Alpn = ()
    protocol: MqttVersion = "auto"
    prefix: Prefix = "vedette"
    keepalive_s: Annotated[int, Meta(ge=5, le=3600)] = 30
    reconnect_max_s: Seconds | None = None
    commands: bool | None = None
    event_expiry_s: Annotated[int, Meta(ge=0, le=4_000_000_000)] = 7 * 86400


_LISTEN = {"use": 'use an address and a port, such as "127.0.0.1:9469" or "[::1]:9469"'}
METRICS_PORT, PAGE_PORT = 9469, 9470
_Listen = Annotated[str, Meta(pattern=r"^\S+:[0-9]{1,5}$", extra=_LISTEN)]


class ServedConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """A table that has something served over HTTP; it enables this, even an empty one.

    In the names of its files `$CREDENTIALS_DIRECTORY` is expanded, which systemd sets.

    Attributes:
        listen: address and port. Addresses but those of this machine alone need `username` and `password_file`;
            clips need them always.
        username: that a client must give by HTTP's basic authentication.
        password_file: file whose first line is the password.
        cert_file, key_file: certificate and key of this server, PEM; they turn HTTPS on.
    """

    TABLE: ClassVar[str] = ""
    """Name of the table."""
    PATH: ClassVar[str] = "/"
    """Path that is served."""
    NEEDS_LOGIN: ClassVar[bool] = False
    """True if it needs a login also on this machine, where every user could read it."""

    listen: _Listen = "127.0.0.1:0"
    username: str = ""
    password_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    @property
    def address(self) -> tuple[str, int]:
        """Host without brackets, and port.

        Raises:
            ConfigError: the host is neither an IP address nor `localhost`, or the port is no port.
        """
        host, _, port = self.listen.rpartition(":")
        is_bare = ":" not in host or (host.startswith("[") and host.endswith("]"))
        host = host.removeprefix("[").removesuffix("]")
        is_here = _as_ip(host) or host.lower() == "localhost"
        if not (is_bare and is_here and 1 <= int(port) <= 65535):
            text = f"= {self.listen!r}: expected an IP address of this machine and a port from 1 to 65535"
            raise self.wrong("listen", f"{text}, such as '127.0.0.1:9469' or '[::1]:9469'")
        return host, int(port)

    def wrong(self, key: str, what: str) -> ConfigError:
        """Return the error of a key of this table."""
        return ConfigError(f"[{self.TABLE}] {key} {what}", keys=(self.TABLE, key))


class MetricsConfig(ServedConfig, frozen=True, forbid_unknown_fields=True):
    """`[metrics]`: serve metrics for Prometheus at `http://ADDRESS:PORT/metrics`. Keys are in `ServedConfig`."""

    TABLE, PATH = "metrics", "/metrics"

    listen: _Listen = f"127.0.0.1:{METRICS_PORT}"


class PageConfig(ServedConfig, frozen=True, forbid_unknown_fields=True):
    """`[page]`: serve a page with the newest clips at `http://ADDRESS:PORT/`. Keys are in `ServedConfig`."""

    TABLE, NEEDS_LOGIN = "page", True

    listen: _Listen = f"127.0.0.1:{PAGE_PORT}"


def _as_ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Return True if only this machine reaches a host: an address of the loopback interface, or `localhost`."""
    found = _as_ip(host)
    if found is None:
        return host.lower() == "localhost"
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback
