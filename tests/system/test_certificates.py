"""Certificates that are not accepted, at a real broker: by the clock, by their name, by who signed them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.comms.mqtt.publisher import Publisher
from agent.config import StorageConfig
from agent.config.servers import MqttConfig
from agent.storage.spool.spool import Spool
from tests.support.certificates import make_certificate
from tests.support.mosquitto import Mosquitto
from tests.support.publishing import EVENTS, TOPICS, event, wait_for


class Served(Mosquitto):
    """A broker with TLS and a certificate of its own making."""

    def __init__(self, folder: Path, **certificate: Any) -> None:
        super().__init__(folder, tls=True)
        make_certificate(self.folder, "server", **certificate)


@contextmanager
def device(folder: Path, config: MqttConfig) -> Iterator[tuple[Spool, Publisher]]:
    spool = Spool(folder, StorageConfig())
    publisher = Publisher(config, TOPICS, spool)
    publisher.start()
    spool.put(EVENTS, event())
    try:
        yield spool, publisher
    finally:
        publisher.stop(2.0)
        spool.flush(2.0)
        spool.close()


def refused(folder: Path, broker: Mosquitto, **fields: Any) -> str:
    """Return the logged reason of a refused connection; the event stays in the spool."""
    with device(folder, broker.config(reconnect_max_s=0.2, **fields)) as (spool, publisher):
        wait_for(lambda: publisher.state.detail != "connecting")
        time.sleep(0.6)
        assert not publisher.state.connected
        assert spool.stats().waiting == 1
        return publisher.state.detail


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_certificate_that_is_not_valid_yet_is_told_with_the_clock_and_taken_when_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a board whose clock stands before it, until it is set."""
    begins = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=8)
    with (
        Served(tmp_path, begins=begins) as broker,
        device(tmp_path, broker.config(reconnect_max_s=0.2)) as (spool, publisher),
    ):
        wait_for(lambda: "not yet valid" in publisher.state.detail)
        assert spool.stats().waiting == 1
        wait_for(lambda: publisher.state.connected)
        wait_for(lambda: spool.stats().waiting == 0)
    said = warnings(caplog)
    assert f"the clock here, which says {datetime.now(UTC):%Y-%m-%d}" in said[0]


def test_an_expired_certificate_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ends = datetime.now(UTC) - timedelta(days=3)
    with Served(tmp_path, begins=ends - timedelta(days=9), ends=ends) as broker:
        assert "certificate has expired" in refused(tmp_path, broker)
    assert len(warnings(caplog)) == 1


def test_a_wrong_host_name_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Served(tmp_path, names="DNS:mqtt.example,DNS:other.example") as broker:
        assert "certificate is not valid for '127.0.0.1'" in refused(tmp_path, broker)
    assert len(warnings(caplog)) == 1


def test_a_self_signed_certificate_is_not_trusted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Mosquitto(tmp_path, tls=True) as broker:
        (broker.folder / "server.pem").write_text((broker.folder / "other-ca.pem").read_text())
        (broker.folder / "server.key").write_text((broker.folder / "other-ca.key").read_text())
        broker.kill()
        broker.start()
        detail = refused(tmp_path, broker)
    assert "its certificate is not accepted: self-signed certificate" in detail
    assert "check [mqtt] ca_file" in detail
    assert len(warnings(caplog)) == 1


def test_a_missing_client_certificate_is_told(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, client_certificates=True) as broker:
        detail = refused(tmp_path, broker, cert_file="", key_file="")
    assert "certificate required" in detail
    assert detail.endswith("; check [mqtt] cert_file and [mqtt] key_file")


def test_an_expired_client_certificate_is_told(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, client_certificates=True) as broker:
        ends = datetime.now(UTC) - timedelta(days=3)
        make_certificate(broker.folder, "client", begins=ends - timedelta(days=9), ends=ends)
        detail = refused(tmp_path, broker)
    assert "certificate expired" in detail
    assert "check [mqtt] cert_file" in detail


def test_a_client_certificate_of_a_stranger_is_told(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, client_certificates=True) as broker:
        files = {
            key: str(broker.folder / f"stranger.{end}")
            for key, end in (("cert_file", "pem"), ("key_file", "key"))
        }
        detail = refused(tmp_path, broker, **files)
    assert "check [mqtt] cert_file" in detail
