"""The server of one page, against real clients, among them bad ones."""

from __future__ import annotations

import base64
import http.client
import logging
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.comms.http import (
    Access,
    Answer,
    HttpEndpoint,
    HttpLimits,
    HttpRequest,
    HttpServer,
    Respond,
    listen,
    names_an_address,
    read_access,
    text_answer,
)
from agent.config.servers import MetricsConfig, PageConfig
from agent.errors import ConfigError
from tests.support.certificates import make_certificates
from tests.support.mosquitto import HOST, free_port
from tests.support.publishing import wait_for

PAGE = text_answer(200, "vedette_up 1")
QUICK = HttpLimits(connections=2, request_s=0.3, answer_s=1.0, request_bytes=2048, wrong_s=0.01)


def page(request: HttpRequest) -> Answer:
    return PAGE if request.path.startswith("/metrics") else text_answer(404, "nothing")


def running(access: Access = Access(), limits: HttpLimits = QUICK) -> HttpServer:  # noqa: B008 - it is frozen
    return serving(page, access, limits)


def serving(respond: Respond, access: Access = Access(), limits: HttpLimits = QUICK) -> HttpServer:  # noqa: B008
    return HttpServer("metrics", listen(HOST, 0), respond, access, limits)


@pytest.fixture
def server() -> Iterator[HttpServer]:
    made = running()
    yield made
    made.close()


def ask(server: HttpServer, path: str = "/metrics", method: str = "GET", **headers: str) -> tuple[int, bytes]:
    client = http.client.HTTPConnection(*server.address, timeout=60)
    client.request(method, path, headers=headers)
    answer = client.getresponse()
    return answer.status, answer.read()


def exchange(server: HttpServer, sent: bytes) -> bytes:
    """Send bytes, and return all that comes until the server closes."""
    with socket.create_connection(server.address, timeout=60) as client:
        try:
            client.sendall(sent)
            return b"".join(iter(lambda: client.recv(4096), b""))
        except ConnectionError:
            return b""


def test_without_a_login_a_name_that_leads_here_is_refused(server: HttpServer) -> None:
    assert ask(server, Host="localhost:9469") == (200, PAGE.body)
    for host in ("evil.example:9470", "evil.example", "", "127.0.0.1.evil.example"):
        assert ask(server, Host=host)[0] == 403
    server.access = Access("me", "secret")
    login = base64.b64encode(b"me:secret").decode()
    assert ask(server, Host="board.example", Authorization=f"Basic {login}") == (200, PAGE.body)


@pytest.mark.parametrize(
    "host",
    [
        "[::1]evil.example",
        "127.0.0.1:80@evil.example",
        "[::1",
        "::1",
        "localhost.",
        "127.1",
        "[127.0.0.1]",
        "1:a",
    ],
)
def test_an_odd_host_is_no_address(host: str) -> None:
    assert not names_an_address(host)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "10.1.2.3:80", "[::1]:9470"])
def test_an_address_with_or_without_a_port_is_one(host: str) -> None:
    assert names_an_address(host)


def test_the_page_is_served_with_its_type(server: HttpServer) -> None:
    client = http.client.HTTPConnection(*server.address, timeout=60)
    client.request("GET", "/metrics?name[]=x")
    answer = client.getresponse()
    assert (answer.status, answer.read()) == (200, PAGE.body)
    assert answer.getheader("Content-Type") == PAGE.content_type
    assert answer.getheader("Server") == "Vedette"


@pytest.mark.parametrize("path", ["/", "/etc/passwd", "/../metrics"])
def test_there_is_no_other_page(server: HttpServer, path: str) -> None:
    assert ask(server, path)[0] == 404


def test_what_is_no_request_is_refused_and_the_next_one_answered(server: HttpServer) -> None:
    assert b" 400 " in exchange(server, b"nonsense\r\n\r\n").partition(b"\r\n")[0]
    assert b" 400 " in exchange(server, b"GET /metrics HTTP/x\r\n\r\n").partition(b"\r\n")[0]
    assert ask(server, method="POST")[0] == 501
    assert ask(server)[0] == 200


@given(sent=st.binary(max_size=300))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_end_the_server(server: HttpServer, sent: bytes) -> None:
    exchange(server, sent + b"\r\n\r\n")
    assert ask(server)[0] == 200


def drip(client: socket.socket, until: float) -> None:
    """Send a byte now and then."""
    while time.monotonic() < until:
        client.sendall(b"G")
        time.sleep(0.02)


