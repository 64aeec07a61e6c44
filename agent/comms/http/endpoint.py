"""Serves over HTTP as a table says, takes up its changes, and tries again while the port cannot be had."""

from __future__ import annotations

import logging
import socket
import ssl
import time
from functools import partial
from pathlib import Path

from agent.comms.http.server import Access, HttpServer, Respond, listen
from agent.comms.mqtt.endpoint import tls_reason
from agent.config import secret_file
from agent.config.http import ServedConfig, is_loopback
from agent.errors import ConfigError, reason_of

log = logging.getLogger(__name__)
RETRY_S = 30.0
"""Time between two attempts to listen, s."""


def check_served(config: ServedConfig | None) -> None:
    """Check a table with the files that it names.

    Raises:
        ConfigError: the address is none, others could read it without a password, or a file cannot be used.
    """
    if config is not None:
        read_access(config)


def read_access(config: ServedConfig) -> Access:
    """Return who is let in, with the password and the certificate read from their files.

    Raises:
        ConfigError: see `check_served`.
    """
    host, _ = config.address
    for key, other in (("username", "password_file"), ("password_file", "username"), ("key_file", "cert_file")):
        if getattr(config, key) and not getattr(config, other):
            raise config.wrong(key, f"is set but {other} is not")
    if ":" in config.username:
        raise config.wrong("username", f"= {config.username!r}: basic authentication allows no colon in it")
    if not config.username and config.NEEDS_LOGIN:
        raise config.wrong(
            "username",
            "is not set: every user of this machine could see the clips; set username and password_file",
        )
    if not config.username and not is_loopback(host):
        raise config.wrong(
            "listen",
            f"= {config.listen!r}: others on the network could read it; set username and password_file, or "
            "listen on 127.0.0.1",
        )
    return Access(config.username, _password(config), _certificate(config))


def _password(config: ServedConfig) -> str:
    if not config.password_file:
        return ""
    wrong_file = partial(config.wrong, "password_file")
    return secret_file.read_password(secret_file.expand(config.password_file, wrong_file), wrong_file)


def _certificate(config: ServedConfig) -> ssl.SSLContext | None:
    if not config.cert_file:
        return None
    paths: dict[str, Path] = {}
    for key in ("cert_file", "key_file"):
        if name := getattr(config, key):
            path = paths[key] = secret_file.expand(name, partial(config.wrong, key))
            try:
                with path.open("rb"):
                    pass
            except (OSError, ValueError) as error:
                raise config.wrong(key, f"= {path}: {reason_of(error)}") from error
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(paths["cert_file"], paths.get("key_file"), _no_password)
    except (OSError, ValueError) as error:
        what = f"= {paths['cert_file']}: not usable as PEM (or its key does not fit): {tls_reason(error)}"
        raise config.wrong("cert_file", what) from error
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted; Vedette needs one without a password")


class HttpEndpoint:
    """Keeps a server as the configuration wants it. For the daemon's thread.

    Attributes:
        trouble: why nothing is served as configured, for health; empty: it is, or nothing is wanted.
    """

    def __init__(self, name: str, respond: Respond, device: str = "", retry_s: float = RETRY_S) -> None:
        """Serve nothing before `configure`.

        Args:
            name: for the log.
            respond: is called in threads of the server.
            device: its name, which every client is told.
            retry_s: time between two attempts to listen, s.
        """
        self._device = device
        self._name, self._respond, self._retry_s = name, respond, retry_s
        self._wanted: ServedConfig | None = None
        self._server: HttpServer | None = None
        self._served: tuple[str, int] | None = None
        self._failed_at: float | None = None
        self._began = 0.0
        self.trouble = ""

    def configure(self, config: ServedConfig | None) -> None:
        """Serve as a configuration says that `check_served` accepts; its files are read again.

        The port of the former one is freed when the new one is open, so it is kept if that cannot be had.
        """
        self._wanted, self._failed_at = config, None
        if config is None:
            self.close()
            return
        self._try()

    def poll(self) -> None:
        """Try again to listen if that is due."""
        if self._failed_at is not None and time.monotonic() - self._failed_at >= self._retry_s:
            self._try()

    def close(self) -> None:
        """Stop serving."""
        server, self._server, self._served = self._server, None, None
        self._failed_at, self.trouble = None, ""
        if server is not None:
            server.close()

    def _try(self) -> None:
        assert self._wanted is not None
        config = self._wanted
        try:
            access = read_access(config)
            if self._server is not None and self._served == config.address:
                self._server.access = access
            else:
                self._replace(config, access)
        except (ConfigError, OSError) as error:
            self._fail(f"cannot listen on {config.listen}: {reason_of(error)}")
        else:
            self._succeed(config)

    def _replace(self, config: ServedConfig, access: Access) -> None:
        server = self._serve(self._listen(*config.address), access)
        before, self._server, self._served = self._server, server, config.address
        server.start()
        if before is not None:
            before.close()
        scheme = "http" if access.tls is None else "https"
        log.info("%s: served at %s://%s%s", self._name, scheme, config.listen, config.PATH)

    def _serve(self, listener: socket.socket, access: Access) -> HttpServer:
        return HttpServer(self._name, listener, self._respond, access, device=self._device)

    def _listen(self, host: str, port: int) -> socket.socket:
        """Open a port; the former server is closed for it if it has the port, and opened again if that fails."""
        try:
            return listen(host, port)
        except OSError:
            before, served = self._server, self._served
            if before is None or served is None or served[1] != port:
                raise
        before.close()
        try:
            return listen(host, port)
        except OSError:
            self._server = self._serve(listen(*served), before.access)
            self._server.start()
            raise

    def _fail(self, why: str) -> None:
        kept = f"; still served at {self._described}" if self._server is not None else ""
        trouble = f"{why}{kept}"
        if trouble != self.trouble:
            log.error("%s: %s; trying again", self._name, trouble)
            if not self.trouble:
                self._began = time.monotonic()
        self.trouble, self._failed_at = trouble, time.monotonic()

    @property
    def _described(self) -> str:
        host, port = self._served or ("", 0)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def _succeed(self, config: ServedConfig) -> None:
        if self.trouble:
            seconds = time.monotonic() - self._began
            log.info("%s: listening on %s after %.0f s", self._name, config.listen, seconds)
        self.trouble, self._failed_at = "", None
