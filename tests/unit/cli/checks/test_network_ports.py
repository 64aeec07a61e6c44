"""The doctor finds out who has the port of the metrics."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from agent.cli.checks.network import check_port
from agent.comms.http import Access, HttpServer, Page, listen, one_page, read_access
from agent.config.http import MetricsConfig
from tests.support.certificates import make_certificates
from tests.support.mosquitto import HOST, free_port


def found(port: int, **fields: str) -> tuple[str, str]:
    (one,) = check_port(MetricsConfig(listen=f"{HOST}:{port}", **fields), "porch")
    return one.state, one.value


def serve(port: int, access: Access, device: str = "porch") -> HttpServer:
    respond = one_page("/metrics", lambda accept: Page("text/plain", b"x"))
    made = HttpServer("metrics", listen(HOST, port), respond, access, device=device)
    made.start()
    return made


def test_a_free_port_is_no_problem_and_stays_free() -> None:
    port = free_port()
    assert found(port)[0] == "ok"
    assert found(port)[0] == "ok"


def test_the_daemons_own_port_is_none_either() -> None:
    port = free_port()
    made = serve(port, Access("grafana", "secret"))
    assert found(port) == ("ok", f"{HOST}:{port}: served by the running daemon")
    made.close()


def test_nor_is_one_with_a_certificate(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    files = {"cert_file": str(tmp_path / "server.pem"), "key_file": str(tmp_path / "server.key")}
    port = free_port()
    made = serve(port, read_access(MetricsConfig(**files)))
    assert found(port, **files)[0] == "ok"
    made.close()


@pytest.mark.parametrize("name", ["barn", "Scheune (Süd)", "納屋"])
def test_the_port_of_another_device_s_daemon_is_a_problem_that_names_it(name: str) -> None:
    port = free_port()
    made = serve(port, Access("grafana", "secret"), name)
    state, value = found(port)
    assert (state, value) == ("problem", f"{HOST}:{port}: used by the daemon of the device {name!r}")
    made.close()


def test_a_port_of_another_program_is_a_problem_with_advice() -> None:
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        (one,) = check_port(MetricsConfig(listen=f"{HOST}:{port}"), "porch")
        assert one.state == "problem"
        assert str(port) in one.advice


def test_an_address_that_is_none_is_left_to_the_configurations_section() -> None:
    assert list(check_port(MetricsConfig(listen="nowhere:1"), "porch")) == []
