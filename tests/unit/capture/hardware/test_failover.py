from __future__ import annotations

import io
import logging
import threading
from collections.abc import Iterator
from typing import Any, cast

import av
import pytest
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame

from agent.capture.hardware.decoders import DecoderError, open_decoder
from agent.capture.hardware.failover import (
    DecodedPicture,
    DecoderRecord,
    FailoverDecoder,
    FailoverLimits,
    OpenDecoder,
)
from agent.capture.media import Media
from tests.support.decoders import Tamper, failing, green, hanging, opener, right, silent
from tests.support.packet_camera import encode, pattern

NAME = "h264_v4l2m2m"
ALL = list(range(60))


def packets(media: Media) -> Iterator[Packet[Stream]]:
    """Packets of the clip, each with its number as opaque data."""
    for number, packet in enumerate(one for one in media.packets() if one.size):
        packet.opaque = ("came", number)
        yield packet


def decoder(
    media: Media, hardware: OpenDecoder, record: DecoderRecord | None = None, **limits: Any
) -> FailoverDecoder:
    settings = FailoverLimits(**{"answer_s": 5.0, "silent_s": 0.0, **limits})
    return FailoverDecoder(
        media.video, "rtsp://cam", open_hardware=hardware, limits=settings, record=record or DecoderRecord()
    )


def decoded(media: Media, own: FailoverDecoder, name: str = NAME) -> list[DecodedPicture]:
    """Every picture once, as a stream takes them: those that it had before are left out."""
    found: dict[int, DecodedPicture] = {}
    for packet in packets(media):
        if packet.is_keyframe:
            own.prefer(name)
        for picture in own.decode(packet):
            found.setdefault(_number(picture), picture)
    for picture in own.decode(None):
        found.setdefault(_number(picture), picture)
    own.close()
    return list(found.values())


def _number(picture: DecodedPicture) -> int:
    what, number = cast("tuple[str, int]", picture.opaque)
    assert what == "came"
    return number


def numbers(pictures: list[DecodedPicture]) -> list[int]:
    return [_number(picture) for picture in pictures]


def is_green(picture: DecodedPicture) -> bool:
    return not any(bytes(picture.frame.planes[0]))


def test_a_decoder_that_is_right_decodes_everything(media: Media, caplog: pytest.LogCaptureFixture) -> None:
    opened: list[str] = []
    assert numbers(decoded(media, decoder(media, opener(right, opened)))) == ALL
    assert opened == [NAME]
    assert caplog.records == []


def test_without_a_preferred_decoder_software_decodes(media: Media) -> None:
    opened: list[str] = []
    assert numbers(decoded(media, decoder(media, opener(right, opened)), name="")) == ALL
    assert opened == []


