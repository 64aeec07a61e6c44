"""The file for programs on the board. `tests/system/test_service.py` reads that of a running daemon."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent import __version__
from agent.config import Config, StorageConfig, StreamConfig
from agent.config.servers import MqttConfig
from agent.daemon.control import ConfigManager
from agent.daemon.health import HealthFile, HealthPublisher
from agent.daemon.overrides import OverridesFile
from agent.daemon.runtime import Runtime, stop_streams
from agent.health import DaemonHealth
from agent.storage.spool.spool import Spool
from tests.support.doubles import person_model
from tests.support.publishing import wait_for


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    model = str(person_model(tmp_path))
    streams = {
        "front": StreamConfig("test:?size=64x48&fps=50", model),
        "away": StreamConfig("v4l2:/dev/video99", model),
        "off": StreamConfig("test:", model, enabled=False),
    }
    spool = Spool(tmp_path, StorageConfig())
    made = Runtime(Config(streams, mqtt=MqttConfig(port=1)), spool)
    made.prepare()
    for stream in made.streams.values():
        stream.start()
    yield made
    stop_streams(made.streams.values())
    spool.close()


@pytest.fixture
def publisher(runtime: Runtime, tmp_path: Path) -> HealthPublisher:
    control = ConfigManager(runtime.config, OverridesFile(tmp_path))
    control.attach(runtime)
    return HealthPublisher(runtime, control)


def report(folder: Path) -> DaemonHealth:
    return msgspec.json.decode((folder / "health.json").read_bytes(), type=DaemonHealth)


def test_each_stream_is_told_with_what_it_has_inferred(
    runtime: Runtime, publisher: HealthPublisher, tmp_path: Path
) -> None:
    wait_for(
        lambda: runtime.streams["front"].metrics.inferences >= 3 and runtime.streams["away"].status[0] == "lost"
    )
    local = HealthFile(runtime, publisher, {"RUNTIME_DIRECTORY": f"{tmp_path}:/elsewhere"})
    local.write_if_due(ready=False, is_due=False)
    publisher.publish()
    local.write_if_due(ready=True, is_due=True)
    told = report(tmp_path)
    assert (told.version, told.pid, told.ready, told.link) == (__version__, os.getpid(), True, None)
    assert {name: one.state for name, one in told.streams.items()} == {
        "front": "running",
        "away": "lost",
        "off": "disabled",
    }
    front, away = told.streams["front"], told.streams["away"]
    assert front.inferred >= 3
    assert front.infer_p95_ms is not None
    assert front.fps > 0.0  # as it was published
    assert away.detail.startswith("v4l2:/dev/video99")
    assert (away.inferred, away.infer_p95_ms) == (0, None)


def test_it_is_written_when_it_is_old_or_something_has_changed_and_not_all_the_time(
    runtime: Runtime, publisher: HealthPublisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [100.0]
    monkeypatch.setattr("agent.daemon.health.time.monotonic", lambda: now_s[0])
    local = HealthFile(runtime, publisher, {"RUNTIME_DIRECTORY": str(tmp_path)})
    written = []
    for later_s, is_due in ((0.0, False), (0.5, False), (0.5, True), (1.9, False), (0.2, False)):
        now_s[0] += later_s
        (tmp_path / "health.json").unlink(missing_ok=True)
        local.write_if_due(ready=True, is_due=is_due)
        written.append((tmp_path / "health.json").exists())
    assert written == [True, False, True, False, True]


def test_what_a_sensor_raises_ends_nothing_and_is_logged_once(
    runtime: Runtime,
    publisher: HealthPublisher,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise OverflowError("int too large to convert to float")

    monkeypatch.setattr("agent.board.monitor.TemperatureMonitor.poll", fail)
    for _ in range(3):
        publisher.due()
    assert len([line for line in caplog.messages if line.startswith("temperature: cannot be read")]) == 1


def test_without_a_folder_nothing_is_written_and_without_a_disk_it_is_told_once(
    runtime: Runtime, publisher: HealthPublisher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    HealthFile(runtime, publisher, {}).write_if_due(ready=True, is_due=True)
    gone = HealthFile(runtime, publisher, {"RUNTIME_DIRECTORY": str(tmp_path / "gone")})
    for _ in range(3):
        gone.write_if_due(ready=True, is_due=True)
    assert (
        len([said for said in caplog.messages if "cannot be written" in said and "gone/health.json" in said]) == 1
    )
    assert not (tmp_path / "health.json").exists()
