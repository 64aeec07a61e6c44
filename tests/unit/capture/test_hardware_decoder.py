from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from agent.capture import hardware_decoder as decoders
from agent.capture.hardware_decoder import (
    DecoderError,
    HardwareDecoder,
    PictureDecoder,
    open_decoder,
    usable_decoder,
)
from agent.capture.media import Media
from agent.capture.video import DecodedPicture, SoftwareDecoder
from tests.support.decoders import Tamper, failing, green, hanging, opener, right, silent

NAME = "h264_v4l2m2m"
OpenDecoder = Callable[[str, VideoStream], PictureDecoder]
Use = Callable[..., HardwareDecoder]
ALL = list(range(60))


def packets(media: Media) -> Iterator[Packet[Stream]]:
    """Packets of the clip, each with its number as opaque data."""
    for number, packet in enumerate(one for one in media.packets() if one.size):
        packet.opaque = ("came", number)
        yield packet


@pytest.fixture(autouse=True)
def nothing_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "_FAILED", set())
    monkeypatch.setattr(decoders, "_SILENT_PACKETS", 8)
    monkeypatch.setattr(decoders, "_SILENT_S", 0.0)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, media: Media) -> Use:
    """Make a decoder of the clip, with this hardware."""

    def make(hardware: OpenDecoder, name: str = NAME, answer_s: float = 5.0) -> HardwareDecoder:
        monkeypatch.setattr(decoders, "open_decoder", hardware)
        return HardwareDecoder(name, media.video, "rtsp://cam", SoftwareDecoder(media.video), answer_s)

    return make


def decoded(media: Media, own: HardwareDecoder) -> list[DecodedPicture]:
    """Every picture once, as a stream takes them: those that it had before are left out."""
    found: dict[int, DecodedPicture] = {}
    for packet in (*packets(media), None):
        for picture in own.decode(packet):
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


def test_a_decoder_that_is_right_decodes_everything(
    media: Media, use: Use, caplog: pytest.LogCaptureFixture
) -> None:
    opened: list[str] = []
    assert numbers(decoded(media, use(opener(right, opened)))) == ALL
    assert opened == [NAME]
    assert caplog.records == []


@pytest.mark.parametrize(
    ("tamper", "why"),
    [
        (failing(0), "Input/output error"),
        (failing(17), "Input/output error"),
        (silent(17), "no picture"),
        (green, "wrong"),
    ],
)
def test_software_goes_on_from_the_next_key_frame_where_a_decoder_fails(
    media: Media, use: Use, tamper: Tamper, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = decoded(media, use(opener(tamper)))
    assert numbers(found) == sorted(numbers(found))
    assert numbers(found)[-30:] == ALL[30:]
    assert not any(is_green(picture) for picture in found)
    assert [record.levelno for record in caplog.records] == [logging.WARNING], "told once"
    assert why in caplog.text
    assert "rtsp://cam" in caplog.text


def test_a_decoder_that_hangs_is_left_behind(media: Media, use: Use, caplog: pytest.LogCaptureFixture) -> None:
    released = threading.Event()
    try:
        found = decoded(media, use(opener(hanging(17, released)), answer_s=0.3))
    finally:
        released.set()
    assert numbers(found) == [*ALL[:17], *ALL[30:]]
    assert "does not answer" in caplog.text


def test_a_decoder_that_hangs_while_it_is_opened_is_left_behind(media: Media, use: Use) -> None:
    released = threading.Event()

    def never(name: str, track: object) -> Any:
        released.wait(60)
        raise DecoderError("too late")

    try:
        assert numbers(decoded(media, use(never, answer_s=0.1))) == ALL
    finally:
        released.set()


def test_a_decoder_that_failed_is_not_opened_again(media: Media, use: Use) -> None:
    own = use(opener(failing(0)))
    own.decode(next(packets(media)))
    assert own.name == ""
    assert usable_decoder(NAME, "h264") == ""


def test_auto_is_the_decoder_of_the_codec_where_there_may_be_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "_has_nodes", lambda: True)
    found = [usable_decoder("auto", codec) for codec in ("h264", "hevc", "mjpeg")]
    assert found == [NAME, "hevc_v4l2m2m", ""]
    monkeypatch.setattr(decoders, "_has_nodes", lambda: False)
    assert usable_decoder("auto", "h264") == ""
    assert usable_decoder(NAME, "h264") == NAME


def test_pictures_from_before_a_restart_are_left_out(media: Media, use: Use) -> None:
    """Drivers of V4L2 cannot be flushed: they give what they hold back later."""
    held: list[VideoFrame] = []

    def late(number: int, pictures: list[VideoFrame]) -> list[VideoFrame]:
        held.extend(pictures)
        return [held.pop(0)] if len(held) > 5 else []

    own, found = use(opener(late)), list[DecodedPicture]()
    for number, packet in enumerate(packets(media)):
        if number == 30:
            own.restart()
            found.clear()
        found += own.decode(packet)
    assert numbers(found) == list(range(30, 55))


def test_this_machine_refuses_what_it_does_not_have(
    media: Media, use: Use, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DecoderError, match="for hevc; the camera sends h264"):
        open_decoder("hevc_v4l2m2m", media.video)
    assert numbers(decoded(media, use(open_decoder, "hevc_v4l2m2m"))) == ALL
    assert "hevc_v4l2m2m: it is for hevc" in caplog.text
