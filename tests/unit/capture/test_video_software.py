from __future__ import annotations

import io
from collections.abc import Iterator
from typing import cast

import av
import cv2
import numpy as np
import pytest
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.stream import VideoStream

from agent.capture.media import leading_parameters, with_parameters
from agent.capture.video import SoftwareDecoder
from tests.support.h264 import without_order
from tests.support.packet_camera import encode, pattern

X264 = {"preset": "superfast", "tune": "zerolatency", "x264-params": "keyint=4:min-keyint=4:scenecut=0"}


@pytest.fixture
def track() -> Iterator[VideoStream]:
    """A track of H.264, whose key frames are four pictures apart."""
    content = b"".join(unit.data for unit in encode(pattern(12), "libx264", options=X264))
    with av.open(io.BytesIO(content), "r", format="h264") as container:
        yield container.streams.video[0]


def packets(track: VideoStream) -> list[Packet[Stream]]:
    container = cast(InputContainer, track.container)
    return [cast("Packet[Stream]", one) for one in container.demux(track) if one.size]


def decoded(decoder: SoftwareDecoder, some: list[Packet[Stream]]) -> list[np.ndarray]:
    return [picture.frame.to_ndarray(format="gray") for one in some for picture in decoder.decode(one)]


def test_a_decoder_that_was_restarted_decodes_the_same_from_a_key_frame_on(track: VideoStream) -> None:
    decoder, some = SoftwareDecoder(track), packets(track)
    whole = decoded(decoder, some)
    decoder.restart()
    again = decoded(decoder, some[4:8])
    assert len(whole) == 12
    assert all(np.array_equal(one, other) for one, other in zip(again, whole[4:8], strict=True))


def test_a_restarted_decoder_gives_no_picture_from_before(track: VideoStream) -> None:
    decoder, some = SoftwareDecoder(track), packets(track)
    decoded(decoder, some[:6])
    decoder.restart()
    assert decoder.decode(None) == []


def test_the_time_of_a_packet_goes_to_its_picture(track: VideoStream) -> None:
    decoder, some = SoftwareDecoder(track), packets(track)
    for number, packet in enumerate(some):
        packet.opaque = number
    found = [picture.opaque for packet in some for picture in decoder.decode(packet)]
    assert found == list(range(12))


def test_a_track_of_another_codec_is_decoded_after_a_restart(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("mjpeg") / "clip.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuvj420p"
        for picture in pattern(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        decoder, some = SoftwareDecoder(container.streams.video[0]), packets(container.streams.video[0])
        before = decoded(decoder, some)
        decoder.restart()
        assert np.array_equal(decoded(decoder, some)[0], before[0])


def test_a_picture_that_is_too_large_is_refused_before_it_is_decoded() -> None:
    small, large = (cv2.imencode(".jpg", np.zeros((side, side), np.uint8))[1].tobytes() for side in (64, 8000))
    with av.open(io.BytesIO(small * 5), "r", format="mjpeg") as container:
        decoder = SoftwareDecoder(container.streams.video[0])
        assert len(decoder.decode(Packet(small))) == 1
        assert decoder.decode(Packet(large)) == []
        assert len(decoder.decode(Packet(small))) == 1


def test_the_loop_filter_is_left_out_of_pictures_between_key_frames(track: VideoStream) -> None:
    decoder, some = SoftwareDecoder(track), packets(track)
    whole = decoded(decoder, some)
    decoder.filter_pictures("keyframes")
    thin = decoded(decoder, some)
    same = [np.array_equal(one, other) for one, other in zip(thin, whole, strict=True)]
    assert all(same[::4])
    assert not all(same)
    assert max(np.abs(one.astype(int) - other).mean() for one, other in zip(thin, whole, strict=True)) < 2.0


def test_the_loop_filter_is_applied_again_from_a_key_frame_on(track: VideoStream) -> None:
    decoder, some = SoftwareDecoder(track), packets(track)
    whole = decoded(decoder, some)
    decoder.filter_pictures("none")
    decoded(decoder, some[:4])
    decoder.filter_pictures("all")
    again = decoded(decoder, some[4:])
    assert all(np.array_equal(one, other) for one, other in zip(again, whole[4:], strict=True))


def test_a_decoder_that_forgets_begins_anew_with_the_newest_parameters(track: VideoStream) -> None:
    decoder, some = SoftwareDecoder(track), packets(track)
    whole = decoded(decoder, some)
    other = encode(pattern(4), "libx264", options={**X264, "x264-params": f"{X264['x264-params']}:cabac=0"})
    track.codec_context.extradata = leading_parameters("h264", other[0].data)
    decoder.restart()
    bare = [Packet(with_parameters("h264", unit.data, b"")) for unit in other]
    assert all(
        np.abs(one.astype(int) - before).mean() < 4.0
        for one, before in zip(decoded(decoder, bare), whole, strict=False)
    )
    assert len(decoded(decoder, bare)) == 4


@pytest.mark.parametrize("told", [True, False], ids=["told", "learned"])
def test_no_picture_is_missing_however_the_camera_orders_them(told: bool) -> None:
    order = "bframes=3:b-pyramid=normal:b-adapt=0:keyint=30:min-keyint=30:scenecut=0"
    units = encode(pattern(120), options={"preset": "veryfast", "x264-params": f"{order}:repeat-headers=1"})
    units = units if told else without_order(units)
    with av.open(io.BytesIO(b"".join(one.data for one in units)), "r", format="h264") as container:
        decoder, found = SoftwareDecoder(container.streams.video[0]), list[object]()
        for number, packet in enumerate(packets(container.streams.video[0])):
            packet.opaque = units[number].pts_s
            if number and units[number].keyframe:
                decoder.filter_pictures("keyframes" if number % 60 else "all")
            found += [one.opaque for one in decoder.decode(packet)]
        found += [one.opaque for one in decoder.decode(None)]
    assert found == sorted(one.pts_s for one in units)


@pytest.mark.parametrize("b_frames", [0, 2])
def test_a_filter_that_changes_with_each_group_loses_no_picture(b_frames: int) -> None:
    options = {"preset": "superfast", "x264-params": f"keyint=8:min-keyint=8:scenecut=0:bframes={b_frames}"}
    content = b"".join(unit.data for unit in encode(pattern(40), "libx264", options=options))
    with av.open(io.BytesIO(content), "r", format="h264") as container:
        track, found, groups = container.streams.video[0], list[int](), 0
        own = SoftwareDecoder(track)
        for number, packet in enumerate(cast("Iterator[Packet[Stream]]", container.demux(track))):
            packet.opaque = ("came", number)
            if packet.size and packet.is_keyframe:
                groups += 1
                own.filter_pictures("keyframes" if groups % 2 else "all")
            found += [
                cast("tuple[str, int]", one.opaque)[1] for one in own.decode(packet if packet.size else None)
            ]
    assert groups == 5
    assert sorted(found) == list(range(40))
