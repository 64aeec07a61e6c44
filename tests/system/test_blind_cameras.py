"""Cameras whose connection is open, and whose packets give no picture: they are told, and opened again."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Literal

import numpy as np
import pytest

from agent.capture.arrivals import Liveness
from agent.capture.camera import Cameras
from agent.capture.sound import AudioStream
from agent.capture.source import DecodeMode, Demand
from agent.capture.streams import FrameStream
from agent.config import CaptureConfig
from tests.support.packet_camera import PacketCamera, Unit, encode, pattern

FPS = 15
QUIET = Demand(DecodeMode.PACKETS)


def gop(frames: int, more: str = "") -> dict[str, str]:
    params = f"keyint={frames}:min-keyint={frames}:scenecut=0{more}"
    return {"preset": "ultrafast", "tune": "zerolatency", "x264-params": params}


def damaged(units: list[Unit]) -> list[Unit]:
    """The same key frames and others, by their head, with other content."""
    random = np.random.default_rng(3)
    found = []
    for one in units:
        head = b"\0\0\0\1" + (b"\x65" if one.keyframe else b"\x41") + b"\xff" * 4
        found.append(Unit(head + random.integers(1, 256, 3000, np.uint8).tobytes(), one.keyframe, one.pts_s))
    return found


@contextmanager
def watching(uri: str, decode: str, stall_s: float = 4.0) -> Iterator[tuple[FrameStream, list[tuple[str, str]]]]:
    """A started stream of a gate that sees nothing, and what it reports."""
    news: list[tuple[str, str]] = []
    config = CaptureConfig(stall_s=stall_s, reopen_max_s=0.3, decode=decode)  # type: ignore[arg-type]
    stream = FrameStream("yard", uri, config, on_change=lambda state, why: news.append((state, why)))
    stream.set_demand(QUIET)
    stream.start()
    try:
        yield stream, news
    finally:
        stream.stop()


def until(condition: Callable[[], object], stream: FrameStream) -> None:
    """Take frames until something is so."""
    deadline = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < deadline, stream.stats
        stream.take(0.05)


class Recovering(PacketCamera):
    """Its first connection goes bad after 5 s; the next ones are good."""

    def __init__(self, good: list[Unit], bad: list[Unit]) -> None:
        super().__init__([*good, *bad])
        self.good = good

    def _answer(self, method: str, head: str) -> bytes:
        if method == "PLAY" and self.viewers:
            self._units = self.good
        return super()._answer(method, head)


@pytest.mark.parametrize("decode", ["auto", "saving", "keyframes", "full"])
def test_packets_that_cannot_be_decoded_are_an_outage_until_others_come(decode: str) -> None:
    units = encode(pattern(60 * FPS, 160, 128), options=gop(FPS, ":repeat-headers=1"))
    good, bad = units[: 5 * FPS], damaged(units[5 * FPS :])
    with Recovering(good, bad) as camera, watching(camera.uri, decode) as (stream, news):
        until(lambda: news, stream)
        assert news[0][0] == "lost"
        assert "packets come, but none can be decoded for 4 s" in news[0][1]
        until(lambda: len(news) > 1, stream)
        assert news[1][0] == "running"
        assert stream.stats.detail == "160x128 at 15 fps"


def test_a_camera_that_refreshes_its_picture_bit_by_bit_is_not_blind_while_it_saves() -> None:
    units = encode(pattern(60 * FPS, 160, 128), options=gop(FPS, ":intra-refresh=1"))
    with PacketCamera(units) as camera, watching(camera.uri, "saving", 8.0) as (stream, news):
        until(lambda: stream.stats.decoding == "packets", stream)
        seen = stream.stats.decoded
        until(lambda: stream.stats.decoded > seen + 2 * FPS, stream)
        assert news == []


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key frame is waited for as long as for any picture, plus 4 s."""
    monkeypatch.setattr("agent.capture.network.Liveness", partial(Liveness, key_frame_s=8.0))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("decode", ["auto", "full"])
def test_a_camera_without_key_frames_is_lost_for_that(decode: str) -> None:
    units = encode(pattern(20 * FPS), options=gop(20 * FPS, ":repeat-headers=1"))[1:]
    with PacketCamera(units) as camera, watching(camera.uri, decode) as (stream, news):
        until(lambda: news and news[-1][0] == "lost", stream)
        assert news[-1][1].endswith("no key frame for 8 s")
        # On a busy machine both may be due at once, and the wait is not told; it is below.
        assert news[:-1] in ([], [("starting", "waiting for a key frame")])


