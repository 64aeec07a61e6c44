"""What the governor's thread reads of streams, and why it comes too late."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from agent.capture.streams import FrameStream
from agent.config import Config, StreamConfig
from agent.config.capture import CaptureConfig
from agent.config.governor import GovernorConfig, ServiceConfig
from agent.daemon.streams.counters import StreamMeter
from agent.features.governor import part, watch
from agent.features.governor.part import GovernorPart
from agent.features.governor.readings import BoardReading, Readings, StreamReading, needs_decision
from agent.features.governor.watch import BoardLoad
from agent.types import DiskLoad, LinkLoad

RTSP = "rtsp://192.0.2.1/yard"


class Times:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


def stream(source: str, **keys: Any) -> Any:
    config = StreamConfig(source=source, model="nanodet", **keys)
    captured = SimpleNamespace(frames=0, decoded=0, undecoded=0, inter_coded=40, decoding="full")
    metrics = SimpleNamespace(meter=StreamMeter())
    model = SimpleNamespace(manifest=None)
    return SimpleNamespace(
        name="front",
        config=config,
        captured=captured,
        metrics=metrics,
        model=model,
        status=("running", ""),
        has_sound=False,
        encodes_clips=False,
        states={},
    )


def resources(**streams: Any) -> GovernorPart:
    runtime: Any = SimpleNamespace(config=Config(), streams=streams)
    return GovernorPart(runtime, BoardLoad())


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


def test_decoding_is_offered_only_of_a_camera_that_gives_others_than_key_frames() -> None:
    yard = stream(RTSP)
    yard.captured.inter_coded = 0
    manager = resources(yard=yard)

    def may_save(decoded: int, inter_coded: int) -> bool:
        yard.captured.decoded, yard.captured.inter_coded = decoded, inter_coded
        return manager._read_streams()["yard"].has_decoding

    assert not may_save(1, 0), "one picture tells nothing"
    assert may_save(2, 1)
    assert may_save(1, 0), "it was opened again"
    assert not may_save(200, 0), "it gives MJPEG now"
    assert not may_save(1, 0)


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


def test_a_camera_that_gives_less_than_is_promised_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Times()
    monkeypatch.setattr(watch, "time", clock)
    front = stream(RTSP, service=ServiceConfig(min_fps=10.0))
    resource, rates = resources(front=front), []
    for second in range(120):
        clock.now_s += 1.0
        front.captured.frames += 9 if second < 60 else 10
        rates.append(resource._read_streams()["front"].fps)
    assert (rates[59], rates[-1]) == (9.0, 10.0)
    assert said(caplog) == ["stream front: promised 10 pictures per second, of 9 that its source gives"]


@pytest.mark.parametrize(
    ("board", "told"),
    [
        (
            BoardReading(idle=0.0, others=0.9),
            "meanwhile other programs used 90% of the processors, the daemon 10%",
        ),
        (
            BoardReading(idle=0.9, others=0.1),
            "meanwhile other programs used 10% of the processors, and 90% were idle: the daemon was stopped, or "
            "waited for the disk or memory",
        ),
    ],
)
def test_a_decision_that_comes_late_says_how_the_processors_were_used(board: BoardReading, told: str) -> None:
    assert part._meanwhile(board) == told


def test_clips_of_copied_packets_cannot_be_reduced() -> None:
    copied, encoded = stream(RTSP), stream("v4l2:/dev/video0")
    encoded.encodes_clips = True
    found = resources(copied=copied, encoded=encoded)._read_streams()
    assert [name for name, one in found.items() if one.has_clips] == ["encoded"]


@pytest.mark.parametrize(("idle", "others", "steps"), [(0.1, 0.1, 10), (0.1, 0.9, 0), (0.9, 0.1, 0)])
def test_what_decodes_gives_way_while_the_daemon_itself_fills_the_processors(
    idle: float, others: float, steps: int
) -> None:
    source = FrameStream("front", "test:?size=32x32", CaptureConfig(), on_change=lambda *_: None)
    source.start()
    waiting = threading.Event()
    lesser = threading.Thread(target=waiting.wait)
    lesser.start()
    try:
        assert source.take(60.0) is not None
        front, yard = stream("test:"), stream("test:", service=ServiceConfig(priority=10))
        front.thread_id, front.run = None, SimpleNamespace(source=source)
        yard.thread_id, yard.run = lesser.native_id, SimpleNamespace(source=None)
        governing = resources(front=front, yard=yard)
        governing.board = BoardReading(idle=idle, others=others)
        governing._set_nice({"front": front, "yard": yard}, governed=True)
        mine = os.getpriority(os.PRIO_PROCESS, 0)
        assert source.decoder_thread_id is not None
        assert os.getpriority(os.PRIO_PROCESS, source.decoder_thread_id) - mine == steps
        assert lesser.native_id is not None
        nice = os.getpriority(os.PRIO_PROCESS, lesser.native_id) - mine
        assert nice == max(5, steps), "no less than the decoder of a more important stream"
    finally:
        source.stop()
        waiting.set()
    assert source.decoder_thread_id is None


class Board(BoardLoad):
    """A board whose reading a test sets."""

    reading = BoardReading(idle=0.9)

    def read(self, config: Config) -> BoardReading:
        return self.reading


def test_what_decides_is_loaded_at_the_first_sign_of_trouble_and_stays() -> None:
    yard = stream(RTSP)
    yard.thread_id, yard.run, yard.parts, board = None, SimpleNamespace(source=None), (), Board()
    spool = SimpleNamespace(set_sync_interval=lambda _: None)
    link = SimpleNamespace(load=LinkLoad)
    runtime: Any = SimpleNamespace(
        config=Config(), streams={"yard": yard}, disk_load=DiskLoad, mqtt=link, spool=spool
    )
    governing = GovernorPart(runtime, board)
    seen = []
    for celsius in (None, 81.0, None):
        board.reading = BoardReading(idle=0.9, celsius=celsius, limit_c=80.0)
        governing._govern()
        seen.append(governing._rules)
    assert seen[0] is None
    assert seen[1] is not None
    assert seen[2] is seen[1]


CALM, WARM = BoardReading(idle=0.9, celsius=60.0), BoardReading(idle=0.9, celsius=66.0)
KEPT = StreamReading(min_fps=8.0, fps=10.0, fps_now=10.0, inferred_fps=8.0)


@pytest.mark.parametrize(
    ("readings", "config", "needed"),
    [
        (Readings(1.0, CALM, {"front": KEPT}), GovernorConfig(), False),
        (Readings(1.0, CALM, {"front": replace(KEPT, inferred_fps=5.0)}), GovernorConfig(), True),
        (Readings(1.0, WARM, {}), GovernorConfig(), True),
        (Readings(1.0, replace(CALM, slowed="the firmware reports: throttled"), {}), GovernorConfig(), True),
        (Readings(1.0, replace(CALM, memory_free=0.01), {}), GovernorConfig(), True),
        (Readings(1.0, CALM, {}, DiskLoad(commit_ms=900.0)), GovernorConfig(), True),
        (Readings(1.0, CALM, {}, link=LinkLoad(True, oldest_s=5.0)), GovernorConfig(), True),
        (Readings(1.0, replace(CALM, battery_percent=9.0), {}), GovernorConfig(), False),
        (Readings(1.0, replace(CALM, battery_percent=9.0), {}), GovernorConfig(save_below_percent=10.0), True),
        (Readings(1.0, WARM, {}), GovernorConfig(enabled=False), False),
    ],
)
def test_a_decision_is_needed_when_something_is_wrong(
    readings: Readings, config: GovernorConfig, needed: bool
) -> None:
    assert needs_decision(readings, config) is needed
