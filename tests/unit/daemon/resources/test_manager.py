"""What the governor's thread reads of streams, and when it tells that a promise is broken and kept again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from agent.compute.governor.decision import Decision
from agent.compute.governor.readings import StreamReading
from agent.config import Config, StreamConfig
from agent.config.capture import CaptureConfig
from agent.config.governor import GovernorConfig, ServiceConfig
from agent.daemon.resources import manager
from agent.daemon.resources.load import BoardLoad
from agent.daemon.resources.manager import ResourceManager
from agent.daemon.resources.meter import StreamMeter

PROMISED = StreamReading(min_fps=8.0)
RTSP = "rtsp://192.0.2.1/yard"


class Times:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Times:
    clock = Times()
    monkeypatch.setattr(manager, "time", clock)
    return clock


def stream(source: str, **keys: Any) -> Any:
    config = StreamConfig(source=source, model="nanodet", **keys)
    captured = SimpleNamespace(frames=0, decoded=0, undecoded=0, decoding="full")
    metrics = SimpleNamespace(meter=StreamMeter())
    model = SimpleNamespace(manifest=None)
    return SimpleNamespace(
        config=config,
        captured=captured,
        metrics=metrics,
        model=model,
        status=("running", ""),
        has_sound=False,
        states={},
    )


def resources(**streams: Any) -> ResourceManager:
    runtime: Any = SimpleNamespace(config=Config(), streams=streams)
    return ResourceManager(runtime, BoardLoad())


def decided(unmet: dict[str, str] | None = None, broken: frozenset[str] = frozenset()) -> Decision:
    return Decision({}, 0.0, (), {}, unmet or {}, broken)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_only_cameras_on_the_network_whose_decoding_is_left_to_the_stream_can_have_less_decoded() -> None:
    found = resources(
        camera=stream(RTSP),
        file=stream("file:clip.mp4"),
        full=stream("rtsp://192.0.2.2/x", capture=CaptureConfig(decode="full")),
        promised=stream("rtsp://192.0.2.3/x", service=ServiceConfig(min_fps=5.0)),
    )._read_streams()
    assert [name for name, one in found.items() if one.has_decoding] == ["camera"]
    assert {one.camera for one in found.values()} == {""}


def test_streams_that_share_a_camera_can_have_less_decoded_if_all_of_them_can() -> None:
    other = stream("rtsp://192.0.2.2/x")
    shared = {"one": stream(RTSP), "two": stream(RTSP, capture=CaptureConfig(max_fps=5.0)), "other": other}
    found = resources(**shared)._read_streams()
    assert found["one"].camera == found["two"].camera != ""
    assert all(one.has_decoding for one in found.values())
    shared["two"] = stream(RTSP, service=ServiceConfig(min_fps=5.0))
    found = resources(**shared)._read_streams()
    assert [name for name, one in found.items() if one.has_decoding] == ["other"]
    shared["two"] = stream(RTSP)
    shared["two"].status = "starting", ""
    assert not resources(**shared)._read_streams()["one"].has_decoding, "what it wants is not known yet"


def test_a_broken_promise_is_told_once_until_it_is_kept(times: Times, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    watched, streams = resources(), {"front": PROMISED}
    for second in range(30):
        times.now_s += 1.0
        can_be_helped = second % 4 == 3
        watched._tell(decided({} if can_be_helped else {"front": "infers 5 of 8"}, frozenset({"front"})), streams)
        assert watched._unmet["front"].why == "infers 5 of 8"
    for _ in range(15):
        times.now_s += 1.0
        watched._tell(decided(), streams)
    assert said(caplog) == [
        "stream front: infers 5 of 8, and nothing is left that could give way",
        "stream front: as promised again, after 29 s",
    ]


def test_a_promise_that_is_taken_back_is_not_told_as_kept(times: Times, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for without in ({"front": StreamReading()}, {}):
        watched = resources()
        watched._tell(decided({"front": "infers 5 of 8"}, frozenset({"front"})), {"front": PROMISED})
        watched._tell(decided(), without)
        assert watched._unmet == {}
    watched = resources()
    watched._tell(decided({"front": "infers 5 of 8"}, frozenset({"front"})), {"front": PROMISED})
    watched._runtime.config = Config(governor=GovernorConfig(enabled=False))
    watched._tell(decided(), {"front": PROMISED})
    assert watched._unmet == {}
    assert not any("again" in text for text in said(caplog))


def test_the_board_is_told_to_be_within_its_limits_again(times: Times, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    watched = resources()
    watched._tell(decided({"": "the board is at 90 °C"}, frozenset({""})), {})
    times.now_s += 20.0
    watched._tell(decided(), {})
    assert said(caplog)[-1] == "the board: within its limits again, after 0 s"
