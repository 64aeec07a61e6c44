"""Packets of cameras on the network whose video stops."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from fractions import Fraction
from functools import partial
from statistics import median

import cv2
import numpy as np
import pytest
from msgspec.structs import replace

from agent.capture.arrivals import Liveness
from agent.capture.network import NetworkStream, open_medium
from agent.capture.source import DecodeChoice, DecodeMode, Demand, Source, open_source
from agent.capture.streams import FrameStream
from agent.config import CaptureConfig
from agent.config.source_uri import parse
from agent.errors import SourceError
from agent.types import MediaPacket
from tests.support.packet_camera import (
    CLOCK_HZ,
    PacketCamera,
    Unit,
    _payloads,
    _send,
    encode,
    pattern,
    without_parameters,
)
from tests.support.publishing import wait_for

FPS = 15
OPTIONS = {"preset": "ultrafast", "tune": "zerolatency", "x264-params": "keyint=15:min-keyint=15:scenecut=0"}


class StoppingCamera(PacketCamera):
    """Gives no more video after 2 s; its sound goes on if it has any."""

    def _play(self, connection: socket.socket, channels: Mapping[str, int]) -> None:
        began_s, number, sequence = time.monotonic(), 0, 0
        while not self._stopped.wait(max(0.0, began_s + number / FPS - time.monotonic())):
            if number < 2 * FPS:
                for payload, last in _payloads(self._units[number].data, "H264"):
                    at = round(number / FPS * CLOCK_HZ)
                    _send(connection, 0, 96, sequence, at, payload, last=last)
                    sequence += 1
            if self._sound:
                _send(connection, 2, 8, number, number * 533, b"\xd5" * 533, last=False)
            number += 1


@pytest.fixture(scope="module")
def units() -> list[Unit]:
    return encode(pattern(4 * FPS), options=OPTIONS)


def skip_all(source: Source, over: Callable[[], bool] = lambda: False) -> None:
    """Read packets, and decode nothing."""
    listener = _Listener()
    listener.demand = Demand(DecodeMode.NOTHING)
    source.follow(listener)
    while not over():
        source.grab()


@pytest.mark.parametrize("sound", [True, False], ids=["sound goes on", "all is silent"])
def test_video_that_stops_is_noticed_in_time_by_who_only_wants_packets(units: list[Unit], sound: bool) -> None:
    with StoppingCamera(units, sound=sound) as camera:
        source = open_source(camera.uri, stall_s=2.0)
        with pytest.raises(SourceError, match="no picture for 2 s"):
            skip_all(source)
        source.close()


def test_key_frames_that_end_are_noticed_by_who_only_wants_packets(
    units: list[Unit], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.capture.network.Liveness", partial(Liveness, key_frame_s=1.0))
    often = [replace(unit, pts_s=number / FPS) for number, unit in enumerate([units[0], units[1]] * 4)]
    never = [replace(units[1], pts_s=number / FPS) for number in range(8, 20 * FPS)]
    with PacketCamera([*often, *never]) as camera:
        source = open_source(camera.uri, stall_s=1.0)
        with pytest.raises(SourceError, match="no key frame for 2 s"):
            skip_all(source, lambda: camera.sent > 10 * FPS)
        source.close()


@pytest.mark.parametrize("mode", ["keyframes", "auto", "full"])
def test_parameters_that_change_and_come_once_are_those_of_every_later_picture(mode: DecodeChoice) -> None:
    pictures = pattern(20 * FPS, 160, 128)
    before = encode(pictures[: 2 * FPS], options={**OPTIONS, "preset": "fast"})
    after = [replace(unit, pts_s=unit.pts_s + 2) for unit in encode(pictures, options=OPTIONS)]
    units = [
        unit if number == 0 else without_parameters(unit)
        for part in (before, after)
        for number, unit in enumerate(part)
    ]
    config = CaptureConfig(decode=mode, stall_s=20.0)
    with PacketCamera(units) as camera:
        stream = FrameStream("yard", camera.uri, config, on_change=lambda state, why: None)
        stream.start()
        try:
            found = list[float]()
            wait_for(lambda: camera.sent > 4 * FPS)
            while len(found) < 3:
                if (frame := stream.take(0.5)) is not None:
                    found.append(float(np.abs(frame.image.astype(float) - pictures[0]).mean()))
        finally:
            stream.stop()
    assert max(found[1:]) < 6.0


@pytest.mark.parametrize("mode", ["keyframes", "full"])
def test_no_clip_begins_with_the_picture_after_which_a_camera_of_another_size_is_opened_anew(
    units: list[Unit], mode: DecodeChoice
) -> None:
    larger = [
        replace(unit, pts_s=unit.pts_s + 4) for unit in encode(pattern(20 * FPS, 640, 480), options=OPTIONS)
    ]
    found, news = list[MediaPacket](), list[str]()
    config = CaptureConfig(decode=mode, stall_s=20.0, reopen_max_s=0.3)
    with PacketCamera([*units, *larger]) as camera:
        stream = FrameStream(
            "yard", camera.uri, config, on_change=lambda state, why: news.append(why), on_packet=found.append
        )
        stream.start()
        try:
            wait_for(lambda: news)
        finally:
            stream.stop()
    assert "its pictures changed from 320x240 to 640x480" in news[0]
    assert len(found) > FPS
    assert {(packet.track.width, packet.track.height) for packet in found} == {(320, 240)}


SLOW_FPS = 2
BRIGHT = [20 * (1 + number) for number in range(10)]


@pytest.mark.parametrize("codec", ["H264", "H265"])
@pytest.mark.parametrize("sound", [False, True], ids=["pictures", "pictures and sound"])
def test_a_picture_was_captured_when_its_data_came_not_when_the_next_one_ends_it(codec: str, sound: bool) -> None:
    """FFmpeg gives each picture half a second late."""
    pictures = [np.full((128, 160, 3), value, np.uint8) for value in BRIGHT]
    name, params = ("libx264", "x264-params") if codec == "H264" else ("libx265", "x265-params")
    options = {"preset": "ultrafast", "tune": "zerolatency", params: "keyint=1:repeat-headers=1"}
    sent_s: dict[int, float] = {}

    def note(number: int) -> float:
        sent_s[number % len(BRIGHT)] = time.monotonic()
        return 0.0

    units, late_s = encode(pictures, name, SLOW_FPS, options=options), list[float]()
    with PacketCamera(units, codec=codec, fps=SLOW_FPS, shift_s=note, sound=sound) as camera:
        source = open_source(camera.uri, stall_s=60.0)
        for _ in range(12):
            image = source.read(None)
            assert image is not None
            which = min(range(len(BRIGHT)), key=lambda number: abs(BRIGHT[number] - float(image.mean())))
            late_s.append(source.captured_ns / 1e9 - sent_s[which])
        source.close()
    assert abs(median(late_s[-8:])) < 0.5 / SLOW_FPS


class _Listener:
    """Takes all packets, and has everything decoded."""

    decode: DecodeChoice = "full"
    wants_packets, wants_sound = True, False

    def __init__(self) -> None:
        self.demand, self.packets = Demand(), list[MediaPacket]()

    @property
    def decoder(self) -> str:
        return "software"

    def take_packet(self, packet: MediaPacket) -> None:
        self.packets.append(packet)


def _sent_one_by_one(
    listener: socket.socket, kind: bytes, pieces: list[bytes], wanted: threading.Semaphore
) -> None:
    connection, _ = listener.accept()
    with connection, suppress(OSError):
        connection.recv(4096)
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: " + kind + b"\r\n\r\n")
        for piece in pieces:
            wanted.acquire()
            connection.sendall(piece)
        connection.recv(1)


def _multipart() -> list[bytes]:
    jpeg = cv2.imencode(".jpg", np.full((48, 64, 3), 90, np.uint8))[1].tobytes()
    head = f"--x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode()
    return [head + jpeg + b"\r\n"] * 100


def _bare(name: str, params: str) -> list[bytes]:
    options = {"preset": "ultrafast", "tune": "zerolatency", params: "keyint=1:repeat-headers=1:log-level=none"}
    return [unit.data for unit in encode(pattern(100, 64, 48), name, options=options)]


_AT_ONCE, _IN_TURN = 50, 30


@pytest.mark.parametrize(
    ("kind", "pieces", "is_parsed"),
    [
        (b"multipart/x-mixed-replace; boundary=x", _multipart(), False),
        (b"video/h264", _bare("libx264", "x264-params"), True),
        (b"video/hevc", _bare("libx265", "x265-params"), True),
    ],
    ids=["mjpeg", "h264", "hevc"],
)
@pytest.mark.parametrize("apart_s", [0.07, 0.5, 3.0])
def test_pictures_of_a_format_without_times_are_from_when_they_came(
    kind: bytes, pieces: list[bytes], is_parsed: bool, apart_s: float
) -> None:
    """The clock passes by `apart_s` before each picture is sent, and stands still otherwise."""
    now_ns, wanted, listener = [5_000_000_000], threading.Semaphore(_AT_ONCE), _Listener()
    sent_s, captured_s = list[float](), list[float]()
    with socket.create_server(("127.0.0.1", 0)) as server:
        arguments = (server, kind, pieces, wanted)
        threading.Thread(target=_sent_one_by_one, args=arguments, daemon=True).start()
        address = parse(f"http://127.0.0.1:{server.getsockname()[1]}/video")
        media = open_medium(address, 60.0)
        source = NetworkStream(media, address, 60.0, lambda: now_ns[0])
        source.follow(listener)
        while len(listener.packets) < _AT_ONCE - is_parsed:
            now_ns[0] += 1000
            source.grab()
        for _ in range(_IN_TURN):
            now_ns[0] += round(apart_s * 1e9)
            sent_s.append(now_ns[0] / 1e9)
            wanted.release()
            source.grab()
            captured_s.append(source.captured_ns / 1e9)
        source.close()
    packets = listener.packets[_AT_ONCE : _AT_ONCE + _IN_TURN]
    stamps_s = [float(one.pts * Fraction(*one.track.time_base)) for one in packets if one.pts is not None]
    assert stamps_s == pytest.approx(sent_s[: len(packets)], abs=0.001)
    assert captured_s[is_parsed:] == pytest.approx(sent_s[: len(captured_s) - is_parsed], abs=0.001)
