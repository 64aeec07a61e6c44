"""Clips and recordings of network cameras by the daemon as users run it: packets are copied, with sound."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import av
import pytest

from agent.storage.clips.store import clips_in
from tests.support.browser import play_in_browser
from tests.support.doubles import person_model
from tests.support.mosquitto import Mosquitto
from tests.support.packet_camera import PacketCamera, Unit, encode, pattern
from tests.support.publishing import wait_for
from tests.support.received import Messages
from tests.support.running import Vedette, camera, hear
from tests.system.test_clips import clips, one_clip

FPS = 15
SOON = {"before_s": 1.0, "after_s": 1.0, "max_s": 4.0}
EVERY_SECOND = {
    "preset": "ultrafast",
    "tune": "zerolatency",
    "x264-params": f"keyint={FPS}:min-keyint={FPS}:scenecut=0",
}
CAPTURE = {"stall_s": 20.0, "reopen_max_s": 0.5, "decode": "full"}


@pytest.fixture
def messages(broker: Mosquitto) -> Messages:
    return broker.subscribe("vedette/#")


@pytest.fixture(scope="module")
def units() -> list[Unit]:
    """Ten seconds, with a key frame every second."""
    moving = pattern(10 * FPS, moves=range(10 * FPS))
    return encode(moving, options=EVERY_SECOND)


@pytest.fixture
def yard(units: list[Unit]) -> Iterator[PacketCamera]:
    with PacketCamera(units, sound=True) as served:
        yield served


def codecs(path: Path | str) -> list[str]:
    with av.open(str(path)) as file:
        return [stream.codec_context.name for stream in file.streams]


def pictures(path: Path | str) -> int:
    with av.open(str(path)) as file:
        return sum(1 for _ in file.decode(video=0))


def test_a_camera_is_recorded_with_its_sound_and_a_browser_plays_it(
    tmp_path: Path, broker: Mosquitto, messages: Messages, yard: PacketCamera
) -> None:
    front = camera(person_model(tmp_path), yard.uri, clips=SOON, capture=CAPTURE)
    with Vedette(tmp_path, broker, front=front) as vedette:
        told = one_clip(messages)
        vedette.wait_said("clips: h264 of 320x240 is copied")
    assert codecs(told.path) == ["h264", "aac"]
    assert told.frames == pictures(told.path) == pytest.approx(told.duration_s * FPS, abs=3)
    (shown,) = play_in_browser([Path(told.path)])
    assert shown.error == ""
    assert shown.length_s == pytest.approx(told.duration_s, abs=0.5)
    assert shown.at_s == 1.0


def test_a_clip_of_a_camera_outlives_the_daemon(
    tmp_path: Path, broker: Mosquitto, messages: Messages, yard: PacketCamera
) -> None:
    front = camera(person_model(tmp_path), yard.uri, clips={**SOON, "max_s": 60.0}, capture=CAPTURE)
    with Vedette(tmp_path, broker, front=front) as vedette:
        folder = vedette.state / "clips" / "front"
        wait_for(lambda: [part for part in folder.glob(".*.part") if part.stat().st_size > 10_000])
        time.sleep(2.5)
        vedette.end(signal.SIGKILL)
        (part,) = folder.glob(".*.part")
        before = pictures(part)
        vedette.config["streams"]["front"]["clips"] = {"events": False}
        vedette.start()
        told = one_clip(messages)
        wait_for(lambda: not list(folder.glob(".*.part")))
    assert told.repaired
    assert pictures(told.path) == told.frames == before > 2 * FPS
    assert len(clips(messages)) == 1


def test_a_second_source_may_come_later_and_is_recorded_instead(
    tmp_path: Path, broker: Mosquitto, messages: Messages, units: list[Unit]
) -> None:
    main = encode(pattern(30 * FPS, 640, 480), options=EVERY_SECOND)
    late = PacketCamera(main)
    late.__exit__(None, None, None)  # its address, where nobody listens
    with PacketCamera(units) as small:
        clip = {**SOON, "max_s": 2.0, "record_source": late.uri}
        front = camera(person_model(tmp_path), small.uri, clips=clip, capture=CAPTURE)
        with Vedette(tmp_path, broker, front=front) as vedette:
            hear(messages, 10)
            vedette.wait_said("record_source: lost: rtsp://127.0.0.1")
            with PacketCamera(main, port=late.port) as _:
                vedette.wait_said("record_source: running: back after")
                vedette.config["streams"]["front"]["track"]["update_every_s"] = 0.2
                vedette.reload()
                told = one_clip(messages)
            assert len(vedette.said("record_source: lost")) == 1
            assert not vedette.said("stream front: lost")
    with av.open(told.path) as file:
        assert (file.streams.video[0].width, file.streams.video[0].height) == (640, 480)


def test_a_continuous_recording_goes_on_while_the_source_that_is_looked_at_is_away(
    tmp_path: Path, broker: Mosquitto, units: list[Unit]
) -> None:
    gone = PacketCamera(units)
    gone.__exit__(None, None, None)
    with PacketCamera(units, sound=True) as main:
        clip = {"events": False, "record": "continuous", "segment_s": 5.0, "record_source": main.uri}
        front = camera(person_model(tmp_path), gone.uri, clips=clip, capture=CAPTURE)
        with Vedette(tmp_path, broker, front=front) as vedette:
            vedette.wait_said("stream front: lost")
            wait_for(lambda: len(clips_in(vedette.state / "clips")) >= 2)
            vedette.end()
            pieces = clips_in(vedette.state / "clips")
            assert len(vedette.said("stream front: lost")) == 1
            assert not vedette.said("record_source: lost")
    assert all(entry.continuous for entry in pieces)
    assert [pictures(entry.path) for entry in pieces][:2] == [5 * FPS, 5 * FPS]
    assert codecs(pieces[0].path) == ["h264", "aac"]


def test_a_second_source_whose_packets_cannot_be_copied_is_refused_by_its_key(
    tmp_path: Path, broker: Mosquitto
) -> None:
    front = camera(person_model(tmp_path), clips={"record_source": "v4l2:/dev/video7"})
    with Vedette(tmp_path, broker, front=front) as vedette:
        said = vedette.wait_said("record_source")
    assert "streams.front.clips.record_source: expected a camera on the network" in said
