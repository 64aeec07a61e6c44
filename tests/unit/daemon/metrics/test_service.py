"""A daemon without the client library runs without metrics, and says so."""

from __future__ import annotations

import logging
import sys

import pytest

from agent.config.http import MetricsConfig
from agent.daemon.metrics.service import MetricsService
from tests.support.mosquitto import HOST, free_port
from tests.unit.daemon.metrics.test_exposition import readings


def test_a_missing_library_is_told_once_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    service = MetricsService(readings, "porch")
    service.configure(MetricsConfig())
    service.configure(MetricsConfig())
    service.poll()
    assert "pip install" in service.trouble
    assert [one.levelno for one in caplog.records] == [logging.ERROR]
    service.configure(None)
    assert service.trouble == ""
    service.close()


def test_nothing_is_loaded_that_nobody_wants() -> None:
    service = MetricsService(readings, "porch")
    service.configure(None)
    service.poll()
    assert service.trouble == ""
    service.configure(MetricsConfig(listen=f"{HOST}:{free_port()}"))
    assert service.trouble == ""
    service.close()
