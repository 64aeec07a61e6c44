"""Encoded cameras as the field has them: odd key frames, loss, jumps, other codecs; decoded on demand."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import pytest

from agent.capture.source import DecodeMode, Demand, FilteredPictures, open_source
from agent.capture.streams import FrameStream
from agent.capture.video import SoftwareDecoder
from agent.config import CaptureConfig
from agent.errors import SourceError
from agent.types import Frame, MediaPacket
from tests.support.packet_camera import PacketCamera, encode, pattern

FPS = 15
QUIET = Demand(DecodeMode.PACKETS)
FAST = {"preset": "ultrafast"}


def gop(frames: int) -> dict[str, str]:
    return {**FAST, "tune": "zerolatency", "x264-params": f"keyint={frames}:min-keyint={frames}:scenecut=0"}


@contextmanager
def watching(uri: str, demand: Demand = QUIET, **config: object) -> Iterator[tuple[FrameStream, list[str]]]:
    """A started stream that saves, and what it reports: sizes of so small pictures with noise tell little."""
    news: list[str] = []
    settings = CaptureConfig(stall_s=20.0, reopen_max_s=0.3, **{"decode": "saving", **config})  # type: ignore[arg-type]
    stream = FrameStream("yard", uri, settings, on_change=lambda state, why: news.append(f"{state}: {why}"))
    stream.set_demand(demand)
    stream.start()
    try:
        yield stream, news
    finally:
        stream.stop()


def frames_of(stream: FrameStream, seconds: float) -> list[Frame]:
    """The frames of some seconds."""
    found, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        if (frame := stream.take(0.1)) is not None:
            found.append(frame)
    return found


def until(condition: Callable[[], object], stream: FrameStream, seconds: float = 60.0) -> list[Frame]:
    """Take frames until something is so; return them."""
    found, deadline = [], time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, stream.stats
        if (frame := stream.take(0.05)) is not None:
            found.append(frame)
    return found


def in_order(frames: list[Frame]) -> bool:
    times = [frame.captured_ns for frame in frames]
    return times == sorted(set(times)) and all(frame.captured_ns <= frame.read_ns for frame in frames)


def test_while_nothing_happens_little_is_decoded_and_motion_has_everything_decoded() -> None:
    still, moving = pattern(12 * FPS), pattern(18 * FPS, moves=range(12 * FPS, 18 * FPS))[12 * FPS :]
    with (
        PacketCamera(encode(still + moving, options=gop(2 * FPS))) as camera,
        watching(camera.uri) as (stream, news),
    ):
        began = until(lambda: stream.stats.decoding == "packets", stream)
        assert len(began) > FPS, "everything is decoded at the beginning"
        before = stream.stats
        quiet = frames_of(stream, 4.0)
        assert len(quiet) <= 3
        assert stream.stats.undecoded > before.undecoded + 3 * FPS
        noticed = until(lambda: stream.stats.decoding == "full", stream)
        caught_up = frames_of(stream, 1.0)
        assert any(frame.late for frame in [*noticed, *caught_up])
        assert len(caught_up) > FPS / 2
        assert in_order([*began, *quiet, *noticed, *caught_up])
        assert news == []


def test_where_noise_could_hide_somebody_everything_is_decoded() -> None:
    with (
        PacketCamera(encode(pattern(12 * FPS), options=gop(2 * FPS))) as camera,
        watching(camera.uri, decode="auto") as (stream, _),
    ):
        frames_of(stream, 8.0)
        assert stream.stats.decoding == "full"
        assert len(frames_of(stream, 2.0)) > FPS


def test_a_demand_gives_the_pictures_that_were_left_encoded_at_once() -> None:
    with (
        PacketCamera(encode(pattern(20 * FPS), options=gop(20 * FPS))) as camera,
        watching(camera.uri) as (stream, _),
    ):
        begun = 0

        def has_kept_some() -> bool:
            nonlocal begun
            begun = stream.stats.undecoded if stream.stats.decoding == "full" else begun
            return stream.stats.undecoded >= begun + 2 * FPS

        until(has_kept_some, stream)
        stream.set_demand(Demand())
        frames = frames_of(stream, 2.0)
        late = [frame for frame in frames if frame.late]
        assert 1 <= len(late) <= 13, "the burst is thinned"
        assert frames[-1].captured_ns - frames[0].captured_ns > 1e9
        assert time.monotonic_ns() - frames[-1].captured_ns < 1e9
        assert in_order(frames)


def test_no_more_than_key_frames_is_decoded_as_long_as_a_consumer_says_so() -> None:
    units = encode(pattern(20 * FPS, moves=range(20 * FPS)), options=gop(FPS))
    with (
        PacketCamera(units) as camera,
        watching(camera.uri, Demand(most=DecodeMode.KEYFRAMES)) as (stream, _),
    ):
        until(lambda: stream.stats.decoding == "keyframes", stream)
        before, capped = stream.stats, frames_of(stream, 4.0)
        assert 2 <= len(capped) <= 6
        assert stream.stats.undecoded >= before.undecoded + 3 * (FPS - 1)
        stream.set_demand(Demand())
        frames = until(lambda: stream.stats.decoding == "full", stream) + frames_of(stream, 1.0)
        assert len(frames) > FPS / 2
        assert in_order([*capped, *frames])


@pytest.mark.parametrize(("apart", "are_inter_coded"), [(1, False), (FPS, True)])
def test_a_camera_tells_whether_it_gives_others_than_key_frames(apart: int, are_inter_coded: bool) -> None:
    with (
        PacketCamera(encode(pattern(4 * FPS), options=gop(apart))) as camera,
        watching(camera.uri) as (stream, _),
    ):
        until(lambda: stream.stats.decoded + stream.stats.undecoded >= 2 * FPS, stream)
        assert bool(stream.stats.inter_coded) == are_inter_coded


def test_key_frames_alone_and_everything_can_be_configured() -> None:
    units = encode(pattern(4 * FPS), options=gop(FPS))
    with PacketCamera(units) as camera:
        with watching(camera.uri, Demand(), decode="keyframes") as (stream, _):
            until(lambda: stream.stats.frames, stream)
            assert 2 <= len(frames_of(stream, 3.0)) <= 4
            assert stream.stats.decoding == "keyframes"
        with watching(camera.uri, QUIET, decode="full") as (stream, _):
            until(lambda: stream.stats.frames, stream)
            assert len(frames_of(stream, 5.0)) > 4 * FPS
            assert stream.stats.undecoded == 0


@pytest.mark.parametrize(
    ("codec", "name", "options"),
    [
        (
            "libx264",
            "H264",
            {**FAST, "x264-params": "keyint=30:bframes=3:b-pyramid=normal:open-gop=1:scenecut=0"},
        ),
        ("libx264", "H264", {**FAST, "x264-params": "keyint=30:min-keyint=30:bframes=2:scenecut=0"}),
        ("libx265", "H265", {**FAST, "x265-params": "keyint=30:bframes=3:open-gop=1:log-level=none"}),
        ("libx265", "H265", {**FAST, "tune": "zerolatency", "x265-params": "keyint=30:log-level=none"}),
        ("libx264", "H264", {**FAST, "tune": "zerolatency", "x264-params": "intra-refresh=1:keyint=30"}),
        ("libx264", "H264", {**FAST, "tune": "zerolatency", "x264-params": "keyint=1"}),
    ],
    ids=["open-gop", "b-frames", "h265-open-gop", "h265", "intra-refresh", "only-key-frames"],
)
def test_pictures_are_whole_and_in_order(codec: str, name: str, options: dict[str, str]) -> None:
    pictures = pattern(6 * FPS, moves=range(6 * FPS))
    units = encode(pictures, codec, options=options)
    with PacketCamera(units, codec=name) as camera, watching(camera.uri) as (stream, news):
        until(lambda: stream.stats.decoding == "full" and stream.stats.frames > FPS, stream)
        until(lambda: stream.stats.decoding in ("packets", "keyframes"), stream, 20)
        frames_of(stream, 3.0)
        stream.set_demand(Demand())
        frames = frames_of(stream, 2.0)
        assert news == []
    assert in_order(frames)
    assert len(frames) > FPS
    errors = [min(cv2.norm(frame.image, one, cv2.NORM_L1) / one.size for one in pictures) for frame in frames]
    assert max(errors) < 8, "no picture was decoded without the ones before it"


def test_a_camera_whose_key_frames_are_rare_is_still_looked_at() -> None:
    with (
        PacketCamera(encode(pattern(30 * FPS), options=gop(450))) as camera,
        watching(camera.uri) as (stream, news),
    ):
        until(lambda: stream.stats.decoding == "packets", stream)
        frames_of(stream, 1.0)
        seen = stream.stats.decoded
        until(lambda: stream.stats.decoded > seen, stream)
        assert news == []


def test_two_percent_of_lost_packets_end_nothing() -> None:
    random = np.random.default_rng(3)
    lost = set(np.flatnonzero(random.random(200_000) < 0.02).tolist())
    units = encode(pattern(8 * FPS, moves=range(8 * FPS)), options=gop(FPS))
    with (
        PacketCamera(units, lost=lambda number: number > 60 and number in lost) as camera,
        watching(camera.uri, Demand()) as (stream, news),
    ):
        frames = frames_of(stream, 8.0)
        assert len(frames) > 4 * FPS
        assert in_order(frames)
        assert news == []


@pytest.mark.parametrize("jump_s", [-3600.0, -2.0, 7200.0], ids=["back", "a-little-back", "ahead"])
def test_time_stamps_that_jump_bend_no_capture_time(jump_s: float) -> None:
    units = encode(pattern(4 * FPS, moves=range(4 * FPS)), options=gop(FPS))
    with (
        PacketCamera(units, shift_s=lambda number: 5000.0 + (jump_s if number > 3 * FPS else 0.0)) as camera,
        watching(camera.uri, Demand()) as (stream, news),
    ):
        frames = frames_of(stream, 7.0)
        assert len(frames) > 4 * FPS
        assert in_order(frames)
        assert max(frame.read_ns - frame.captured_ns for frame in frames) < 1.5e9
        assert news == []


def test_a_camera_that_sends_sound_alone_says_so() -> None:
    with PacketCamera([]) as camera, pytest.raises(SourceError, match="it has no video, only pcm_alaw"):
        open_source(camera.uri, stall_s=20.0)


def test_a_camera_that_changes_its_size_is_opened_again() -> None:
    small, large = (
        encode(pattern(2 * FPS), options=gop(FPS)),
        encode(pattern(6 * FPS, 640, 480), options=gop(FPS)),
    )
    with PacketCamera(small + large) as camera, watching(camera.uri, Demand()) as (stream, news):
        until(lambda: news, stream)
        assert "its pictures changed from 320x240 to 640x480" in news[0]
        until(lambda: len(news) == 2, stream)
        assert news[1].startswith("running")


def test_the_sound_of_a_camera_is_handed_on_in_packets() -> None:
    packets: list[MediaPacket] = []
    with PacketCamera(encode(pattern(2 * FPS), options=gop(FPS)), sound=True) as camera:
        stream = FrameStream("yard", camera.uri, CaptureConfig(), on_change=print, on_packet=packets.append)
        stream.set_demand(QUIET)
        stream.start()
        frames_of(stream, 3.0)
        stream.stop()
    kinds = {one.track.kind: one.track for one in packets}
    assert (kinds["sound"].codec, kinds["sound"].rate_hz, kinds["video"].codec) == ("pcm_alaw", 8000, "h264")
    assert b"avcC" in kinds["video"].header
    assert kinds["sound"].header == b"", "MP4 holds no A-law"


@pytest.fixture
def filtered(monkeypatch: pytest.MonkeyPatch) -> list[FilteredPictures]:
    """What decoders are told at each key frame that is decoded."""
    told: list[FilteredPictures] = []
    real = SoftwareDecoder.filter_pictures

    def recording(decoder: SoftwareDecoder, filtered: FilteredPictures) -> None:
        told.append(filtered)
        real(decoder, filtered)

    monkeypatch.setattr(SoftwareDecoder, "filter_pictures", recording)
    return told


@pytest.mark.parametrize(
    ("height", "decode", "demand", "expected"),
    [
        (720, "auto", Demand(), {"all", "keyframes"}),
        (720, "auto", Demand(exact=True), {"all"}),
        (720, "full", Demand(), {"all"}),
        (360, "auto", Demand(), {"all"}),
    ],
    ids=["large", "looked at closely", "everything asked for", "small"],
)
def test_the_loop_filter_is_left_out_between_key_frames_where_that_harms_nobody(
    height: int, decode: str, demand: Demand, expected: set[str], filtered: list[FilteredPictures]
) -> None:
    units = encode(pattern(30, 2 * height, height), options=gop(10))
    with PacketCamera(units) as camera, watching(camera.uri, demand, decode=decode) as (stream, news):
        frames = until(lambda: len(filtered) > 9, stream)
        assert set(filtered) == expected
        assert in_order(frames)
        assert news == []


def test_a_large_key_frame_that_the_gate_alone_looks_at_is_not_filtered(filtered: list[FilteredPictures]) -> None:
    with (
        PacketCamera(encode(pattern(30, 1440, 720), options=gop(10))) as camera,
        watching(camera.uri) as (stream, news),
    ):
        until(lambda: "none" in filtered, stream)
        stream.set_demand(Demand(exact=True))
        count = len(filtered)
        until(lambda: len(filtered) > count + 2, stream)
        assert set(filtered[count + 1 :]) == {"all"}, "a key frame on its way may have been decoded for the gate"
        assert news == []
