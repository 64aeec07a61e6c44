"""Packets of cameras on the network whose parameters come late or change."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import pairwise

import av
import pytest
from msgspec.structs import replace

from agent.capture.media import _parameter_units
from agent.capture.streams import PacketStream
from agent.config import CaptureConfig
from agent.storage.clips.file import Mp4Muxer
from agent.storage.clips.packets import PacketRing
from agent.types import MediaPacket
from tests.support.packet_camera import PacketCamera, Unit, _payloads, encode, pattern, without_parameters
from tests.support.publishing import wait_for

FPS = 15
OPTIONS = {"preset": "ultrafast", "tune": "zerolatency", "x264-params": "keyint=15:min-keyint=15:scenecut=0"}


@pytest.fixture(scope="module")
def units() -> list[Unit]:
    return encode(pattern(4 * FPS), options=OPTIONS)


@contextmanager
def recorded(uri: str) -> Iterator[tuple[list[MediaPacket], list[str]]]:
    """Packets of video that come from a camera, and its outages."""
    found: list[MediaPacket] = []
    news: list[str] = []
    config = CaptureConfig(stall_s=20.0, reopen_max_s=0.3)
    stream = PacketStream(
        "yard", uri, config, on_packet=found.append, on_change=lambda state, why: news.append(state)
    )
    stream.start()
    try:
        yield found, news
    finally:
        stream.stop()


class DroppingCamera(PacketCamera):
    """Closes each connection after a second."""

    def _play(self, connection: socket.socket, channels: Mapping[str, int]) -> None:
        threading.Timer(1.0, self._drop, (connection,)).start()
        super()._play(connection, channels)

    @staticmethod
    def _drop(connection: socket.socket) -> None:
        with suppress(OSError):  # the viewer has gone
            connection.shutdown(socket.SHUT_RDWR)


def test_a_camera_that_drops_each_connection_is_one_outage(units: list[Unit]) -> None:
    with DroppingCamera(units) as camera, recorded(camera.uri) as (found, news):
        wait_for(lambda: len({id(packet.track) for packet in found}) >= 3)
    assert news in (["lost"], ["running", "lost"])


def test_a_size_that_changes_within_a_connection_makes_another_track(units: list[Unit]) -> None:
    larger = [replace(u, pts_s=u.pts_s + 4) for u in encode(pattern(4 * FPS, 640, 480), options=OPTIONS)]
    with PacketCamera([*units, *larger]) as camera, recorded(camera.uri) as (found, news):
        wait_for(lambda: any(packet.track.width == 640 for packet in found))
        tracks = {id(packet.track): packet.track for packet in found}
        assert [(one.width, one.height) for one in tracks.values()] == [(320, 240), (640, 480)]
        assert all(one.header for one in tracks.values())
        assert len({one.time_base for one in tracks.values()}) == 1
        first = next(packet for packet in found if packet.track.width == 640)
        assert first.keyframe
        assert news == []


def test_a_camera_whose_parameters_come_late_has_its_size_from_the_first_key_frame(units: list[Unit]) -> None:
    late = [unit for unit in units if not unit.keyframe]
    shown = [replace(unit, pts_s=number / FPS) for number, unit in enumerate([*late, *units])]
    with PacketCamera(shown) as camera, recorded(camera.uri) as (found, _):
        wait_for(lambda: any(packet.keyframe for packet in found))
        first = next(packet for packet in found if packet.keyframe)
        assert (first.track.width, first.track.height) == (320, 240)
        assert first.track.header
        before = found[: found.index(first)]
        # A busy machine may open the stream when the key frame has already come.
        known = 320, first.track.header
        assert {(packet.track.width, packet.track.header) for packet in before} <= {(0, b""), known}


def sets(key_frame: bytes) -> list[bytes]:
    """The SPS and PPS of a key frame of H.264."""
    return _parameter_units("h264", key_frame)


def test_parameters_are_found_in_a_key_frame_alone(units: list[Unit]) -> None:
    assert [one[0] & 0x1F for one in sets(units[0].data)] == [7, 8]
    assert sets(units[1].data) == sets(b"") == sets(b"\0\0\1\x65slice" + units[0].data) == []


def test_parameters_of_pictures_that_change_alone_make_another_track(units: list[Unit]) -> None:
    other = encode(
        pattern(4 * FPS), options={**OPTIONS, "x264-params": f"{OPTIONS['x264-params']}:chroma-qp-offset=3"}
    )
    changed = [replace(unit, pts_s=unit.pts_s + 4) for unit in other]
    before, after = (sets(one[0].data) for one in (units, changed))
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)
    with PacketCamera([*units, *changed]) as camera, recorded(camera.uri) as (found, _):
        wait_for(lambda: len({packet.track.header for packet in found}) == 2)
        headers = list(dict.fromkeys(packet.track.header for packet in found))
        assert [one[1] in header for one, header in zip((before, after), headers, strict=True)] == [True, True]


def test_parameters_that_are_repeated_are_of_the_same_track(units: list[Unit]) -> None:
    with PacketCamera(units) as camera, recorded(camera.uri) as (found, _):
        wait_for(lambda: sum(packet.keyframe for packet in found) > 6)
        assert len({id(packet.track) for packet in found}) == 1


def starts_of_key_frames(units: list[Unit]) -> list[int]:
    """Return the numbers of the RTP packets with which the slices of key frames begin."""
    payloads = [payload for unit in units for payload, _ in _payloads(unit.data, "H264")]
    return [number for number, one in enumerate(payloads) if one[0] & 0x1F == 28 and one[1] == 0x85]


def parameters_of(header: bytes) -> bytes:
    """Return the box of an MP4 header that holds the parameters of H.264; empty: there is no header."""
    at = header.find(b"avcC") - 4
    return header[at : at + int.from_bytes(header[at : at + 4])] if header else b""


@pytest.mark.parametrize("before", [0, 1, 2], ids=["to the SEI", "to the PPS", "to the SPS"])
@pytest.mark.parametrize("late", [False, True], ids=["at once", "later"])
def test_a_damaged_first_key_frame_gives_no_parameters(units: list[Unit], before: int, late: bool) -> None:
    if late:
        shown = [*(unit for unit in units[:FPS] if not unit.keyframe), *units]
        units = [replace(unit, pts_s=number / FPS) for number, unit in enumerate(shown)]
    start = starts_of_key_frames(units)[0]
    with PacketCamera(units) as camera, recorded(camera.uri) as (found, _):
        wait_for(lambda: any(packet.keyframe for packet in found))
        whole = parameters_of(next(packet.track.header for packet in found if packet.keyframe))
    lost = range(start - before, start + 1)
    with PacketCamera(units, lost=lambda number: number in lost) as camera, recorded(camera.uri) as (found, _):
        wait_for(lambda: len({packet.data for packet in found if packet.keyframe}) > 2)
        tracks = {id(packet.track): packet.track for packet in found if packet.keyframe}
    assert {parameters_of(one.header) for one in tracks.values()} <= {b"", whole}
    assert [bool(one.header) for one in tracks.values()][-1]
    assert sum(bool(one.header) for one in tracks.values()) == 1, "a clip would be cut"


def test_a_camera_none_of_whose_key_frames_can_be_decoded_alone_has_parameters_when_they_come_again() -> None:
    options = {**OPTIONS, "x264-params": "intra-refresh=1:keyint=15"}
    units = encode(pattern(4 * FPS), options=options)
    shown = [replace(unit, pts_s=number / FPS) for number, unit in enumerate(units[FPS:])]
    with PacketCamera(shown) as camera, recorded(camera.uri) as (found, _):
        wait_for(lambda: any(packet.keyframe and packet.track.header for packet in found))


@pytest.mark.parametrize("of_parameters", [0, 1], ids=["to the PPS", "to the SPS"])
def test_the_rest_of_a_slice_that_is_appended_to_parameters_is_no_change(
    units: list[Unit], of_parameters: int
) -> None:
    start = starts_of_key_frames(units)[2]
    lost = range(start - of_parameters, start + 1)
    with PacketCamera(units, lost=lambda number: number in lost) as camera, recorded(camera.uri) as (found, _):
        wait_for(lambda: sum(packet.keyframe for packet in found) > 5)
        known = set(sets(units[0].data))
        key_frames = [set(sets(packet.data)) for packet in found if packet.keyframe]
        assert any(not one <= known for one in key_frames), "the loss has damaged none"
        assert len({id(packet.track) for packet in found}) == 1


def test_a_pause_is_no_jump_of_time_stamps() -> None:
    pictures = encode(pattern(4 * FPS, 160, 128), options={**OPTIONS, "x264-params": "keyint=300:scenecut=0"})
    pause = [Unit(b"", False, 0.0)] * (7 * FPS)
    after = [replace(unit, pts_s=unit.pts_s + 7) for unit in pictures[FPS:]]
    ring = PacketRing(60.0, 1 << 25)
    with PacketCamera([*pictures[:FPS], *pause, *after]) as camera, recorded(camera.uri) as (found, _):
        wait_for(lambda: len(found) > 2 * FPS)
        for packet in found[: 2 * FPS]:
            ring.add(packet)
    stamps = [packet.pts_ns for packet in ring.between(0, 1 << 62)]
    assert len(stamps) == 2 * FPS
    assert ring.unusable == 0
    steps = sorted(after - before for before, after in pairwise(stamps))
    assert steps[-1] > 6_500_000_000 > 500_000_000 > steps[-2]


def decoded_clip(packets: list[MediaPacket]) -> int:
    """Return how many pictures of a clip that begins with the newest key frame but one can be decoded."""
    ring = PacketRing(60.0, 1 << 25)
    for packet in packets:
        ring.add(packet)
    found = ring.between(0, 1 << 62)
    begin = [number for number, one in enumerate(found) if one.opens_group][-2]
    muxer = Mp4Muxer(found[begin].packet.track, None, found[begin])
    clip = io.BytesIO(muxer.head + muxer.add(found[begin : begin + FPS], last=True))
    with av.open(clip, "r", format="mp4") as file:
        file.streams.video[0].codec_context.options = {"err_detect": "explode"}
        return sum(1 for _ in file.decode(video=0))


@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "with a damaged key frame"])
def test_parameters_that_change_and_come_once_are_those_of_every_later_clip(*, damaged: bool) -> None:
    before, after = (
        encode(
            pattern(8 * FPS),
            options={**OPTIONS, "x264-params": f"{OPTIONS['x264-params']}:weightp=1:cabac={cabac}"},
        )
        for cabac in (1, 0)
    )
    assert sets(before[0].data)[0] == sets(after[0].data)[0]
    before, after = before[: 2 * FPS], [replace(unit, pts_s=unit.pts_s + 2) for unit in after]
    units = [
        unit if number == 0 else without_parameters(unit)
        for part in (before, after)
        for number, unit in enumerate(part)
    ]
    lost = starts_of_key_frames(units)[2] + 1 if damaged else -1
    with PacketCamera(units, lost=lambda number: number == lost) as camera, recorded(camera.uri) as (found, _):
        wait_for(lambda: sum(packet.keyframe for packet in found) > 5)
        packets = found[:]
    assert decoded_clip(packets) == FPS
    assert len({packet.track.header for packet in packets}) == 2
