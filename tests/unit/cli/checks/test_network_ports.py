"""The doctor finds out who has the port of the metrics."""

from __future__ import annotations

import socket

from agent.cli.checks.network import check_port
from agent.config.servers import MetricsConfig
from tests.support.mosquitto import HOST, free_port


def found(port: int, **fields: str) -> tuple[str, str]:
    (one,) = check_port(MetricsConfig(listen=f"{HOST}:{port}", **fields), is_running=False)
    return one.state, one.value


def test_a_free_port_is_no_problem_and_stays_free() -> None:
    port = free_port()
    assert found(port)[0] == "ok"
    assert found(port)[0] == "ok"


def test_a_port_that_is_in_use_while_the_daemon_runs_is_none_either() -> None:
    with socket.create_server((HOST, 0)) as daemon:
        config = MetricsConfig(listen=f"{HOST}:{daemon.getsockname()[1]}")
        (one,) = check_port(config, is_running=True)
        assert one.state == "ok"


def test_a_port_of_another_program_is_a_problem_with_advice() -> None:
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        (one,) = check_port(MetricsConfig(listen=f"{HOST}:{port}"), is_running=False)
        assert one.state == "problem"
        assert str(port) in one.advice


def test_an_address_that_is_none_is_left_to_the_configurations_section() -> None:
    assert list(check_port(MetricsConfig(listen="nowhere:1"), is_running=False)) == []