@pytest.mark.parametrize(
    ("tamper", "why"),
    [
        (failing(0), "Input/output error"),
        (failing(17), "Input/output error"),
        (silent(17), "no picture"),
        (green, "wrong"),
    ],
)
def test_software_goes_on_without_a_gap_where_a_decoder_fails(
    media: Media, tamper: Tamper, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = decoded(media, decoder(media, opener(tamper), silent_packets=8))
    assert sorted(numbers(found)) == ALL
    assert not any(is_green(picture) for picture in found)
    assert [record.levelno for record in caplog.records] == [logging.WARNING], "told once"
    assert why in caplog.text
    assert "rtsp://cam" in caplog.text


def test_a_decoder_that_hangs_is_left_behind(media: Media, caplog: pytest.LogCaptureFixture) -> None:
    released = threading.Event()
    try:
        found = decoded(media, decoder(media, opener(hanging(17, released)), answer_s=0.3))
    finally:
        released.set()
    assert numbers(found) == ALL
    assert "does not answer" in caplog.text


def test_a_decoder_that_hangs_while_it_is_opened_is_left_behind(media: Media) -> None:
    released = threading.Event()

    def never(name: str, track: object) -> Any:
        released.wait(60)
        raise DecoderError("too late")

    try:
        assert numbers(decoded(media, decoder(media, never, answer_s=0.1))) == ALL
    finally:
        released.set()


def test_a_decoder_that_failed_is_tried_at_the_next_opening_and_not_for_ever(media: Media) -> None:
    record, opened = DecoderRecord(), list[str]()
    for _ in range(5):
        own = decoder(media, opener(failing(0), opened), record)
        packet = next(packets(media))
        for _ in range(2):  # two key frames
            own.prefer(NAME)
            own.decode(packet)
    assert len(opened) == 3


def test_no_further_decoder_is_opened_while_two_hang(media: Media) -> None:
    record, released, opened = DecoderRecord(), threading.Event(), list[str]()
    try:
        for name in (NAME, "drm", "other"):
            own = decoder(media, opener(hanging(0, released), opened), record, answer_s=0.1)
            own.prefer(name)
            own.decode(next(packets(media)))
        assert opened == [NAME, "drm"]
    finally:
        released.set()


def test_a_key_frame_alone_is_decoded_in_software(media: Media) -> None:
    opened: list[str] = []
    own = decoder(media, opener(right, opened))
    own.restart()
    assert numbers(own.decode_alone(next(packets(media)))) == [0]
    assert opened == []


def test_pictures_from_before_a_restart_are_left_out(media: Media) -> None:
    """Drivers of V4L2 cannot be flushed: they give what they hold back later."""
    held: list[VideoFrame] = []

    def late(number: int, pictures: list[VideoFrame]) -> list[VideoFrame]:
        held.extend(pictures)
        return [held.pop(0)] if len(held) > 5 else []

    own, found = decoder(media, opener(late)), list[DecodedPicture]()
    for number, packet in enumerate(packets(media)):
        if number == 30:
            own.restart()
            found.clear()
        if packet.is_keyframe:
            own.prefer(NAME)
        found += own.decode(packet)
    assert numbers(found) == list(range(30, 55))


def test_this_machine_refuses_what_it_does_not_have(media: Media, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DecoderError, match="for hevc; the camera sends h264"):
        open_decoder("hevc_v4l2m2m", media.video)
    assert numbers(decoded(media, decoder(media, open_decoder), name="hevc_v4l2m2m")) == ALL
    assert "hevc_v4l2m2m: it is for hevc" in caplog.text


@pytest.mark.parametrize("b_frames", [0, 2])
def test_a_filter_that_changes_with_each_group_loses_no_picture(b_frames: int) -> None:
    options = {"preset": "superfast", "x264-params": f"keyint=8:min-keyint=8:scenecut=0:bframes={b_frames}"}
    content = b"".join(unit.data for unit in encode(pattern(40), "libx264", options=options))
    with av.open(io.BytesIO(content), "r", format="h264") as container:
        track, found, groups = container.streams.video[0], list[int](), 0
        own = FailoverDecoder(track, "rtsp://cam")
        for number, packet in enumerate(cast("Iterator[Packet[Stream]]", container.demux(track))):
            packet.opaque = ("came", number)
            if packet.size and packet.is_keyframe:
                groups += 1
                own.filter_pictures("keyframes" if groups % 2 else "all")
            found += numbers(own.decode(packet if packet.size else None))
    assert groups == 5
    assert sorted(found) == list(range(40))


def test_a_decoder_is_opened_anew_with_parameters_that_came_meanwhile(media: Media) -> None:
    opened: list[str] = []
    own, first = decoder(media, opener(right, opened)), next(packets(media))
    for _ in range(2):
        own.prefer(NAME)
        own.decode(first)
        own.restart()
    assert opened == [NAME]
    context = media.video.codec_context
    context.extradata = bytes(context.extradata or b"") + b"\0"
    own.restart()
    own.prefer(NAME)
    assert own.decode(first)
    assert opened == [NAME, NAME]
    own.close()
