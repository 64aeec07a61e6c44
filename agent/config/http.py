"""`[metrics]` and `[page]`: what is served over HTTP, and the rules for the address that it is served at."""

from __future__ import annotations

import ipaddress
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

from agent.errors import ConfigError

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
        if ":" in host and not (host.startswith("[") and host.endswith("]")):
            raise self.wrong(
                "listen", f"= {self.listen!r}: write an IPv6 address in brackets, such as '[::1]:{port}'"
            )
        host = host.removeprefix("[").removesuffix("]")
        if not _as_ip(host) and host.lower() != "localhost":
            raise self.wrong(
                "listen", f"= {self.listen!r}: expected an IP address of this machine, found {host!r}"
            )
        if not 1 <= int(port) <= 65535:
            raise self.wrong("listen", f"= {self.listen!r}: expected a port from 1 to 65535, found {port}")
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