@pytest.mark.usefixtures("impatient")
def test_key_frames_that_stop_are_an_outage_where_they_alone_are_decoded() -> None:
    often = encode(pattern(4 * FPS, 160, 128), options=gop(FPS, ":repeat-headers=1"))
    never = encode(pattern(60 * FPS, 160, 128), options=gop(60 * FPS, ":repeat-headers=1"))[1:]
    with Recovering(often, never) as camera, watching(camera.uri, "keyframes") as (stream, news):
        until(lambda: news, stream)
        assert news[0][0] == "lost"
        assert news[0][1].endswith("no key frame for 16 s")
        until(lambda: len(news) > 1, stream)
        assert news[1][0] == "running"


@pytest.mark.parametrize("decode", ["auto", "keyframes", "full"])
def test_a_connection_that_begins_far_from_a_key_frame_waits_for_it_and_has_its_size_then(decode: str) -> None:
    units = encode(pattern(20 * FPS), options=gop(10 * FPS, ":repeat-headers=1"))[1:]
    with PacketCamera(units) as camera, watching(camera.uri, decode) as (stream, news):
        until(lambda: news, stream)
        assert stream.stats.state == "starting"
        assert stream.stats.detail == "waiting for a key frame"
        until(lambda: stream.stats.state == "running", stream)
        assert stream.stats.detail.startswith("320x240")
        assert news == [("starting", "waiting for a key frame")]


@pytest.mark.parametrize("decode", ["auto", "full"])
def test_one_damaged_key_frame_is_no_outage_however_rare_key_frames_are(decode: str) -> None:
    units = encode(pattern(21 * FPS, 160, 128), options=gop(8 * FPS, ":repeat-headers=1"))
    bad = damaged(units)
    units = [bad[at] if at == 8 * FPS else one for at, one in enumerate(units)]
    with PacketCamera(units) as camera, watching(camera.uri, decode) as (stream, news):
        until(lambda: camera.sent > 16 * FPS, stream)
        seen = stream.stats.decoded
        until(lambda: stream.stats.decoded > seen, stream)
        assert news == []
        assert camera.viewers == 1


def test_who_wants_pictures_of_a_camera_that_is_heard_waits_for_a_key_frame_and_the_sound_goes_on() -> None:
    units, cameras = encode(pattern(20 * FPS), options=gop(20 * FPS, ":repeat-headers=1")), Cameras()
    config, news = CaptureConfig(stall_s=4.0, reopen_max_s=0.3), list[tuple[str, str]]()
    told = lambda state, why: news.append((state, why))  # noqa: E731 - one line
    with PacketCamera(units, sound=True) as camera:
        gate = AudioStream("gate", camera.uri, config, 16_000, on_change=told, cameras=cameras)
        yard = FrameStream("yard", camera.uri, config, on_change=told, cameras=cameras)
        yard.set_demand(QUIET)
        gate.start()
        try:
            until(lambda: gate.take(0.1) is not None, yard)
            yard.start()
            until(lambda: yard.stats.detail == "waiting for a key frame", yard)
            assert yard.stats.state == "starting"
            until(lambda: yard.stats.state == "running", yard)
            assert yard.stats.detail.startswith("320x240")
        finally:
            yard.stop()
            gate.stop()
        assert news == []
        assert camera.viewers == 1


def test_key_frames_that_cannot_be_decoded_alone_are_told() -> None:
    units = encode(pattern(20 * FPS, 160, 128), options=gop(FPS, ":intra-refresh=1"))
    with PacketCamera(units) as camera, watching(camera.uri, "keyframes") as (stream, news):
        until(lambda: news, stream)
        assert news[0][0] == "lost"
        assert "none can be decoded" in news[0][1]


class Unheard(PacketCamera):
    """Its packets never arrive."""

    def _play(self, connection: socket.socket, channels: Mapping[str, int]) -> None:
        self._stopped.wait()


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_datagrams_that_never_arrive_are_told(transport: Literal["tcp", "udp"]) -> None:
    units, news = encode(pattern(FPS, 160, 128), options=gop(FPS)), list[str]()
    config = CaptureConfig(stall_s=2.0, reopen_max_s=0.3, rtsp_transport=transport)
    with Unheard(units, udp=transport == "udp") as camera:
        stream = FrameStream("yard", camera.uri, config, on_change=lambda _, why: news.append(why))
        stream.start()
        try:
            until(lambda: news, stream)
        finally:
            stream.stop()
    assert ("no datagram arrives over UDP: check the firewall" in news[0]) == (transport == "udp")