def test_a_request_that_drips_is_cut_off(server: HttpServer) -> None:
    with socket.create_connection(server.address, timeout=60) as client, pytest.raises(ConnectionError):
        drip(client, time.monotonic() + 60.0)
    assert ask(server)[0] == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /metrics HTTP/1.1\r\nX: " + b"y" * 3000 + b"\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 500 + b"\r\n",
        b"GET /" + b"m" * 3000 + b" HTTP/1.1\r\n\r\n",
        b"G" * 5000,
    ],
    ids=["header", "headers", "address", "no end"],
)
def test_a_request_that_is_too_long_is_cut_off(server: HttpServer, sent: bytes) -> None:
    assert exchange(server, sent) == b""
    assert ask(server)[0] == 200


def test_one_that_never_ends_is_cut_off(server: HttpServer) -> None:
    assert PAGE.body not in exchange(server, b"GET /metrics HTTP/1.1\r\nX: " + b"y" * 5_000_000)
    assert ask(server)[0] == 200


def test_silent_clients_delay_others_no_longer_than_a_request_may_take(server: HttpServer) -> None:
    silent = [socket.create_connection(server.address) for _ in range(2 * QUICK.connections)]
    assert ask(server)[0] == 200
    for one in silent:
        one.close()


def test_a_client_that_does_not_read_holds_nobody_up() -> None:
    body = b"x" * 20_000_000
    made = serving(lambda _: Answer(body, "text/plain"))
    with socket.create_connection(made.address) as lazy:
        lazy.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert len(ask(made)[1]) == len(body)
    made.close()


def files(path: Path, limits: HttpLimits) -> HttpServer:
    """A server that gives one file, after a line of text."""

    def respond(request: HttpRequest) -> Answer:
        return Answer(b"first\n", "video/mp4", 206, (("X-Odd", "1"),), path.open("rb"), 3_000_000)

    return HttpServer("page", listen(HOST, 0), respond, Access(), limits)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_file_is_sent_after_the_body_and_closed(tmp_path: Path) -> None:
    (tmp_path / "clip").write_bytes(bytes(range(250)) * 20_000)
    made, before = files(tmp_path / "clip", QUICK), open_files()
    assert ask(made, "/clip") == (206, b"first\n" + bytes(range(250)) * 12_000)
    wait_for(lambda: open_files() <= before)
    made.close()


def test_one_who_does_not_read_a_file_is_cut_off(tmp_path: Path) -> None:
    (tmp_path / "clip").write_bytes(b"x" * 3_000_000)
    made = files(tmp_path / "clip", replace(QUICK, answer_s=0.3, piece_bytes=1_000_000))
    before = open_files()
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect(made.address)
        lazy.sendall(b"GET /clip HTTP/1.1\r\n\r\n")
        assert len(ask(made, "/clip")[1]) == 3_000_006
        wait_for(lambda: open_files() <= before + 1)
    made.close()


def test_only_the_right_user_and_password_are_let_in() -> None:
    made = running(Access("grafana", "a:sécret"))

    def login(text: str) -> int:
        return ask(made, Authorization=f"Basic {base64.b64encode(text.encode()).decode()}")[0]

    assert login("grafana:a:sécret") == 200
    wrong = ("grafana:", "grafana:a:secret", "Grafana:a:sécret", "grafana", ":", "grafana:a:sécret2")
    assert [login(text) for text in wrong] == [401] * len(wrong)
    for header in ("Bearer x", "Basic", "Basic !!!", "Basic ä", ""):
        assert ask(made, Authorization=header)[0] == 401
    assert ask(made, "/")[0] == 401
    made.access = Access()
    assert ask(made)[0] == 200
    made.close()


def test_https_serves_and_plain_text_at_its_port_disturbs_nobody(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    made = running(Access(tls=context), HttpLimits(connections=2, request_s=2.0))
    assert PAGE.body not in exchange(made, b"GET /metrics HTTP/1.1\r\n\r\n")
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the default one of Python 3.13 is strict with our CA
    trusting.load_verify_locations(tmp_path / "ca.pem")
    client = http.client.HTTPSConnection(*made.address, timeout=60, context=trusting)
    client.request("GET", "/metrics")
    assert client.getresponse().read() == PAGE.body
    made.close()


def test_a_page_that_fails_is_an_answer_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    def failing(request: HttpRequest) -> Answer:
        raise ValueError("broken")

    made = serving(failing)
    assert [ask(made)[0], ask(made)[0]] == [500, 500]
    assert len([one for one in caplog.records if one.exc_info]) == 1
    made.close()


def test_a_closed_server_has_freed_its_port() -> None:
    made = running()
    address = made.address
    made.close()
    with pytest.raises(OSError):
        socket.create_connection(address, timeout=1)
    listen(*address).close()


def test_a_port_in_use_is_an_error() -> None:
    with listen("localhost", 0) as opened, pytest.raises(OSError):
        listen(HOST, opened.getsockname()[1])


@pytest.fixture
def exporter() -> Iterator[HttpEndpoint]:
    made = HttpEndpoint("metrics", page, HttpLimits(retry_s=0.0))
    yield made
    made.close()


@pytest.fixture
def secret(tmp_path: Path) -> str:
    (tmp_path / "secret").write_text("xyz\n")
    return str(tmp_path / "secret")


def at(port: int, host: str = HOST) -> MetricsConfig:
    return MetricsConfig(listen=f"{host}:{port}")


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=60) as answer:
            return bool(answer.read() == PAGE.body)
    except OSError:
        return False


