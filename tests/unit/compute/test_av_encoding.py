"""Encoders for what cannot be copied: pictures as H.264, sound as AAC."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.compute.av_encoding import PictureEncoder, SoundTranscoder, crf
from agent.errors import BackendError
from agent.types import Frame, MediaPacket, MediaTrack
from tests.support.clip_pictures import SECOND, image

SOFTWARE = ("libx264",)


def frame(number: int, at_s: float, width: int = 64, height: int = 48) -> Frame:
    return Frame(image(number, width, height), "front", number, round(at_s * SECOND), datetime.now(UTC))


def encoded(encoder: PictureEncoder, *frames: Frame) -> list[MediaPacket]:
    return [packet for one in frames for packet in encoder.encode(one)]


def test_each_frame_is_a_packet_at_once_with_its_own_time() -> None:
    times = [0.0, 0.2, 0.41, 0.9, 1.0]
    packets = encoded(PictureEncoder(1280, 75, 5.0, SOFTWARE), *(frame(n, at) for n, at in enumerate(times)))
    assert [packet.captured_ns for packet in packets] == [round(at * SECOND) for at in times]
    assert [packet.pts for packet in packets] == [round(at * 90000) for at in times]


def test_a_key_frame_comes_every_two_seconds_whatever_the_rate() -> None:
    packets = encoded(PictureEncoder(1280, 75, 5.0, SOFTWARE), *(frame(n, n / 4) for n in range(20)))
    assert [number for number, packet in enumerate(packets) if packet.keyframe] == [0, 8, 16]


@given(st.integers(16, 400), st.integers(16, 300), st.integers(64, 300))
@settings(max_examples=20, deadline=None)
def test_any_size_is_encoded_with_even_sides_and_no_wider_than_wanted(width: int, height: int, most: int) -> None:
    (packet,) = encoded(PictureEncoder(most, 75, 5.0, SOFTWARE), frame(0, 0.0, width, height))
    track = packet.track
    assert track.width <= most
    assert track.width % 2 == track.height % 2 == 0
    assert abs(track.height - height * min(1.0, most / width)) <= 2


def test_a_frame_of_another_size_is_another_track() -> None:
    first, second = encoded(PictureEncoder(1280, 75, 5.0, SOFTWARE), frame(0, 0.0), frame(1, 0.2, 128, 96))
    assert first.track is not second.track
    assert (second.keyframe, second.track.width) == (True, 128)


def test_a_board_without_its_own_encoder_uses_the_software() -> None:
    encoder = PictureEncoder(1280, 75, 5.0, ("h264_v4l2m2m", "libx264"))
    assert len(encoded(encoder, frame(0, 0.0))) == 1
    assert encoder.name == "libx264"


def test_without_any_encoder_the_reason_is_told() -> None:
    with pytest.raises(BackendError, match=r"pictures cannot be encoded as H\.264: no-such-encoder"):
        PictureEncoder(1280, 75, 5.0, ("no-such-encoder",)).encode(frame(0, 0.0))


def test_a_higher_quality_is_a_lower_factor() -> None:
    assert [crf(quality) for quality in (1, 50, 75, 100)] == [51, 33, 24, 15]


G711 = MediaTrack("sound", "pcm_alaw", (1, 8000), b"", rate_hz=8000, channels=1)


def test_the_time_of_sound_is_kept_while_it_becomes_aac() -> None:
    transcoder, made = SoundTranscoder(G711), list[MediaPacket]()
    for number in range(100):
        at = 80_000 + number * 160
        made += transcoder.transcode(MediaPacket(G711, b"\xd5" * 160, at, at, 160, True, number * 20_000_000))
    assert transcoder.track.codec == "aac"
    # A piece of 1,024 samples; the first is the encoder's own delay.
    assert [packet.pts for packet in made] == [80_000 + (number - 1) * 1024 for number in range(len(made))]
    assert len(made) >= 14


def test_sound_that_cannot_be_decoded_is_refused() -> None:
    with pytest.raises(BackendError, match="sound as g999 cannot be recorded"):
        SoundTranscoder(MediaTrack("sound", "g999", (1, 8000), b"", rate_hz=8000, channels=1))
