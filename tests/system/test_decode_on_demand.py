"""A daemon with an encoded camera: it decodes little while nothing happens, and everything when it is asked."""

from __future__ import annotations

from pathlib import Path

from tests.support.doubles import person_model
from tests.support.mosquitto import Mosquitto
from tests.support.operator import Operator
from tests.support.packet_camera import PacketCamera, encode, pattern
from tests.support.publishing import TOPICS
from tests.support.received import Messages
from tests.support.running import Vedette, health
from tests.support.running import camera as camera_of

FPS = 10
OPTIONS = {"preset": "ultrafast", "tune": "zerolatency", "x264-params": "keyint=20:min-keyint=20:scenecut=0"}


def decoding(messages: Messages) -> str:
    """What of the stream is decoded, as the newest health message tells."""
    told = health(messages)
    return told.streams["yard"].decoding if told is not None and "yard" in told.streams else ""


def test_a_still_camera_is_hardly_decoded_until_a_picture_is_asked_for(tmp_path: Path, broker: Mosquitto) -> None:
    operator = Operator(broker)
    messages, track = operator.messages, {"stationary_after_s": 1.0}
    with PacketCamera(encode(pattern(40 * FPS), fps=FPS, options=OPTIONS), fps=FPS) as camera:
        capture = {"stall_s": 20.0, "decode": "saving"}
        yard = camera_of(person_model(tmp_path), camera.uri, track=track, capture=capture)
        with Vedette(tmp_path, broker, yard=yard):
            messages.wait(lambda m: decoding(m) == "packets", 60)
            told = health(messages)
            assert told is not None
            assert told.streams["yard"].tracks == 1, "who stands still is still there"
            count = len(messages.of(TOPICS.snapshot("yard")))
            operator.ask("snapshot", stream="yard")
            messages.wait(lambda m: len(m.of(TOPICS.snapshot("yard"))) > count)


def test_a_picture_that_must_wait_for_a_key_frame_is_promised_for_then(tmp_path: Path, broker: Mosquitto) -> None:
    operator = Operator(broker)
    messages = operator.messages
    with PacketCamera(encode(pattern(40 * FPS), fps=FPS, options=OPTIONS), fps=FPS) as camera:
        yard = camera_of(person_model(tmp_path), camera.uri, capture={"stall_s": 20.0, "decode": "keyframes"})
        with Vedette(tmp_path, broker, yard=yard):
            messages.wait(lambda m: decoding(m) == "keyframes", 60)
            answer = operator.ask("snapshot", stream="yard")
            assert "next key frame" in answer["reason"]
            assert operator.ask("status")["streams"]["yard"]["decoding"] == "keyframes"
            count = len(messages.of(TOPICS.snapshot("yard")))
            messages.wait(lambda m: len(m.of(TOPICS.snapshot("yard"))) > count)
