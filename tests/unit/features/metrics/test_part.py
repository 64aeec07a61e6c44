"""A daemon without the client library runs without metrics and says so; it records traces all the same."""

from __future__ import annotations

import logging
import queue
import socket
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from agent import spans
from agent.comms.commands import Command
from agent.comms.topics import Topics
from agent.config import Config
from agent.config.servers import MetricsConfig
from agent.daemon.parts import Asked, DeviceParts, Reply, execute
from agent.features.metrics.part import MetricsPart
from tests.support.mosquitto import HOST, free_port
from tests.support.publishing import wait_for

NONE, SOME = Config(), Config(metrics=MetricsConfig())
Told = tuple[dict[str, Any] | None, str]


def device(config: Config = NONE) -> Any:
    """A runtime with what the part needs before anybody reads the metrics."""
    return SimpleNamespace(
        board=SimpleNamespace(sensors=None),
        config=config,
        topics=Topics("vedette", "porch"),
        mqtt=SimpleNamespace(max_packet=0),
    )


def answers_at(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((HOST, port)) == 0


def test_a_missing_library_is_told_once_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    part = MetricsPart(device(SOME))
    part.start()
    part.configure(SOME)
    part.poll()
    assert "pip install" in part.trouble
    assert part.health() == {"metrics": part.trouble}
    assert [one.levelno for one in caplog.records] == [logging.ERROR]
    part.configure(NONE)
    assert part.trouble == ""
    part.close(1.0)


def test_metrics_are_served_until_their_table_is_gone() -> None:
    port, parts = free_port(), DeviceParts(device())
    with_metrics = Config(metrics=MetricsConfig(listen=f"{HOST}:{port}"))
    parts.open(NONE)
    parts.start()
    assert parts.get("metrics") is None
    parts.configure(with_metrics)
    assert answers_at(port)
    assert parts.health()["metrics"] == ""
    parts.configure(NONE)
    assert not answers_at(port)
    parts.close(1.0)


def test_a_trace_needs_no_metrics_and_ends_with_the_daemon() -> None:
    parts, answers = DeviceParts(device()), queue.SimpleQueue[Told]()
    parts.start()

    def trace(seconds: float) -> Reply | None:
        command = Command("trace", seconds=seconds)
        topics = Topics("vedette", "porch")
        return execute(Asked(command, None, topics, lambda result, why: answers.put((result, why)), parts))

    assert trace(0.0) == ("no trace is being recorded", {})
    assert trace(100.0) is None
    wait_for(lambda: spans.active is not None)
    assert trace(0.0) == ("", {})
    result, _ = answers.get(timeout=60)
    assert result is not None
    assert trace(100.0) is None
    parts.close(1.0)
    wait_for(lambda: spans.active is None)
    assert answers.empty()