@pytest.mark.parametrize("listen", ["0.0.0.0:9469", "[::]:9469", "192.168.1.5:9469", "[fd00::5]:9469"])
def test_an_address_that_others_reach_needs_a_password(listen: str, secret: str) -> None:
    with pytest.raises(ConfigError, match="username and password_file"):
        read_access(MetricsConfig(listen=listen))
    read_access(MetricsConfig(listen=listen, username="grafana", password_file=secret))


@pytest.mark.parametrize("listen", ["127.0.0.1:9469", "[::1]:9469", "localhost:9469", "127.8.9.1:9469"])
def test_this_machine_alone_needs_none(listen: str) -> None:
    read_access(MetricsConfig(listen=listen))


def test_clips_need_a_login_also_on_this_machine(secret: str) -> None:
    with pytest.raises(ConfigError, match="username and password_file") as refused:
        read_access(PageConfig())
    assert refused.value.keys == ("page", "username")
    read_access(PageConfig(username="me", password_file=secret))


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"username": "x"}, "username"),
        ({"password_file": "/nowhere/x"}, "password_file"),
        ({"username": "x", "password_file": "/nowhere/x"}, "password_file"),
        ({"username": "a:b", "password_file": "/nowhere/x"}, "username"),
        ({"key_file": "/nowhere/x"}, "key_file"),
        ({"cert_file": "/nowhere/x"}, "cert_file"),
        ({"cert_file": "/etc/hostname"}, "cert_file"),
    ],
)
def test_a_key_that_is_wrong_is_named(fields: dict[str, str], key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_access(MetricsConfig(**fields))
    assert refused.value.keys == ("metrics", key)


def test_a_certificate_and_its_key_are_taken(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    files = {"cert_file": str(tmp_path / "server.pem"), "key_file": str(tmp_path / "server.key")}
    read_access(MetricsConfig(**files))
    with pytest.raises(ConfigError, match="cert_file"):
        read_access(MetricsConfig(**{**files, "key_file": str(tmp_path / "client.key")}))


def test_a_port_in_use_is_told_once_and_tried_again(
    exporter: HttpEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        exporter.configure(at(port))
        exporter.poll()
        exporter.poll()
        assert f"{HOST}:{port}" in exporter.trouble
        assert [one.levelno for one in caplog.records].count(logging.ERROR) == 1
    exporter.poll()
    assert exporter.trouble == ""
    assert answers(port)


def test_a_new_port_replaces_the_old_one(exporter: HttpEndpoint) -> None:
    first, second = free_port(), free_port()
    exporter.configure(at(first))
    exporter.configure(at(second))
    assert (answers(first), answers(second)) == (False, True)
    with socket.create_server((HOST, 0)) as other:
        exporter.configure(at(other.getsockname()[1]))
        assert "cannot listen" in exporter.trouble
    exporter.configure(at(second))
    assert exporter.trouble == ""
    assert answers(second)
    exporter.configure(None)
    assert (exporter.trouble, answers(second)) == ("", False)


def test_the_same_port_on_another_address_is_taken_over(exporter: HttpEndpoint, secret: str) -> None:
    port = free_port()
    exporter.configure(at(port))
    exporter.configure(replace(at(port, "0.0.0.0"), username="x", password_file=secret))
    assert exporter.trouble == ""
    assert not answers(port)  # it asks for the password now
    exporter.configure(at(port))
    assert answers(port)


def test_a_password_is_read_again_with_each_configuration(exporter: HttpEndpoint, secret: str) -> None:
    config = replace(at(free_port()), username="x", password_file=secret)
    exporter.configure(config)
    Path(secret).unlink()
    exporter.configure(config)
    assert "password_file" in exporter.trouble
    assert "xyz" not in exporter.trouble
