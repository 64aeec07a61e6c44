"""The daemon as systemd sees it: what it says on its socket, and the file for programs on the board."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.health import DaemonHealth
from tests.support.doubles import person_model
from tests.support.mosquitto import Mosquitto
from tests.support.notified import Notified
from tests.support.publishing import wait_for
from tests.support.running import Vedette, camera


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notified]:
    (tmp_path / "run").mkdir()
    with Notified(f"@vedette-{os.getpid()}-{tmp_path.name}") as heard:
        monkeypatch.setenv("NOTIFY_SOCKET", heard.address)
        monkeypatch.setenv("WATCHDOG_USEC", "1000000")
        monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
        yield heard


def report(folder: Path) -> DaemonHealth:
    return msgspec.json.decode((folder / "run/health.json").read_bytes(), type=DaemonHealth)


def test_a_life_as_systemd_hears_it(tmp_path: Path, broker: Mosquitto, systemd: Notified) -> None:
    with Vedette(tmp_path, broker, front=camera(person_model(tmp_path))) as vedette:
        systemd.wait("READY=1")
        systemd.wait("WATCHDOG=1", 3)
        systemd.wait_status("1 of 1 stream running")
        vedette.config["streams"]["back"] = camera(tmp_path / "person.toml", "v4l2:/dev/video99")
        vedette.reload()
        systemd.wait("READY=1", 2)
        assert "RELOADING=1" in systemd.lines
        assert any(line.startswith("MONOTONIC_USEC=") for line in systemd.lines)
        systemd.wait_status("1 of 2 streams running; back lost: v4l2:/dev/video99")
        assert vedette.end()[0] == 0
        assert systemd.lines[-2:] == ["STOPPING=1", "STATUS=stopping"]


def test_ready_comes_though_there_is_neither_camera_nor_broker(
    tmp_path: Path, broker: Mosquitto, systemd: Notified
) -> None:
    broker.stop()
    with Vedette(tmp_path, broker, front=camera(person_model(tmp_path), "v4l2:/dev/video99")):
        systemd.wait("READY=1")
        systemd.wait_status("0 of 1 stream running; front lost: v4l2:/dev/video99")
        systemd.wait_status("no broker")


def test_the_file_for_the_board_tells_of_inferences_and_is_always_whole(
    tmp_path: Path, broker: Mosquitto, systemd: Notified
) -> None:
    with Vedette(tmp_path, broker, front=camera(person_model(tmp_path))) as vedette:
        systemd.wait("READY=1")
        wait_for(lambda: report(tmp_path).ready and report(tmp_path).streams["front"].inferred > 5)
        before = report(tmp_path)
        wait_for(lambda: report(tmp_path).streams["front"].inferred > before.streams["front"].inferred)
        after = report(tmp_path)
        assert after.pid == vedette.process.pid
        assert after.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        assert 0.0 < before.at_s < after.at_s
        assert after.rss_mb > 10.0
        front = after.streams["front"]
        assert (front.state, front.model, front.infer_p95_ms is not None) == ("running", "person", True)
        assert after.link is not None


def test_the_file_tells_whether_a_reload_was_taken_up(
    tmp_path: Path, broker: Mosquitto, systemd: Notified
) -> None:
    with Vedette(tmp_path, broker, front=camera(person_model(tmp_path))) as vedette:
        systemd.wait("READY=1")
        wait_for(lambda: report(tmp_path).ready)
        assert (report(tmp_path).reloads, report(tmp_path).reload_refused) == (0, "")
        vedette.config["streams"]["front"]["modell"] = "x"
        vedette.reload()
        wait_for(lambda: report(tmp_path).reloads == 1)
        assert "unknown key `streams.front.modell`" in report(tmp_path).reload_refused
        del vedette.config["streams"]["front"]["modell"]
        vedette.reload()
        wait_for(lambda: report(tmp_path).reloads == 2)
        assert report(tmp_path).reload_refused == ""


def test_a_daemon_that_is_stopped_in_its_tracks_feeds_no_watchdog(
    tmp_path: Path, broker: Mosquitto, systemd: Notified
) -> None:
    with Vedette(tmp_path, broker, front=camera(person_model(tmp_path))) as vedette:
        systemd.wait("WATCHDOG=1", 2)
        vedette.process.send_signal(signal.SIGSTOP)
        fed = systemd.lines.count("WATCHDOG=1")
        with pytest.raises(AssertionError):
            wait_for(lambda: systemd.lines.count("WATCHDOG=1") > fed + 1, 1.5)
        vedette.process.send_signal(signal.SIGCONT)
        systemd.wait("WATCHDOG=1", fed + 2)


def test_a_full_run_folder_is_told_once_and_ends_nothing(
    tmp_path: Path, broker: Mosquitto, systemd: Notified, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "gone"))
    with Vedette(tmp_path, broker, front=camera(person_model(tmp_path))) as vedette:
        vedette.wait_said("health.json: cannot be written")
        systemd.wait("READY=1")
        systemd.wait("WATCHDOG=1", 12)
        assert len(vedette.said("cannot be written")) == 1
