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
from contextlib import suppress
from email.message import Message
from functools import partial
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote

from msgspec import Struct

from agent.comms.mqtt.endpoint import load_certificate
from agent.config.servers import ServedConfig, is_loopback, read_password
from agent.errors import ConfigError, reason_of

log = logging.getLogger(__name__)
SERVER = "Vedette"
"""Begins the header `Server`, by which `vedette doctor` knows a daemon's port; the device's name may follow."""
RETRY_S = 30.0
"""Time between two attempts to listen, s."""


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
    """

    connections: int = 8
    wait_s: float = 1.0
    request_s: float = 5.0
    answer_s: float = 10.0
    request_bytes: int = 16 * 1024
    piece_bytes: int = 256 * 1024
    wrong_s: float = 0.3


LIMITS = HttpLimits()
_DRAIN_S = 0.25
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
    if not config.username and (config.NEEDS_LOGIN or not is_loopback(host)):
        who = "every user of this machine" if is_loopback(host) else "others on the network"
        key, value = ("username", "") if config.NEEDS_LOGIN else ("listen", config.listen)
        raise config.wrong(key, f"= {value!r}: {who} could read what is served; set username and password_file")
    password, tls = "", None
    if config.password_file:
        password = read_password(config.password_file, partial(config.wrong, "password_file"))
    if config.cert_file:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        load_certificate(tls, config.cert_file, config.key_file, config.wrong)
    return Access(config.username, password, tls)


def server_header(device: str) -> str:
    """Return the value of the header `Server` of a device."""
    return f"{SERVER} ({quote(device)})" if device else SERVER


class Page(NamedTuple):
    """Body of an answer and its media type."""

    content_type: str
    body: bytes


Render = Callable[[str], Page]
"""Function that returns the page for the value of an `Accept` header."""


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
        page: type and body.
        code: of HTTP.
        headers: further ones.
        file: that is sent after the body, from its position on, and closed; None: none is.
        length: bytes of the file to send.
    """

    page: Page
    code: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    file: BinaryIO | None = None
    length: int = 0


Respond = Callable[[HttpRequest], Answer]
"""Function that answers a request of a client that was let in."""


def text_answer(code: int, text: str) -> Answer:
    """Return an answer of a line of text."""
    return Answer(Page("text/plain; charset=utf-8", f"{text}\n".encode()), code)


