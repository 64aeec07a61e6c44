from __future__ import annotations

import hashlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from agent.capture.server_probe import find_refusal, why_unreachable
from agent.capture.source import open_source
from agent.config.source_uri import SourceOptions, SourceUri, parse
from agent.errors import SourceError

Serve = Callable[[bytes], int]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Answers every connection with some bytes, and keeps silent when there are none; gives the port."""
    listeners: list[socket.socket] = []
    stopped = threading.Event()

    def answer(listener: socket.socket, data: bytes) -> None:
        while not stopped.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                if data:
                    connection.recv(4096)
                    connection.sendall(data)
                else:
                    stopped.wait()

    def start(data: bytes) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threading.Thread(target=answer, args=(listener, data), daemon=True).start()
        return int(listener.getsockname()[1])

    yield start
    stopped.set()
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize(
    ("scheme", "data", "wants"),
    [
        ("rtsp", b"RTSP/1.0 401 Unauthorized\r\n\r\n", "wants a user name and a password; set capture.username"),
        ("rtsp", b"RTSP/1.0 404 Not Found\r\n\r\n", "it has no such path"),
        ("rtsp", b"RTSP/1.0 599 Odd\r\n\r\n", "answers 599: check the path"),
        ("rtsp", b"RTSP/1.0 200 OK\r\n\r\n", "nothing to decode in time"),
        ("rtsp", b"SSH-2.0-OpenSSH\r\n", "not in this protocol"),
        ("http", b"HTTP/1.0 503 Busy\r\n\r\n", "no further viewer"),
        ("https", b"HTTP/1.0 200 OK\r\n\r\n", "does not speak TLS"),
    ],
)
def test_the_answer_is_put_in_words(serve: Serve, scheme: str, data: bytes, wants: str) -> None:
    assert wants in why_unreachable(parse(f"{scheme}://127.0.0.1:{serve(data)}/cam?x=1"), 2.0)


def test_a_server_that_keeps_silent_is_told_from_one_that_is_not_there(serve: Serve) -> None:
    assert "does not answer" in why_unreachable(parse(f"rtsp://127.0.0.1:{serve(b'')}/"), 0.2)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert f"nothing listens on 127.0.0.1:{port}" in why_unreachable(parse(f"rtsp://127.0.0.1:{port}/"), 1.0)


@pytest.mark.parametrize("host", ["camera..local", "a" * 64])
def test_a_name_that_cannot_be_encoded_is_an_unknown_one(host: str) -> None:
    address = SourceUri("rtsp", f"rtsp://{host}/", SourceOptions(), "rtsp:", live=True, host=host)
    assert why_unreachable(address, 1.0).startswith(f"no address is known for {host}:554")


def test_an_unknown_name_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", fail)
    assert "no address is known for camera.invalid" in why_unreachable(parse("rtsp://camera.invalid/"), 1.0)


def test_a_network_without_a_way_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", fail)
    assert "192.0.2.1:554 cannot be reached: Network is unreachable" in why_unreachable(
        parse("rtsp://192.0.2.1/"), 1.0
    )


def test_a_stream_that_cannot_be_opened_says_why_without_the_password(serve: Serve) -> None:
    port = serve(b"RTSP/1.0 401 Unauthorized\r\nCSeq: 1\r\n\r\n")
    with pytest.raises(SourceError) as caught:
        open_source(f"rtsp://user:secret@127.0.0.1:{port}/cam", stall_s=1)
    assert str(caught.value).startswith(f"rtsp://127.0.0.1:{port}: expected a video stream; ")
    assert "answers 401" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_servers_words_are_not_repeated(serve: Serve) -> None:
    said = b"HTTP/1.0 404 \x1b]0;owned\x07\x1b[31m/user=admin_password=pw_\x1b[2J\r\n\r\n"
    why = why_unreachable(parse(f"http://127.0.0.1:{serve(said)}/user=admin_password=pw_"), 2.0)
    assert why.endswith("answers 404: it has no such path")


@pytest.mark.parametrize("uri", ["rtsp://admin:12/34@cam.invalid/x", "rtsp://127.0.0.1/12@34"])
def test_what_may_be_a_part_of_a_password_is_not_named(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", fail)
    why = why_unreachable(parse(uri), 1.0)
    assert why.startswith("no address is known for its host")
    assert "%2F" in why
    assert "12" not in why


@pytest.mark.parametrize(("scheme", "method"), [("rtsp", "DESCRIBE"), ("http", "GET")])
@pytest.mark.parametrize("qop", ["", ', qop="auth"'])
def test_an_account_is_tried_by_digest(scheme: str, method: str, qop: str) -> None:
    """The server computes what RFC 7616 and RFC 2069 say, by itself."""

    def digest(text: str) -> str:
        return hashlib.md5(text.encode()).hexdigest()

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                said = connection.recv(4096).decode()
                given = dict(re.findall(r'(\w+)="?([^",\r]*)', said.partition("Authorization: ")[2]))
                between = (
                    ":".join([given.get("nonce", ""), *([given["nc"], given["cnonce"], "auth"] if qop else [])])
                    if given
                    else ""
                )
                right = digest(
                    f"{digest('ann:cams:s/e@c')}:{between}:{digest(method + ':' + given.get('uri', ''))}"
                )
                if given.get("response") == right:
                    connection.sendall(f"{scheme.upper()}/1.0 200 OK\r\n\r\n--frame\r\n".encode())
                else:
                    ask = f'WWW-Authenticate: Digest realm="cams", nonce="n1"{qop}'
                    connection.sendall(f"{scheme.upper()}/1.0 401 No\r\n{ask}\r\n\r\n".encode())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        at = f"127.0.0.1:{listener.getsockname()[1]}/live?x=1"
        assert find_refusal(parse(f"{scheme}://ann:s%2Fe%40c@{at}"), 2.0) == ""
        assert find_refusal(parse(f"{scheme}://ann:wrong@{at}"), 2.0).endswith("and refuses the ones given")
        assert "set capture.username" in find_refusal(parse(f"{scheme}://{at}"), 2.0)


@pytest.mark.parametrize("qop", ["", ', qop="auth"'])
def test_the_session_of_a_camera_with_a_password_is_ended(qop: str) -> None:
    """The server wants a Digest of each request of its own, counted, before it does anything."""
    open_sessions, ended = set[str](), threading.Event()

    def digest(text: str) -> str:
        return hashlib.md5(text.encode()).hexdigest()

    def answer(said: str, before: int) -> str:
        method, target = said.split(" ", 2)[:2]
        given = dict(re.findall(r'(\w+)="?([^",\r]*)', said.partition("Authorization: ")[2].partition("\r\n")[0]))
        count = f"{before + 1:08x}"
        between = ":".join(["n1", *([count, given.get("cnonce", ""), "auth"] if qop else [])])
        right = digest(f"{digest('ann:cams:pw')}:{between}:{digest(f'{method}:{target}')}")
        if (given.get("response"), given.get("uri")) != (right, target):
            return f'RTSP/1.0 401 No\r\nWWW-Authenticate: Digest realm="cams", nonce="n1"{qop}\r\n\r\n'
        if method == "DESCRIBE":
            body = "v=0\r\nm=video 0 RTP/AVP 96\r\na=control:track0\r\n"
            kind = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}"
            return f"RTSP/1.0 200 OK\r\n{kind}\r\n\r\n{body}"
        if method == "SETUP":
            open_sessions.add("77")
        elif method == "TEARDOWN" and "\r\nSession: 77\r\n" in said:
            open_sessions.discard("77")
            ended.set()
        return "RTSP/1.0 200 OK\r\nSession: 77;timeout=60\r\n\r\n"

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    before = 0
                    while said := connection.recv(4096).decode():
                        connection.sendall((told := answer(said, before)).encode())
                        before += "401" not in told

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        at = f"127.0.0.1:{listener.getsockname()[1]}/live"
        assert find_refusal(parse(f"rtsp://ann:pw@{at}"), 30.0) == ""
        assert ended.wait(60.0)
        assert open_sessions == set()


def test_a_server_that_drips_is_left_in_time() -> None:
    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        try:
            for byte in b"HTTP/1.0 200 OK" * 100:
                connection.sendall(bytes([byte]))
                time.sleep(0.05)
        except OSError:
            pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, args=(listener,), daemon=True).start()
        began = time.monotonic()
        assert "does not answer" in why_unreachable(parse(f"http://127.0.0.1:{listener.getsockname()[1]}/"), 0.4)
        assert time.monotonic() - began < 30.0, "it drips for 75 s"


JPEG = b"\xff\xd8\xff\xe0" + b"\x01" * 100_000 + b"\xff\xd9"


def said(kind: str, body: bytes, *fields: str) -> bytes:
    """An answer of HTTP."""
    head = [b"HTTP/1.0 200 OK", *([f"Content-Type: {kind}".encode()] if kind else ()), *map(str.encode, fields)]
    return b"\r\n".join([*head, b"", body])


@pytest.mark.parametrize(
    ("answer", "wants"),
    [
        (said("text/html; charset=utf-8", b"<!DOCTYPE html><p>Login"), "gives a page or text, not a stream"),
        (said("", b"\n<HTML>"), "gives a page or text"),
        (said("image/jpeg", b"\x01\x02\x03\x04\x05"), "announces a picture, but what it sends is none"),
        (said("image/jpeg", b"\x01\x02\x03", "Content-Length: 3"), "announces a picture"),
        (said("image/jpeg", JPEG), "this URL gives one picture, not a stream; use the camera's MJPEG or RTSP"),
        (said("image/jpeg", JPEG, f"Content-Length: {len(JPEG)}"), "gives one picture"),
        (said("image/jpeg", b"5\r\n" + JPEG, "Transfer-Encoding: chunked"), "gives one picture"),
        (said("video/mp4", b""), "answers, but sends nothing"),
        (said("multipart/x-mixed-replace; boundary=b", b"--b\r\n"), ""),
        (said("application/vnd.apple.mpegurl", b"#EXTM3U\n"), ""),
        (said("text/plain", b"#EXTM3U\n"), ""),
        (said("application/octet-stream", b"\x00\x00\x01"), ""),
    ],
)
def test_what_a_server_of_http_sends_is_looked_at(serve: Serve, answer: bytes, wants: str) -> None:
    why = find_refusal(parse(f"http://127.0.0.1:{serve(answer)}/"), 2.0)
    assert wants in why
    assert bool(why) == bool(wants)


def test_a_redirection_is_followed_to_its_end(serve: Serve) -> None:
    def moved(to: str) -> bytes:
        return f"HTTP/1.0 302 Found\r\nLocation: {to}\r\n\r\n".encode()

    good = serve(said("multipart/x-mixed-replace; boundary=b", b"--b\r\n"))
    gone = serve(b"HTTP/1.0 404 No\r\n\r\n")

    def why(to: str) -> str:
        return find_refusal(parse(f"http://127.0.0.1:{serve(moved(to))}/"), 2.0)

    assert why(f"http://127.0.0.1:{good}/video") == ""
    assert why(f"http://127.0.0.1:{gone}/video") == f"127.0.0.1:{gone} answers 404: it has no such path"
    assert "redirects again and again" in why("/round")
    for elsewhere in ("file:///etc/passwd", "rtsp://127.0.0.1/", ""):
        assert "neither http nor https" in why(elsewhere)
    for port in ("99999", "0", "-1", "cam"):
        assert "address whose port is wrong" in why(f"http://127.0.0.1:{port}/")
    assert "address that cannot be read" in why("http://[")


def test_a_content_length_of_thousands_of_digits_is_not_believed(serve: Serve) -> None:
    head = b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\nContent-Length: " + b"9" * 6000 + b"\r\n\r\n<html>"
    why = find_refusal(parse(f"http://127.0.0.1:{serve(head)}/"), 2.0)
    assert "gives a page or text, not a stream" in why


def test_a_redirection_takes_the_account_to_no_other_host() -> None:
    heard: dict[str, str] = {}

    def serve(listener: socket.socket, name: str, moved: str) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                request = heard[name] = connection.recv(4096).decode()
                if moved and "Authorization" not in request:
                    connection.sendall(b'HTTP/1.0 401 No\r\nWWW-Authenticate: Basic realm="x"\r\n\r\n')
                elif moved and request.startswith("GET /far"):
                    connection.sendall(f"HTTP/1.0 302 Found\r\nLocation: {moved}\r\n\r\n".encode())
                elif moved and request.startswith("GET /near"):
                    connection.sendall(b"HTTP/1.0 302 Found\r\nLocation: /stream\r\n\r\n")
                elif moved:
                    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n--b\r\n")
                else:
                    connection.sendall(b'HTTP/1.0 401 No\r\nWWW-Authenticate: Basic realm="x"\r\n\r\n')

    with socket.create_server(("127.0.0.1", 0)) as camera, socket.create_server(("127.0.0.1", 0)) as other:
        far = f"http://localhost:{other.getsockname()[1]}/stream"
        for listener, name, moved in ((camera, "camera", far), (other, "other", "")):
            threading.Thread(target=serve, args=(listener, name, moved), daemon=True).start()
        at = f"http://ann:secret@127.0.0.1:{camera.getsockname()[1]}"
        assert find_refusal(parse(f"{at}/near"), 2.0) == ""
        assert "Authorization: Basic" in heard["camera"]
        assert "wants a user name and a password; set" in find_refusal(parse(f"{at}/far"), 2.0)
        assert "Authorization" not in heard["other"]
