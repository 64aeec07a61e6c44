"""Serve pages and files over HTTP or HTTPS to a few clients at a time, as a table of the configuration says.

Every connection has a thread and a deadline for each of its steps, whatever it sends: a client that sends a byte
now and then is cut off like one that sends none, and so is one that does not read. One request is answered per
connection.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import io
import ipaddress
import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from email.message import Message
from functools import partial
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any, BinaryIO

from msgspec import Struct

from agent.comms.mqtt.endpoint import load_certificate
from agent.config.servers import ServedConfig, is_loopback, read_password
from agent.errors import ConfigError, reason_of

log = logging.getLogger(__name__)


class HttpLimits(Struct, frozen=True):
    """Bounds of a server.

    Attributes:
        connections: that are served at a time.
        wait_s: for one of their places, before a connection is closed, s.
        request_s: for the TLS handshake, and for a whole request, s.
        answer_s: for sending the answer, of a file for each `piece_bytes` of it, s.
        request_bytes: largest request: its line and all headers.
        piece_bytes: of a file that are read and sent at once.
        wrong_s: wait before the answer to a wrong password, s.
        retry_s: between two attempts to listen, s.
    """

    connections: int = 8
    wait_s: float = 1.0
    request_s: float = 5.0
    answer_s: float = 10.0
    request_bytes: int = 16 * 1024
    piece_bytes: int = 256 * 1024
    wrong_s: float = 0.3
    retry_s: float = 30.0


LIMITS = HttpLimits()
_POLL_S = 0.25
_END = re.compile(rb"\r?\n\r?\n")
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+|localhost))(?::[0-9]{0,5})?", re.IGNORECASE)


class Access(Struct, frozen=True):
    """Login and encryption that a server asks of its clients.

    Attributes:
        username, password: for basic authentication (RFC 7617); an empty user name: none is asked for.
        tls: for HTTPS; None: plain HTTP.
    """

    username: str = ""
    password: str = ""
    tls: ssl.SSLContext | None = None

    def allows(self, header: str) -> bool:
        """Return True if the value of an `Authorization` header gives user and password."""
        if not self.username:
            return True
        scheme, _, coded = header.strip().partition(" ")
        try:
            given = base64.b64decode(coded.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        wanted = f"{self.username}:{self.password}".encode()
        return hmac.compare_digest(given, wanted) and scheme.lower() == "basic"


def read_access(config: ServedConfig) -> Access:
    """Return who is let in, with the password and the certificate read from their files.

    Raises:
        ConfigError: the address is none, others could read it without a password, or a file cannot be used.
    """
    host, _ = config.address
    for key, other in (("username", "password_file"), ("password_file", "username"), ("key_file", "cert_file")):
        if getattr(config, key) and not getattr(config, other):
            raise config.wrong(key, f"is set but {other} is not")
    if ":" in config.username:
        raise config.wrong("username", f"= {config.username!r}: basic authentication allows no colon in it")
    if not config.username and (config.NEEDS_LOGIN or not is_loopback(host)):
        key = "username" if config.NEEDS_LOGIN else "listen"
        raise config.wrong(key, "lets others read what is served; set username and password_file")
    password, tls = "", None
    if config.password_file:
        password = read_password(config.password_file, partial(config.wrong, "password_file"))
    if config.cert_file:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        load_certificate(tls, config.cert_file, config.key_file, config.wrong)
    return Access(config.username, password, tls)


class HttpRequest(Struct, frozen=True):
    """Request of a client.

    Attributes:
        path: with the query, as sent: anybody may have written it.
        headers: of the request.
    """

    path: str
    headers: Message


class Answer(Struct, frozen=True):
    """Answer to a request.

    Attributes:
        body: content.
        content_type: its media type.
        code: of HTTP.
        headers: further ones.
        file: that is sent after the body, from its position on, and closed; None: none is.
        length: bytes of the file to send.
    """

    body: bytes
    content_type: str
    code: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    file: BinaryIO | None = None
    length: int = 0


Respond = Callable[[HttpRequest], Answer]
"""Function that answers a request of a client that was let in. Any thread may call it."""


def text_answer(code: int, text: str, *headers: tuple[str, str]) -> Answer:
    """Return an answer of a line of text."""
    return Answer(f"{text}\n".encode(), "text/plain; charset=utf-8", code, headers)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an IP address, or on 127.0.0.1 for `localhost`.

    Raises:
        OSError: the port is in use or not allowed, or this machine does not have the address.
    """
    is_6 = ":" in host
    address = "127.0.0.1" if host.lower() == "localhost" else host, port
    family = socket.AF_INET6 if is_6 else socket.AF_INET
    return socket.create_server(address, family=family, backlog=16, dualstack_ipv6=is_6)


