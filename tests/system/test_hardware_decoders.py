"""Cameras on the network whose hardware decoder is away, fails or hangs: the stream goes on."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from agent.capture import hardware_decoder as decoders
from agent.capture.streams import FrameStream
from agent.config import CaptureConfig
from tests.support.decoders import Tamper, failing, green, hanging, opener, right
from tests.support.doubles import person_model
from tests.support.mosquitto import Mosquitto
from tests.support.operator import Operator
from tests.support.packet_camera import PacketCamera, encode, pattern
from tests.support.running import Vedette, states
from tests.support.running import camera as camera_of

FPS = 15
OPTIONS = {"preset": "ultrafast", "tune": "zerolatency", "x264-params": "keyint=15:min-keyint=15:scenecut=0"}


def shown(camera: PacketCamera, seconds: float) -> tuple[list[int], list[str]]:
    """Capture times of the pictures that a stream gets, ns, and what was told of outages."""
    config = CaptureConfig(decode="full", decoder="h264_v4l2m2m", stall_s=20.0)
    told: list[str] = []
    stream = FrameStream("yard", camera.uri, config, on_change=lambda state, reason: told.append(reason))
    stream.start()
    times, until_s = list[int](), time.monotonic() + seconds
    while time.monotonic() < until_s:
        if (frame := stream.take(0.1)) is not None:
            times.append(frame.captured_ns)
            assert frame.image.mean() > 20, "a green picture"
            stream.give_back(frame)
    stream.stop()
    return times, told


@pytest.mark.parametrize("kind", ["right", "failing", "green", "hanging"])
def test_a_camera_goes_on_whatever_its_hardware_decoder_does(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    released = threading.Event()
    tampers: dict[str, Tamper] = {
        "right": right,
        "failing": failing(20),
        "green": green,
        "hanging": hanging(20, released),
    }
    monkeypatch.setattr(decoders, "open_decoder", opener(tampers[kind]))
    monkeypatch.setattr(decoders, "_FAILED", set())
    try:
        with PacketCamera(encode(pattern(4 * FPS), fps=FPS, options=OPTIONS), fps=FPS) as camera:
            times, told = shown(camera, 5.0)
    finally:
        released.set()
    assert told == [], "the camera was never lost"
    assert times == sorted(set(times))
    assert len(times) >= 2 * FPS
    assert ("decoding in software" in caplog.text) == (kind != "right")


@pytest.mark.skipif(any(Path("/dev").glob("video*")), reason="this machine has V4L2 devices")
def test_a_daemon_without_the_device_says_so_and_decodes_in_software(tmp_path: Path, broker: Mosquitto) -> None:
    messages = Operator(broker).messages
    capture = {"stall_s": 20.0, "decode": "full", "decoder": "h264_v4l2m2m"}
    with PacketCamera(encode(pattern(10 * FPS), fps=FPS, options=OPTIONS), fps=FPS) as camera:
        yard = camera_of(person_model(tmp_path), camera.uri, capture=capture)
        with Vedette(tmp_path, broker, yard=yard) as vedette:
            assert "there is no such device" in vedette.wait_said("hardware decoder h264_v4l2m2m")
            messages.wait(lambda m: states(m).get("yard") == "running", 60)