def one_page(path: str, render: Render) -> Respond:
    """Return what serves one page, and nothing else."""

    def respond(request: HttpRequest) -> Answer:
        if request.path.partition("?")[0] != path:
            return text_answer(404, f"there is only {path} here")
        return Answer(render(request.headers.get("Accept", "")))

    return respond


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
    """Answers requests in threads of its own from `start` to `close`. Any thread may call every method.

    Attributes:
        name: for the log and the threads.
        access: who is let in; may be replaced while the server runs.
        header: value of `Server`.
        limits: see `HttpLimits`.
    """

    daemon_threads, block_on_close = True, False

    def __init__(
        self,
        name: str,
        listener: socket.socket,
        respond: Respond,
        access: Access,
        limits: HttpLimits = LIMITS,
        device: str = "",
    ) -> None:
        """Serve on a listening socket, see `listen`; every client is told the name of the `device`."""
        super().__init__(listener.getsockname(), BaseHTTPRequestHandler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.name, self._respond, self.limits = listener, name, respond, limits
        self.access, self.header = access, server_header(device)
        self._slots = threading.BoundedSemaphore(limits.connections)
        self._has_failed = False
        self._thread = threading.Thread(target=self.serve_forever, args=(_DRAIN_S,), name=name, daemon=True)

    @property
    def address(self) -> tuple[str, int]:
        """Address and port that it listens on."""
        host, port, *_ = self.socket.getsockname()
        return host, port

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Free the port. Answers that are being sent go on to their end."""
        if self._thread.ident is not None:
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
        self._file: tuple[BinaryIO, int] | None = None
        super().__init__(connection, ("", 0), server)

    def setup(self) -> None:
        self.connection, self._sent = self.request, io.BytesIO()
        self.wfile, self.rfile = self._sent, io.BytesIO(self._read())

    def _read(self) -> bytes:
        """Return the request up to the end of its headers, of one that is too long its first part."""
        data, until = b"", time.monotonic() + self._limits.request_s
        while len(data) <= self._limits.request_bytes and not _END.search(data):
            if (left_s := until - time.monotonic()) <= 0.0:
                raise TimeoutError("the request is too slow")
            self.request.settimeout(left_s)
            if not (piece := self.request.recv(4096)):
                break
            data += piece
        self._is_too_long = len(data) > self._limits.request_bytes
        return data

    def handle(self) -> None:
        if self._is_too_long:
            self.request_version, self.command, self.requestline = self.protocol_version, "", ""
            self._reply(text_answer(431, "the request is too long"))
        else:
            self.handle_one_request()

    def finish(self) -> None:
        """Send the whole answer; the time-out of `sendall` is for all that it is given."""
        self.request.settimeout(self._limits.answer_s)
        file, length = self._file or (io.BytesIO(), 0)
        with file:
            self.request.sendall(self._sent.getvalue())
            while piece := file.read(min(length, self._limits.piece_bytes)):
                self.request.sendall(piece)
                length -= len(piece)
        with suppress(OSError):  # what the client still sends is read: a reset would delete its answer
            self.request.shutdown(socket.SHUT_WR)
            until = time.monotonic() + _DRAIN_S
            while (left_s := until - time.monotonic()) > 0:
                self.request.settimeout(left_s)
                if not self.request.recv(4096):
                    break

    def do_GET(self) -> None:
        if not self._access.allows(given := self.headers.get("Authorization", "")):
            if given:
                time.sleep(self._limits.wrong_s)  # so that passwords cannot be tried fast
            self._reply(text_answer(401, "user name or password is wrong"))
        elif not self._access.username and not names_an_address(self.headers.get("Host", "")):
            # A website could let its own name lead to this machine, to read the answer in a visitor's browser.
            self._reply(text_answer(403, "without username and password, ask for an IP address or localhost"))
        else:
            self._reply(self._server.respond(HttpRequest(self.path, self.headers)))

    do_HEAD = do_GET  # noqa: N815 - as the base class looks it up

    def _reply(self, answer: Answer) -> None:
        page = answer.page
        self.send_response(answer.code)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body) + answer.length))
        self.send_header("Connection", "close")
        for name, value in answer.headers:
            self.send_header(name, value)
        if answer.code == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="Vedette", charset="UTF-8"')
        self.end_headers()
        if answer.file is not None:
            self._file = answer.file, 0 if self.command == "HEAD" else answer.length
        if self.command != "HEAD":
            self.wfile.write(page.body)

    def version_string(self) -> str:
        return self._server.header

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base class
        log.debug("%s: " + format, self._server.name, *args)


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
        self._name, self._respond, self._device, self._retry_s = name, respond, device, retry_s
        self._wanted: ServedConfig | None = None
        self._server: HttpServer | None = None
        self._served: tuple[str, int] | None = None
        self._failed_at = 0.0
        self.trouble = ""

    def configure(self, config: ServedConfig | None) -> None:
        """Serve as a configuration says that `check_served` accepts; its files are read again.

        The port of the former one is freed when the new one is open, so it is kept if that cannot be had.
        """
        self._wanted = config
        if config is None:
            self.close()
        else:
            self._try(config)

    def poll(self) -> None:
        """Try again to listen if that is due."""
        if self.trouble and self._wanted and time.monotonic() - self._failed_at >= self._retry_s:
            self._try(self._wanted)

    def close(self) -> None:
        """Stop serving."""
        server, self._server, self._served, self.trouble = self._server, None, None, ""
        if server is not None:
            server.close()

    def _try(self, config: ServedConfig) -> None:
        trouble, before = "", self.trouble
        try:
            access = read_access(config)
            if self._server is not None and self._served == config.address:
                self._server.access = access
            else:
                self._replace(config, access)
        except (ConfigError, OSError) as error:
            trouble = f"cannot listen on {config.listen}: {reason_of(error)}"
            self._failed_at = time.monotonic()
        self.trouble = trouble
        if trouble and trouble != before:
            log.error("%s: %s; trying again", self._name, trouble)

    def _replace(self, config: ServedConfig, access: Access) -> None:
        if self._served is not None and self._served[1] == config.address[1]:
            self.close()  # the port on another address
        listener = listen(*config.address)
        self.close()
        self._server = HttpServer(self._name, listener, self._respond, access, device=self._device)
        self._served = config.address
        self._server.start()
        scheme = "http" if access.tls is None else "https"
        log.info("%s: served at %s://%s%s", self._name, scheme, config.listen, config.PATH)
