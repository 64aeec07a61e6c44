"""Who may read the metrics, and what a port that cannot be had leads to."""

from __future__ import annotations

import logging
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from agent.comms.http.endpoint import HttpEndpoint, check_served
from agent.comms.http.server import Page, one_page
from agent.config.http import MetricsConfig, PageConfig
from agent.errors import ConfigError
from tests.support.certificates import make_certificates
from tests.support.mosquitto import HOST, free_port


def page(accept: str) -> Page:
    return Page("text/plain", b"vedette_up 1\n")


@pytest.fixture
def exporter() -> Iterator[HttpEndpoint]:
    made = HttpEndpoint("metrics", one_page("/metrics", page), retry_s=0.0)
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
            return bool(answer.read() == b"vedette_up 1\n")
    except OSError:
        return False


@pytest.mark.parametrize("listen", ["0.0.0.0:9469", "[::]:9469", "192.168.1.5:9469", "[fd00::5]:9469"])
def test_an_address_that_others_reach_needs_a_password(listen: str, secret: str) -> None:
    with pytest.raises(ConfigError, match="username and password_file"):
        check_served(MetricsConfig(listen=listen))
    check_served(MetricsConfig(listen=listen, username="grafana", password_file=secret))


@pytest.mark.parametrize("listen", ["127.0.0.1:9469", "[::1]:9469", "localhost:9469", "127.8.9.1:9469"])
def test_this_machine_alone_needs_none(listen: str) -> None:
    check_served(MetricsConfig(listen=listen))
    check_served(None)


def test_clips_need_a_login_also_on_this_machine(secret: str) -> None:
    with pytest.raises(ConfigError, match="username and password_file") as refused:
        check_served(PageConfig())
    assert refused.value.keys == ("page", "username")
    check_served(PageConfig(username="me", password_file=secret))


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
        check_served(MetricsConfig(**fields))
    assert refused.value.keys == ("metrics", key)


def test_a_certificate_and_its_key_are_taken(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    files = {"cert_file": str(tmp_path / "server.pem"), "key_file": str(tmp_path / "server.key")}
    check_served(MetricsConfig(**files))
    with pytest.raises(ConfigError, match="cert_file"):
        check_served(MetricsConfig(**{**files, "key_file": str(tmp_path / "client.key")}))


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


def test_a_new_port_replaces_the_old_one_and_a_refused_one_does_not(exporter: HttpEndpoint) -> None:
    first, second = free_port(), free_port()
    exporter.configure(at(first))
    exporter.configure(at(second))
    assert (answers(first), answers(second)) == (False, True)
    with socket.create_server((HOST, 0)) as other:
        exporter.configure(at(other.getsockname()[1]))
        assert f"{HOST}:{second}" in exporter.trouble
        assert answers(second)
    exporter.configure(at(second))
    assert exporter.trouble == ""
    assert answers(second)
    exporter.configure(None)
    assert (exporter.trouble, answers(second)) == ("", False)


def test_the_same_port_on_another_address_is_taken_over_or_given_back(
    exporter: HttpEndpoint, secret: str
) -> None:
    port = free_port()
    exporter.configure(at(port))
    exporter.configure(replace(at(port, "0.0.0.0"), username="x", password_file=secret))
    assert exporter.trouble == ""
    assert not answers(port)  # it asks for the password now
    exporter.configure(at(port))
    assert answers(port)
    exporter.configure(replace(at(port, "192.0.2.1"), username="x", password_file=secret))
    assert f"{HOST}:{port}" in exporter.trouble
    assert answers(port)


def test_a_password_is_read_again_with_each_configuration(exporter: HttpEndpoint, secret: str) -> None:
    config = replace(at(free_port()), username="x", password_file=secret)
    exporter.configure(config)
    Path(secret).unlink()
    exporter.configure(config)
    assert "password_file" in exporter.trouble
    assert "xyz" not in exporter.trouble
