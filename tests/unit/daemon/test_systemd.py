"""Notifications to systemd for each state of the streams."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from agent.comms.topics import Topics
from agent.compute.vision import VideoPerception
from agent.config import StreamConfig
from agent.daemon import systemd as service
from agent.daemon.streams.services import State, StreamServices
from agent.daemon.streams.stream import Stream
from agent.daemon.systemd import Notifier, SystemdStatus, awaited, status_text
from agent.types import Frame, StreamResult
from tests.support.doubles import Kept, person_model
from tests.support.notified import Notified
from tests.support.publishing import wait_for


class _Given(Struct):
    """A stream that is as it is given."""

    state: State
    detail: str = ""
    has_result: bool = False
    stalled_s: float = 0.0

    @property
    def status(self) -> tuple[State, str]:
        return self.state, self.detail


Given: Any = _Given
SEES, WAITS = Given("running", has_result=True), Given("running")
LOST = Given("lost", "v4l2:/dev/video9: no such device")


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Notified]:
    with Notified(str(tmp_path / "notify")) as heard:
        yield heard


def told(systemd: Notified, **more: str) -> SystemdStatus:
    return SystemdStatus(Notifier({"NOTIFY_SOCKET": systemd.address, **more}))


@pytest.mark.parametrize(
    ("stream", "is_awaited"),
    [
        (WAITS, True),
        (Given("starting", "gpu is being opened"), True),
        (Given("starting", "waiting for a key frame"), False),
        (Given("degraded", "gpu: gone"), True),
        (SEES, False),
        (LOST, False),
        (Given("failed"), False),
        (Given("ended"), False),
        (Given("disabled"), False),
    ],
)
def test_only_a_stream_that_will_infer_is_waited_for(stream: Any, is_awaited: bool) -> None:
    assert awaited({"front": stream, "back": SEES}) == ["front"] * is_awaited


@pytest.mark.parametrize(
    ("streams", "ready", "said"),
    [
        ({"front": SEES}, True, "1 of 1 stream running"),
        ({"front": SEES, "mic": WAITS}, False, "starting: waiting for the first inference of mic"),
        (
            {"front": LOST, "mic": SEES},
            True,
            "1 of 2 streams running; front lost: v4l2:/dev/video9: no such device",
        ),
        (
            {"front": Given("starting", "waiting for a key frame"), "mic": SEES},
            True,
            "1 of 2 streams running; front starting: waiting for a key frame",
        ),
        ({"front": Given("degraded", "gpu: died")}, True, "1 of 1 stream running; front degraded: gpu: died"),
        ({"front": SEES, "back": Given("disabled")}, True, "1 of 1 stream running"),
        (
            {"front": Given("running", has_result=True, stalled_s=200.0)},
            True,
            "1 of 1 stream running; front stuck",
        ),
    ],
)
def test_the_status_says_how_each_stream_is(streams: dict[str, Any], ready: bool, said: str) -> None:
    assert status_text(streams, ready=ready, connected=True) == said
    assert status_text(streams, ready=ready, connected=False) == f"{said}; no broker"


def test_ready_is_told_once_and_after_the_last_first_inference(systemd: Notified) -> None:
    one = told(systemd)
    one.update({"front": SEES, "mic": WAITS}, connected=True)
    assert (one.ready, "READY=1" in systemd.lines) == (False, False)
    one.update({"front": SEES, "mic": SEES}, connected=True)
    one.update({"front": LOST, "mic": WAITS}, connected=True)
    assert (one.ready, systemd.lines.count("READY=1")) == (True, 1)


def test_a_dead_camera_does_not_keep_the_daemon_from_being_ready(systemd: Notified) -> None:
    one = told(systemd)
    one.update({"front": LOST}, connected=False)
    assert one.ready
    assert systemd.lines == ["READY=1", f"STATUS=0 of 1 stream running; front lost: {LOST.detail}; no broker"]


def test_a_reload_before_ready_does_not_tell_ready(systemd: Notified) -> None:
    one = told(systemd)
    one.reloading()
    one.reloaded()
    assert systemd.lines == []


def test_the_watchdog_is_fed_four_times_in_its_period(systemd: Notified, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("agent.daemon.systemd.time.monotonic", lambda: now[0])
    one = told(systemd, WATCHDOG_USEC="8000000")
    for _ in range(16):
        one.update({"front": SEES}, connected=True)
        now[0] += 0.5
    assert systemd.lines.count("WATCHDOG=1") == 4


def test_a_stream_that_hangs_stops_the_watchdog_and_is_named_once(
    systemd: Notified, caplog: pytest.LogCaptureFixture
) -> None:
    one = told(systemd, WATCHDOG_USEC="1000")
    hung = {"front": Given("running", has_result=True, stalled_s=service.HANGS_S + 1), "mic": SEES}
    one.update(hung, connected=True)
    one.update(hung, connected=True)
    assert "WATCHDOG=1" not in systemd.lines
    assert [r.getMessage() for r in caplog.records] == [
        "stream front is stuck: no progress for 150 s; systemd's watchdog will restart the daemon"
    ]


def test_a_real_stream_that_hangs_in_its_model_is_noticed_and_one_that_waits_for_a_camera_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "HANGS_S", 0.6)
    go_on, real = threading.Event(), VideoPerception.process

    def look(self: VideoPerception, frame: Frame) -> StreamResult:
        if frame.seq >= 3:  # a busy machine drops single frames
            go_on.wait(60.0)
        return real(self, frame)

    monkeypatch.setattr(VideoPerception, "process", look)
    model, kept = str(person_model(tmp_path)), Kept()
    services = StreamServices(Topics("vedette", "porch"), kept, kept)
    sources = {"front": "test:?size=64x48&fps=50", "away": "v4l2:/dev/video99"}
    streams = {
        name: Stream(name, StreamConfig(source=uri, model=model), services) for name, uri in sources.items()
    }
    for stream in streams.values():
        stream.prepare()
        stream.start()
    try:
        wait_for(lambda: service.hanging(streams) == ["front"], 60.0)
        wait_for(lambda: streams["away"].status[0] == "lost")
        go_on.set()
        wait_for(lambda: service.hanging(streams) == [] and streams["front"].metrics.inferences > 3)
        p95_ms = streams["front"].metrics.latency.p95_ms
        assert p95_ms is not None
        assert p95_ms >= 0.0
        assert service.hanging(streams) == []
    finally:
        go_on.set()
        for stream in streams.values():
            stream.ask_to_stop()
            stream.join(60.0)
    assert msgspec.json.encode(streams["front"].health())
