"""Serve pages and files over HTTP or HTTPS to a few clients at a time, without ever holding up the caller.

Every connection has a thread and a deadline for each of its steps, whatever it sends: a client that sends a byte
now and then is cut off like one that sends none, and so is one that does not read. More connections than threads
wait in the system's queue; whoever has read a file for long, but slowly, gives its place to them. One request is
answered per connection.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import io
import ipaddress
import logging
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.message import Message
from http.server import BaseHTTPRequestHandler
from typing import BinaryIO, NamedTuple
from urllib.parse import quote

from msgspec import Struct

from agent.errors import reason_of

log = logging.getLogger(__name__)
SERVER = "Vedette"
"""Begins the header `Server`, by which `vedette doctor` knows a daemon's port; the device's name may follow."""


class HttpLimits(Struct, frozen=True):
    """Bounds of a server.

    Attributes:
        connections: that are served at a time.
        request_s: for the TLS handshake and a whole request, s.
        answer_s: for sending the answer, of a file for each `piece_bytes` of it, s.
        request_bytes: largest request: its line and all headers.
        piece_bytes: of a file that are read and sent at once.
        fair_s: a file that is sent for longer is broken off if others wait for its place, the slowest first, s.
        wrong_s: wait before the answer to a wrong password, s.
    """

    connections: int = 8
    request_s: float = 5.0
    answer_s: float = 10.0
    request_bytes: int = 16 * 1024
    piece_bytes: int = 256 * 1024
    fair_s: float = 5.0
    wrong_s: float = 0.3


LIMITS = HttpLimits()
_POLL_S = 0.25
_PAUSE_S = 1.0
_IDLE_S = 1.0
"""A connection whose request has not come after this time is ended when others wait for its place, s."""
_BACKLOG = 16
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


class _Sending:
    """A file that is being sent: since when, s of CLOCK_MONOTONIC, and how many bytes of it were taken."""

    def __init__(self) -> None:
        self.began_s, self.bytes = time.monotonic(), 0


class HttpServer:
    """Answers requests in threads of its own from `start` to `close`. Any thread may call every method.

    Attributes:
        name: for the log and the threads.
        access: who is let in; may be replaced while the server runs.
        header: value of `Server`.
    """

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
        self.name, self._listener, self._respond, self._limits = name, listener, respond, limits
        self.access, self.header = access, server_header(device)
        self._slots = threading.BoundedSemaphore(limits.connections)
        self._reading: dict[socket.socket, float] = {}  # whose request has not come yet, and since when, s
        self._sending: dict[socket.socket, _Sending] = {}
        self._closed = threading.Event()
        self._has_failed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def address(self) -> tuple[str, int]:
        """Address and port that it listens on."""
        host, port, *_ = self._listener.getsockname()
        return host, port

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Free the port. Answers that are being sent go on to their end."""
        self._closed.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._thread.ident is not None:
            self._thread.join(_POLL_S * 2)

    def respond(self, request: HttpRequest) -> Answer:
        """Answer a request; a failure is an answer, too, and logged once."""
        try:
            return self._respond(request)
        except Exception:
            if not self._has_failed:
                log.exception("%s: internal error (please report); the answer is 500", self.name)
            self._has_failed = True
            return text_answer(500, "internal error, see the log")

    def _run(self) -> None:
        while not self._closed.is_set():
            if not self._slots.acquire(timeout=_POLL_S):
                if self._others_wait():
                    self._cut_off_idle()
                    self._cut_off_slowest()
                continue
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                self._slots.release()
                if not self._closed.is_set():  # such as without free file descriptors
                    log.debug("%s: %s", self.name, reason_of(error))
                    self._closed.wait(_PAUSE_S)
                continue
            self._start_thread(connection)

    def _others_wait(self) -> bool:
        """Return True if there are connections that have no place."""
        waiting = select.poll()
        try:
            waiting.register(self._listener, select.POLLIN)
        except (OSError, ValueError):  # it is closed
            return False
        return bool(waiting.poll(0))

    def _cut_off_idle(self) -> None:
        """End the connections that have sent no whole request for some time: others wait for their places."""
        oldest_s = time.monotonic() - _IDLE_S
        for connection, since_s in list(self._reading.items()):
            if since_s < oldest_s:
                _cut_off(connection)

    def _cut_off_slowest(self) -> None:
        """End the slowest of the connections that have been sent a file for long: others wait for a place."""
        now_s = time.monotonic()
        rates = {
            connection: one.bytes / (now_s - one.began_s)
            for connection, one in list(self._sending.items())
            if now_s - one.began_s > self._limits.fair_s
        }
        if rates:
            slowest = min(rates, key=rates.__getitem__)
            log.debug("%s: a client that reads %.0f B/s gives its place to another", self.name, rates[slowest])
            _cut_off(slowest)

    @contextmanager
    def sending(self, connection: socket.socket) -> Iterator[_Sending]:
        """Record what is sent of a file, by the caller, while the context lasts."""
        self._sending[connection] = one = _Sending()
        try:
            yield one
        finally:
            del self._sending[connection]

    def request_read(self, connection: socket.socket) -> None:
        """Record that a request has come: its connection is not idle."""
        self._reading.pop(connection, None)

    def _start_thread(self, connection: socket.socket) -> None:
        name = f"{self.name}-answer"
        answering = threading.Thread(target=self._serve, args=(connection,), name=name, daemon=True)
        try:
            answering.start()
        except RuntimeError:  # no more threads are allowed
            connection.close()
            self._slots.release()
            self._closed.wait(_PAUSE_S)

    def _serve(self, connection: socket.socket) -> None:
        self._reading[connection] = time.monotonic()
        try:
            with connection:
                self._answer(connection)
        except (OSError, ValueError) as error:  # the client is slow, gone, or speaks no TLS
            log.debug("%s: %s", self.name, reason_of(error))
        finally:
            self._reading.pop(connection, None)
            self._slots.release()

    def _answer(self, connection: socket.socket) -> None:
        until = time.monotonic() + self._limits.request_s
        access = self.access
        if access.tls is not None:
            connection.settimeout(self._limits.request_s)
            since_s = self._reading.pop(connection, time.monotonic())
            connection = access.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            self._reading[connection] = since_s
        try:
            self._answer_on(connection, access, until)
        finally:
            self._reading.pop(connection, None)

    def _answer_on(self, connection: socket.socket, access: Access, until: float) -> None:
        with connection:
            if isinstance(connection, ssl.SSLSocket):
                connection.do_handshake()
            _Handler(connection, self, access, until, self._limits)
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
                _drain(connection)