class HttpServer(ThreadingTCPServer):
    """Answers requests in threads of its own until `close`. Any thread may call every method.

    Attributes:
        name: for the log and the threads.
        access: who is let in; may be replaced while the server runs.
        limits: see `HttpLimits`.
    """

    daemon_threads, block_on_close = True, False

    def __init__(
        self, name: str, listener: socket.socket, respond: Respond, access: Access, limits: HttpLimits = LIMITS
    ) -> None:
        """Serve on a listening socket, see `listen`."""
        super().__init__(listener.getsockname(), BaseHTTPRequestHandler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.name, self._respond, self.limits, self.access = listener, name, respond, limits, access
        self._slots = threading.BoundedSemaphore(limits.connections)
        self._has_failed = False
        threading.Thread(target=self.serve_forever, args=(_POLL_S,), name=name, daemon=True).start()

    @property
    def address(self) -> tuple[str, int]:
        """Address and port that it listens on."""
        host, port, *_ = self.socket.getsockname()
        return host, port

    def close(self) -> None:
        """Free the port. Answers that are being sent go on to their end."""
        self.shutdown()
        self.server_close()

    def respond(self, request: HttpRequest) -> Answer:
        """Answer a request; a failure is an answer, too, and logged once."""
        try:
            return self._respond(request)
        except Exception:
            if not self._has_failed:
                log.exception("%s: internal error (please report); the answer is 500", self.name)
            self._has_failed = True
            return text_answer(500, "internal error, see the log")

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(timeout=self.limits.wait_s):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no more threads are allowed
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        access = self.access
        request.settimeout(self.limits.request_s)
        if access.tls is not None:
            request = access.tls.wrap_socket(request, server_side=True)
        with request:
            _Handler(request, self, access)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log that the client is slow, gone, or speaks no TLS."""
        log.debug("%s: a client was cut off", self.name, exc_info=True)


def names_an_address(host: str) -> bool:
    """Return True if the value of a `Host` header is an IP address or `localhost`, with or without a port."""
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    try:
        _ = ipaddress.IPv6Address(found[1]) if found[1] else ipaddress.IPv4Address(found[2])
    except ValueError:
        return host.lower().startswith("localhost")
    return True


class _Handler(BaseHTTPRequestHandler):
    """Reads a whole request, answers into memory, and sends that."""

    protocol_version = "HTTP/1.1"

    def __init__(self, connection: socket.socket, server: HttpServer, access: Access) -> None:
        self._server, self._access, self._limits = server, access, server.limits
        self._file: tuple[BinaryIO, int] = io.BytesIO(), 0
        super().__init__(connection, ("", 0), server)

    def setup(self) -> None:
        self.connection, self.wfile, self.rfile = self.request, io.BytesIO(), io.BytesIO(self._read())

    def _read(self) -> bytes:
        """Return the request up to the end of its headers."""
        data, until = b"", time.monotonic() + self._limits.request_s
        while not _END.search(data):
            if (left_s := until - time.monotonic()) <= 0.0:
                raise TimeoutError("the request is too slow")
            self.request.settimeout(left_s)
            if not (piece := self.request.recv(4096)):
                break
            data += piece
            if len(data) > self._limits.request_bytes:
                raise ValueError("the request is too long")
        return data

    def handle(self) -> None:
        self.handle_one_request()

    def finish(self) -> None:
        """Send the whole answer; the time-out of `sendall` is for all that it is given."""
        self.request.settimeout(self._limits.answer_s)
        file, length = self._file
        with file:
            self.request.sendall(self.wfile.getvalue())  # type: ignore[attr-defined]  # see `setup`
            while piece := file.read(min(length, self._limits.piece_bytes)):
                self.request.sendall(piece)
                length -= len(piece)

    def do_GET(self) -> None:
        if not self._access.allows(given := self.headers.get("Authorization", "")):
            if given:
                time.sleep(self._limits.wrong_s)  # so that passwords cannot be tried fast
            login = "WWW-Authenticate", 'Basic realm="Vedette", charset="UTF-8"'
            self._reply(text_answer(401, "user name or password is wrong", login))
        elif not self._access.username and not names_an_address(self.headers.get("Host", "")):
            # A website could let its own name lead to this machine, to read the answer in a visitor's browser.
            self._reply(text_answer(403, "without username and password, ask for an IP address or localhost"))
        else:
            self._reply(self._server.respond(HttpRequest(self.path, self.headers)))

    def _reply(self, answer: Answer) -> None:
        self.send_response(answer.code)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body) + answer.length))
        self.send_header("Connection", "close")
        for name, value in answer.headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)
        if answer.file is not None:
            self._file = answer.file, answer.length

    def version_string(self) -> str:
        return "Vedette"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base class
        log.debug("%s: " + format, self._server.name, *args)


class HttpEndpoint:
    """Keeps a server as the configuration wants it. For the daemon's thread.

    Attributes:
        trouble: why nothing is served as configured, for health; empty: it is, or nothing is wanted.
    """

    def __init__(self, name: str, respond: Respond, limits: HttpLimits = LIMITS) -> None:
        """Serve nothing before `configure`; `name` is for the log."""
        self._name, self._respond, self._limits = name, respond, limits
        self._wanted: ServedConfig | None = None
        self._server: HttpServer | None = None
        self._served: tuple[str, int] | None = None
        self._failed_at = 0.0
        self.trouble = ""

    def configure(self, config: ServedConfig | None) -> None:
        """Serve as a configuration says that `read_access` accepts; its files are read again."""
        self._wanted = config
        if config is None:
            self.close()
        else:
            self._try(config)

    def poll(self) -> None:
        """Try again to listen if that is due."""
        if self.trouble and self._wanted and time.monotonic() - self._failed_at >= self._limits.retry_s:
            self._try(self._wanted)

    def close(self) -> None:
        """Stop serving."""
        server, self._server, self._served, self.trouble = self._server, None, None, ""
        if server is not None:
            server.close()

    def _try(self, config: ServedConfig) -> None:
        before, self.trouble = self.trouble, ""
        try:
            access = read_access(config)
            if self._server is not None and self._served == config.address:
                self._server.access = access
                return
            self.close()
            self._server = HttpServer(self._name, listen(*config.address), self._respond, access, self._limits)
            self._served = config.address
            scheme = "http" if access.tls is None else "https"
            log.info("%s: served at %s://%s%s", self._name, scheme, config.listen, config.PATH)
        except (ConfigError, OSError) as error:
            self.trouble = f"cannot listen on {config.listen}: {reason_of(error)}"
            self._failed_at = time.monotonic()
            if self.trouble != before:
                log.error("%s: %s; trying again", self._name, self.trouble)
