"""Messages to systemd and their address."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from agent.daemon.systemd import Notifier
from tests.support.notified import Notified


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_everything_is_told_at_the_address_of_the_environment(tmp_path: Path, kind: str) -> None:
    address = str(tmp_path / "notify") if kind == "path" else f"@vedette-test-{os.getpid()}"
    with Notified(address) as systemd:
        notifier = Notifier({"NOTIFY_SOCKET": address})
        notifier.send("READY=1")
        notifier.send("WATCHDOG=1", "STATUS=1 of 2 streams running\nREADY=1")
        lines = systemd.lines
    status = "STATUS=1 of 2 streams running READY=1"  # what a source says cannot pass for another line
    assert lines == ["READY=1", "WATCHDOG=1", status]


@pytest.mark.parametrize(
    ("environment", "watchdog_s"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "2000000"}, 2.0),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}, 2.0),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
    ],
)
def test_the_watchdog_has_a_period_if_it_is_ours(environment: dict[str, str], watchdog_s: float) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/nowhere", **environment}).watchdog_s == watchdog_s


def test_without_systemd_nothing_is_sent(caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier({"WATCHDOG_USEC": "1000000"})
    notifier.send("READY=1")
    assert (notifier.watchdog_s, caplog.records) == (0.0, [])


def test_a_socket_that_is_gone_is_told_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    with caplog.at_level(logging.WARNING):
        notifier.send("READY=1")
        notifier.send("WATCHDOG=1")
    assert [record.getMessage() for record in caplog.records] == [
        f"NOTIFY_SOCKET={tmp_path / 'gone'}: systemd cannot be notified: No such file or directory"
    ]
