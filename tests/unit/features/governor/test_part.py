"""What the governor reads of streams and processors, and when it loads what decides."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.board.firmware import Supply
from agent.board.power import Battery
from agent.board.processors import Quota, Ticks
from agent.board.sensors import ChipReading, EnergyReading
from agent.board.thermal import Zone
from agent.capture.streams import FrameStream
from agent.comms.mqtt.link import LinkLoad
from agent.config import Config, StreamConfig
from agent.config.features import GovernorConfig, ServiceConfig
from agent.config.source_uri import CaptureConfig
from agent.daemon.streams.counters import StreamMeter
from agent.features.governor import readings
from agent.features.governor.part import (
    GovernorPart,
    ProcessorMeter,
    ProcessorShares,
    find_shortages,
    shares_between,
)
from agent.features.governor.readings import StreamReaders, StreamReading
from agent.storage.spool.spool import DiskLoad
from agent.types import StageTimes, StreamResult
from tests.support.boards import write

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


def read(**streams: Any) -> dict[str, StreamReading]:
    return StreamReaders().read(streams)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_only_cameras_on_the_network_whose_decoding_is_left_to_the_stream_can_have_less_decoded() -> None:
    found = read(
        camera=stream(RTSP),
        file=stream("file:clip.mp4"),
        full=stream("rtsp://192.0.2.2/x", capture=CaptureConfig(decode="full")),
        promised=stream("rtsp://192.0.2.3/x", service=ServiceConfig(min_fps=5.0)),
    )
    assert [name for name, one in found.items() if one.has_decoding] == ["camera"]


def test_decoding_is_offered_only_of_a_camera_that_gives_others_than_key_frames() -> None:
    yard = stream(RTSP)
    yard.captured.inter_coded = 0
    readers = StreamReaders()

    def may_save(decoded: int, inter_coded: int) -> bool:
        yard.captured.decoded, yard.captured.inter_coded = decoded, inter_coded
        return readers.read({"yard": yard})["yard"].has_decoding

    assert not may_save(1, 0), "one picture tells nothing"
    assert may_save(2, 1)
    assert may_save(1, 0), "it was opened again"
    assert not may_save(200, 0), "it gives MJPEG now"
    assert not may_save(1, 0)


def test_streams_that_share_a_camera_have_it_decoded_as_it_is() -> None:
    shared = {"one": stream(RTSP), "two": stream(RTSP, capture=CaptureConfig(max_fps=5.0))}
    found = read(**shared, other=stream("rtsp://192.0.2.2/x"))
    assert [name for name, one in found.items() if one.has_decoding] == ["other"]
    shared["two"].status = "starting", ""
    assert not read(**shared)["one"].has_decoding, "what it wants is not known yet"


def test_the_rate_of_a_camera_is_followed_over_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Times()
    monkeypatch.setattr(readings, "time", clock)
    front = stream(RTSP)
    readers, rates = StreamReaders(), []
    for second in range(120):
        clock.now_s += 1.0
        front.captured.frames += 9 if second < 60 else 10
        rates.append(readers.read({"front": front})["front"].fps)
    assert (rates[59], rates[-1]) == (9.0, 10.0)


def test_what_a_stream_infers_between_two_readings_counts() -> None:
    front, readers = stream(RTSP), StreamReaders()
    readers.read({"front": front})
    for number in range(12):
        front.metrics.meter.add(StreamResult([], [], StageTimes()), number * 10**8, 0)
    found = readers.read({"front": front})["front"]
    assert found.inferred_fps == pytest.approx(12 / 1.1)


def test_clips_of_copied_packets_cannot_be_reduced() -> None:
    copied, encoded = stream(RTSP), stream("v4l2:/dev/video0")
    encoded.encodes_clips = True
    found = read(copied=copied, encoded=encoded)
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
        governing = GovernorPart(runtime())
        governing.processors = ProcessorShares(idle=idle, others=others)
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


def runtime(**fields: Any) -> Any:
    usual = {
        "config": Config(),
        "streams": {},
        "disk_load": DiskLoad,
        "mqtt": SimpleNamespace(load=LinkLoad),
        "spool": SimpleNamespace(set_sync_interval=lambda _: None),
        "board": sensors(),
    }
    return SimpleNamespace(**usual | fields)


def sensors(celsius: float | None = None, *, warnings: tuple[str, ...] = (), charge: int | None = None) -> Any:
    zones = {} if celsius is None else {"cpu": Zone("cpu", celsius, 83.0)}
    supply = Supply(warnings) if warnings else None
    battery = Battery(charge, "discharging", feeds_board=True) if charge is not None else None
    return SimpleNamespace(
        sensors=SimpleNamespace(
            chip=lambda: ChipReading(zones, (), supply), energy=lambda: EnergyReading(battery=battery)
        )
    )


def test_what_decides_is_loaded_at_the_first_sign_of_trouble_and_stays() -> None:
    governing, seen = GovernorPart(runtime()), []
    for celsius in (None, 81.0, None):
        governing._runtime.board = sensors(celsius)
        governing._govern()
        seen.append(governing._governing)
    assert seen[0] is None
    assert seen[1] is not None
    assert seen[2] is seen[1]


PROMISED = stream(RTSP, service=ServiceConfig(min_fps=5.0))
PROMISED.thread_id, PROMISED.run, PROMISED.parts = None, SimpleNamespace(source=None), ()


@pytest.mark.parametrize(
    ("fields", "needed"),
    [
        ({"board": sensors(60.0)}, False),
        ({"board": sensors(66.0)}, True),
        ({"board": sensors(warnings=("throttled",))}, True),
        ({"streams": {"front": PROMISED}}, True),
        ({"disk_load": lambda: DiskLoad(commit_ms=900.0)}, True),
        ({"mqtt": SimpleNamespace(load=lambda: LinkLoad(True, oldest_s=5.0))}, True),
        ({"board": sensors(charge=9)}, False),
        (
            {
                "board": sensors(charge=9),
                "config": Config(governor=GovernorConfig(save_below_percent=10.0)),
            },
            True,
        ),
        ({"board": sensors(66.0), "config": Config(governor=GovernorConfig(enabled=False))}, False),
    ],
    ids=["cool", "warm", "weak", "promised", "disk", "link", "battery", "low battery", "off"],
)
def test_what_decides_is_needed_when_something_may_have_to_give_way(fields: dict[str, Any], needed: bool) -> None:
    governing = GovernorPart(runtime(**fields))
    governing._govern()
    assert (governing._governing is not None) is needed


def test_the_shares_of_the_processors_are_those_of_the_last_two_seconds() -> None:
    ticks = [Ticks()]
    meter = ProcessorMeter(ticks=lambda: ticks[-1])
    for busy, own in ((1.0, 1.0), (0.5, 0.25), (0.75, 0.5)):
        before = ticks[-1]
        ticks.append(Ticks(before.total + 4.0, before.idle + 4.0 * (1.0 - busy), before.own + 4.0 * own))
        shares = meter.read()
    assert (shares.idle, shares.others) == pytest.approx((0.375, 0.25))


def test_short_memory_is_told() -> None:
    assert find_shortages(0.03, DiskLoad(), LinkLoad())["memory"] == "3% of the memory are free"
    assert not any(find_shortages(None, DiskLoad(), LinkLoad()).values())


def quota(processors: float, used_s: float | None = None, group: str = "/a") -> Quota:
    return Quota(processors, used_s, group)


def test_a_quota_leaves_no_more_than_its_group_has_not_used() -> None:
    first = Ticks(100.0, 50.0, 10.0, quota=quota(0.5, 20.0), at_s=0.0)
    last = Ticks(108.0, 57.0, 10.1, quota=quota(0.5, 20.6), at_s=2.0)
    shares = shares_between(first, last, 4)
    assert shares.quota == 0.5
    assert shares.idle == pytest.approx((0.5 - 0.3) / 4)
    assert shares.others == pytest.approx(1.0 - 7.0 / 8.0 - 0.1 / 8.0)


def test_a_quota_without_an_account_is_compared_with_this_process() -> None:
    first = Ticks(100.0, 50.0, 10.0, quota=quota(0.5), at_s=0.0)
    last = Ticks(108.0, 57.0, 10.8, quota=quota(0.5), at_s=2.0)
    assert shares_between(first, last, 4).idle == pytest.approx(0.1 / 4)


def test_a_quota_of_all_processors_is_none() -> None:
    first, last = Ticks(100.0, 50.0, 10.0), Ticks(108.0, 57.0, 10.8, quota=quota(4.0), at_s=2.0)
    assert shares_between(first, last, 4) == shares_between(first, replace(last, quota=None), 4)
    assert shares_between(first, last, 4).quota is None


@given(*[st.floats(0.0, 1e6)] * 6, st.integers(1, 64))
def test_shares_are_shares_whatever_the_kernel_counts(
    total: float, idle: float, own: float, limit: float, used_s: float, at_s: float, cores: int
) -> None:
    shares = shares_between(Ticks(), Ticks(total, idle, own, quota=quota(limit, used_s), at_s=at_s), cores)
    assert shares.cores
    assert 0.0 <= shares.idle <= 1.0
    assert 0.0 <= shares.others <= 1.0


def test_a_quota_that_is_set_while_it_runs_is_found(tmp_path: Path) -> None:
    now_s = [0.0]
    files = {"proc/self/cgroup": "0::/a\n", "proc/stat": "cpu  9 0 0 9\ncpu0 9 0 0 9\n"}
    meter = ProcessorMeter(write(tmp_path, files), lambda: now_s[0])
    assert meter.read_ticks().quota is None
    write(tmp_path, {"sys/fs/cgroup/a/cpu.max": "50000 100000"})
    now_s[0] = 11.0
    assert meter.read_ticks().quota == Quota(0.5, None, "/a")
    write(tmp_path, {"sys/fs/cgroup/a/cpu.max": "max 100000"})
    now_s[0] = 12.0
    assert meter.read_ticks().quota is None


def test_processors_are_those_that_may_be_used_and_a_change_begins_anew() -> None:
    ticks = [Ticks(10.0, 5.0, 1.0, usable=frozenset({0, 1}))]
    meter = ProcessorMeter(ticks=lambda: ticks[-1])
    ticks.append(Ticks(12.0, 6.0, 1.0, usable=frozenset({0, 1})))
    shares = meter.read()
    assert (shares.cores, shares.idle) == (2, 0.5)
    ticks.append(Ticks(500.0, 100.0, 1.0, usable=frozenset({3})))
    meter.read()
    ticks.append(Ticks(501.0, 101.0, 1.0, usable=frozenset({3})))
    shares = meter.read()
    assert (shares.cores, shares.idle, shares.quota) == (1, 1.0, None)