def _cut_off(connection: socket.socket) -> None:
    """End a connection of another thread, which then closes it."""
    with suppress(OSError):
        # Not the method of `SSLSocket`: it forgets its encryption first, and the thread may be sending.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _drain(connection: socket.socket) -> None:
    """Read what the client still sends, for a moment: a reset would delete an answer that it has not read."""
    until = time.monotonic() + _POLL_S
    while (left_s := until - time.monotonic()) > 0:
        connection.settimeout(left_s)
        if not connection.recv(4096):
            return


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


class _RequestReader(io.RawIOBase):
    """Reads from a socket until a deadline and up to a number of bytes.

    Attributes:
        is_too_long: whether more bytes were wanted.
    """

    def __init__(self, connection: socket.socket, until: float, most: int) -> None:
        self._connection, self._until, self._left = connection, until, most
        self.is_too_long = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed: any buffer
        left_s = self._until - time.monotonic()
        self.is_too_long = self._left <= 0
        if left_s <= 0.0 or self.is_too_long:
            raise TimeoutError("the request is too slow or too long")
        self._connection.settimeout(left_s)
        count = self._connection.recv_into(buffer, min(len(buffer), self._left))
        self._left -= count
        return count


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"

    def __init__(
        self, connection: socket.socket, server: HttpServer, access: Access, until: float, limits: HttpLimits
    ) -> None:
        self._server, self._access, self._until, self._limits = server, access, until, limits
        self._answer: Answer | None = None
        self.command = self.requestline = ""  # until a request has come
        self.raw_requestline = b""
        super().__init__(connection, ("", 0), None)  # type: ignore[arg-type]  # it only keeps the server

    def setup(self) -> None:
        self.connection = self.request
        self._reader = _RequestReader(self.request, self._until, self._limits.request_bytes)
        self.rfile = io.BufferedReader(self._reader, 1024)
        self.wfile = io.BytesIO()

    def finish(self) -> None:
        """Send the whole answer; the time-out of `sendall` is for all that it is given."""
        assert isinstance(self.wfile, io.BytesIO)
        self.request.settimeout(self._limits.answer_s)
        try:
            self.request.sendall(self.wfile.getvalue())
            if self.command != "HEAD" and self._answer is not None and self._answer.file is not None:
                self._send_file(self._answer.file, self._answer.length)
        finally:
            if self._answer is not None and self._answer.file is not None:
                self._answer.file.close()

    def _send_file(self, file: BinaryIO, length: int) -> None:
        with self._server.sending(self.request) as sending:
            while length > 0:
                piece = file.read(min(length, self._limits.piece_bytes))
                if not piece:  # it has become shorter, and the client sees the missing end
                    return
                self.request.sendall(piece)
                length -= len(piece)
                sending.bytes += len(piece)

    def handle(self) -> None:
        self.handle_one_request()
        self.close_connection = True
        if self._reader.is_too_long:
            self._server.request_read(self.request)
            code, what = (431, "headers are") if self.raw_requestline else (414, "address is")
            self.request_version = self.protocol_version
            self._reply(text_answer(code, f"the request's {what} too long"))

    def do_GET(self) -> None:
        self._server.request_read(self.request)
        if not self._access.allows(given := self.headers.get("Authorization", "")):
            if given:
                time.sleep(self._limits.wrong_s)  # so that passwords cannot be tried fast
            self._reply(text_answer(401, "user name or password is wrong"))
            return
        if not self._access.username and not names_an_address(self.headers.get("Host", "")):
            # A website could let its own name lead to this machine, to read the answer in a visitor's browser.
            self._reply(text_answer(403, "without username and password, ask for an IP address or localhost"))
            return
        self._answer = answer = self._server.respond(HttpRequest(self.path, self.headers))
        self._reply(answer)

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
        if self.command != "HEAD":
            self.wfile.write(page.body)

    def version_string(self) -> str:
        return self._server.header

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base class
        log.debug("%s: " + format, self._server.name, *args)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an IP address, or on 127.0.0.1 for `localhost`. No name is looked up.

    Raises:
        OSError: the port is in use or not allowed, or this machine does not have the address.
    """
    number = "127.0.0.1" if host.lower() == "localhost" else host
    family, kind, protocol, _, address = socket.getaddrinfo(
        number, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )[0]
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        opened.bind(address)
        opened.listen(_BACKLOG)
    except OSError:
        opened.close()
        raise
    return opened
