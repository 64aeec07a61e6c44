"""RTSP cameras that send by UDP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from agent.capture.source import open_source
from agent.capture.streams import FrameStream
from agent.cli.checks import network
from agent.config import CaptureConfig, Config, StreamConfig
from agent.config.servers import MqttConfig
from agent.errors import SourceError
from tests.support.packet_camera import PacketCamera, Unit, encode, pattern
from tests.support.rtsp import RtspServer

FPS = 15
UDP = CaptureConfig(stall_s=20.0, rtsp_transport="udp", decode="full")
OPTIONS = {"preset": "ultrafast", "tune": "zerolatency", "x264-params": "keyint=15:min-keyint=15:scenecut=0"}


@pytest.fixture(scope="module")
def units() -> list[Unit]:
    return encode(pattern(8 * FPS, moves=range(8 * FPS)), options=OPTIONS)


@contextmanager
def watching(uri: str) -> Iterator[tuple[FrameStream, list[str]]]:
    """A started stream, and what it reports."""
    news: list[str] = []
    stream = FrameStream("yard", uri, UDP, on_change=lambda state, why: news.append(f"{state}: {why}"))
    stream.start()
    try:
        yield stream, news
    finally:
        stream.stop()


def frames_come(stream: FrameStream, count: int) -> None:
    """So many frames come, whole and in order."""
    deadline, newest_ns = time.monotonic() + 60.0, 0
    while count:
        assert time.monotonic() < deadline, stream.stats
        if (frame := stream.take(0.1)) is not None:
            assert frame.image.shape == (240, 320, 3)
            assert frame.captured_ns > newest_ns
            count, newest_ns = count - 1, frame.captured_ns


def test_two_percent_of_lost_datagrams_end_nothing(units: list[Unit]) -> None:
    lost = set(np.flatnonzero(np.random.default_rng(3).random(200_000) < 0.02).tolist())
    with (
        PacketCamera(units, udp=True, lost=lambda number: number > 60 and number in lost) as camera,
        watching(camera.uri) as (stream, news),
    ):
        frames_come(stream, 10 * FPS)
        assert news == []


def test_a_real_server_that_sends_by_udp_alone_is_shown() -> None:
    with RtspServer() as server, watching(server.uri.replace("/cam", "/udp")) as (stream, news):
        frames_come(stream, 2 * FPS)
        assert news == []


@pytest.mark.parametrize(("camera_udp", "configured"), [(True, "tcp"), (False, "udp")])
def test_a_transport_that_the_camera_refuses_is_named_with_its_key(
    units: list[Unit], camera_udp: bool, configured: str, tmp_path: Path
) -> None:
    capture = CaptureConfig(rtsp_transport=configured)  # type: ignore[arg-type]
    other = "udp" if camera_udp else "tcp"
    expected = f'answers 461: it does not send over {configured.upper()}; set capture.rtsp_transport = "{other}"'
    with PacketCamera(units, udp=camera_udp) as camera:
        with pytest.raises(SourceError) as caught:
            open_source(camera.uri, stall_s=20.0, login=capture)
        assert expected in str(caught.value)
        config = Config({"yard": StreamConfig(camera.uri, "nanodet", capture=capture)}, mqtt=MqttConfig(port=1))
        (told,) = [one for one in network.check_network(config, tmp_path) if one.name == "stream yard"]
        assert told.state == "problem"
        assert expected in told.value


def test_the_doctor_finds_a_real_server_of_udp(tmp_path: Path) -> None:
    """A server each: this one answers 503 to who comes while it ends what the client before had opened."""
    told = []
    for capture in (CaptureConfig(), UDP):
        with RtspServer() as server:
            stream = StreamConfig(server.uri.replace("/cam", "/udp"), "nanodet", capture=capture)
            config = Config({"yard": stream}, mqtt=MqttConfig(port=1))
            told += [one for one in network.check_network(config, tmp_path) if one.name == "stream yard"]
    assert [one.state for one in told] == ["problem", "ok"], told
