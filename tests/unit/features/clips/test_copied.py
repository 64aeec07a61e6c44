"""Packets of cameras on their way into clips."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import av
import msgspec
import pytest

from agent.capture.arrivals import Liveness
from agent.capture.supervisor import CaptureStats
from agent.config import CaptureConfig, ClipsConfig, StorageConfig, StreamConfig
from agent.errors import CommandError
from agent.features.clips.part import StreamClips, open_record_source
from agent.storage.clips.recorder import Recorder
from agent.storage.clips.store import clips_in
from agent.types import Clip, Event, Frame, MediaPacket
from tests.support.clip_pictures import SECOND, image
from tests.support.media import make_video, packets_of
from tests.support.packet_camera import PacketCamera, Unit, encode, pattern
from tests.support.publishing import wait_for
from tests.unit.features.clips.test_rules import event
from tests.unit.storage.clips.test_file_mp4 import loud_at, shown_in

MAIN = {"record_source": "rtsp://camera/main"}


class Camera:
    """A camera whose packets come with every picture, and the clips of it."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.clips: list[Clip] = []
        self.folder, self.taken = folder, 0
        storage = StorageConfig(clips_keep_free_bytes=0)
        self.recorder = Recorder(folder, storage, self.clips.append, turn_s=0.02)
        clips = ClipsConfig(before_s=1.0, after_s=1.0, max_s=10.0, **options.pop("clips", {}))
        source, config = options.pop("source", "rtsp://camera"), options
        self.stream = StreamClips("front", StreamConfig(source, "nanodet", clips=clips, **config), self.recorder)

    def play(self, packets: Sequence[MediaPacket], events: Mapping[float, Sequence[Event]]) -> None:
        """Give it packets, and a frame for each picture; events come with the frame of that time, s."""
        due, takes = dict(events), self.stream.on_packet
        for packet in packets:
            if takes is not None:
                takes(packet)
            if packet.track.kind == "video":
                now = [key for key in due if packet.captured_ns >= key * SECOND]
                with_it = [one for key in now for one in due.pop(key)]
                frame = Frame(image(0), "front", 0, packet.captured_ns, datetime.now(UTC))
                self.taken += self.stream.add_frame(frame, with_it)

    def clip(self, number: int = 0) -> Clip:
        wait_for(lambda: len(self.clips) > number)
        return self.clips[number]

    def close(self) -> None:
        self.stream.close()
        self.recorder.close(5.0)


@pytest.fixture
def camera(tmp_path: Path) -> Iterator[Camera]:
    made = Camera(tmp_path / "clips")
    yield made
    made.close()


AROUND = {5.0: [event("new")], 6.0: [event("end")]}
"""An event in the fifth second, of a file whose first packet comes at 1 s."""


def test_a_clip_has_the_packets_of_the_time_around_an_event_and_no_picture_is_encoded(
    camera: Camera, tmp_path: Path
) -> None:
    camera.play(packets_of(make_video(tmp_path / "a.mp4", 9.0, sound="aac", between=2)), AROUND)
    clip = camera.clip()
    shown = shown_in(Path(clip.path))
    assert shown[0][0] == 75 % 60, "the key frame a second before the event"
    # At the end a picture is there, and those between it and the one before it have not come yet.
    numbers = [number for number, _ in shown][:-2]
    assert numbers == [number % 60 for number in range(75, 75 + len(numbers))]
    assert clip.duration_s == pytest.approx(3.0, abs=0.2)
    assert loud_at(Path(clip.path))
    assert camera.taken == 0


@pytest.mark.parametrize("sound", ["pcm_alaw", "pcm_mulaw"])
def test_sound_that_browsers_do_not_play_becomes_aac_and_stays_in_step(
    camera: Camera, tmp_path: Path, sound: str
) -> None:
    camera.play(packets_of(make_video(tmp_path / "a.mov", 9.0, sound=sound)), AROUND)
    path = Path(camera.clip().path)
    with av.open(str(path)) as file:
        assert file.streams.audio[0].codec_context.name == "aac"
    first = shown_in(path)[0][1]
    onsets = [
        at for (_, before), (at, loud) in zip(loud_at(path), loud_at(path)[1:], strict=False) if loud > before
    ]
    assert onsets
    # A piece of AAC at 8 kHz lasts 0.128 s.
    assert all(min((at - first) % 1.0, 1.0 - (at - first) % 1.0) < 0.13 for at in onsets)


def test_aac_with_headers_of_mpeg_ts_is_recorded(camera: Camera, tmp_path: Path) -> None:
    camera.play(packets_of(make_video(tmp_path / "a.ts", 9.0, sound="aac")), AROUND)
    path = Path(camera.clip().path)
    assert loud_at(path)
    assert shown_in(path)


def test_packets_that_browsers_do_not_play_are_not_copied_and_pictures_are_encoded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    camera = Camera(tmp_path / "clips", source="test:?pace=fast")
    camera.play(packets_of(make_video(tmp_path / "a.mkv", 9.0, codec="mjpeg")), AROUND)
    with av.open(camera.clip().path) as file:
        assert file.streams.video[0].codec_context.name == "h264"
    assert camera.taken > 10
    camera.close()
    assert any("mjpeg of 64x48 is not played by browsers" in record.getMessage() for record in caplog.records)


def test_packets_of_a_stream_that_hides_something_are_never_taken(tmp_path: Path) -> None:
    camera = Camera(tmp_path / "clips", source="test:?pace=fast", blur=("face",))
    assert camera.stream.on_packet is None
    camera.play(packets_of(make_video(tmp_path / "a.mp4", 9.0)), AROUND)
    assert {number for number, _ in shown_in(Path(camera.clip().path))} == {0}, "the frames that were given"
    camera.close()


def test_what_another_source_gives_is_recorded_instead(tmp_path: Path) -> None:
    camera = Camera(tmp_path / "clips", clips=MAIN)
    assert camera.stream.on_packet is None
    other = packets_of(make_video(tmp_path / "a.mp4", 9.0))
    for packet in other:
        camera.stream.add_packet(packet)
        camera.play([packet], {5.0: [event("new")]} if packet is other[100] else {})
        camera.play([packet], {6.0: [event("end")]} if packet is other[125] else {})
    assert shown_in(Path(camera.clip().path))[0][0] == 75 % 60
    assert camera.taken == 0
    camera.close()


def test_the_other_source_of_an_abandoned_stream_is_closed(doubled: Camera) -> None:
    options = {"preset": "ultrafast", "tune": "zerolatency", "x264-params": "keyint=15"}
    with PacketCamera(encode(pattern(15), options=options)) as main:
        config = StreamConfig("test:", "nanodet", clips=ClipsConfig(record_source=main.uri))
        other = doubled.stream.other_source = open_record_source("front", config, doubled.stream.add_packet)
        assert other is not None
        wait_for(lambda: other.stats.frames)
        connection = other._camera.supervisor.current
        assert connection is not None
        doubled.stream.abandon()
        wait_for(lambda: connection.join(0.0))
        assert connection.error is None, "it was lost, not closed"
        assert main.viewers == 1


def test_a_camera_that_changes_its_codec_begins_the_clip_anew(camera: Camera, tmp_path: Path) -> None:
    first = packets_of(make_video(tmp_path / "a.mp4", 5.0))
    second = packets_of(make_video(tmp_path / "b.mp4", 4.0, codec="libx265", size=(128, 96)), 6 * SECOND)
    camera.play([*first, *second], {5.0: [event("new")], 7.0: [event("end")]})
    names = []
    for number in (0, 1):
        with av.open(camera.clip(number).path) as file:
            names.append(file.streams.video[0].codec_context.name)
    assert names == ["h264", "hevc"]


def test_a_continuous_recording_has_every_picture(tmp_path: Path) -> None:
    camera = Camera(tmp_path / "clips", clips={"record": "continuous", "segment_s": 5.0, "events": False})
    camera.play(packets_of(make_video(tmp_path / "a.mp4", 13.0)), {})
    camera.close()
    pieces = clips_in(tmp_path / "clips")
    assert sorted(len(shown_in(entry.path)) for entry in pieces) == [75, 125, 125]
    assert camera.clips == []


class Other:
    """A second source in a state that a test chooses."""

    def __init__(self, state: str = "running", detail: str = "") -> None:
        self.stats = CaptureStats(0, 0, 0, state, detail)  # type: ignore[arg-type]

    def stop(self) -> None:
        """There is nothing to stop."""


@pytest.fixture
def doubled(tmp_path: Path) -> Iterator[Camera]:
    made = Camera(tmp_path / "clips", clips=MAIN)
    yield made
    made.close()


def test_a_record_source_whose_packets_cannot_be_stored_is_said_and_refused(
    doubled: Camera, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    doubled.stream.other_source = Other()  # type: ignore[assignment]
    packets = packets_of(make_video(tmp_path / "a.mkv", 1.0, codec="mjpeg"))
    for packet in packets:
        doubled.stream.add_packet(packet)
    assert "record_source gives mjpeg" in doubled.stream.trouble
    with pytest.raises(CommandError, match="nothing to record: record_source gives mjpeg"):
        doubled.stream.record(1.0)
    assert [record.levelname for record in caplog.records] == ["ERROR"]


@pytest.mark.parametrize("state", ["starting", "lost"])
def test_nothing_is_recorded_of_a_source_that_is_away(doubled: Camera, state: str) -> None:
    doubled.stream.other_source = Other(state, "no route")  # type: ignore[assignment]
    with pytest.raises(CommandError, match="nothing to record"):
        doubled.stream.record(1.0)
    assert doubled.stream.trouble == ("record_source: lost: no route" if state == "lost" else "")
    doubled.stream.other_source = None
    with pytest.raises(CommandError, match=f"is {state}, so there is nothing to record"):
        doubled.stream.record(1.0, state)


def test_a_clip_is_complete_soon_after_the_other_source_was_lost_and_goes_on_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.storage.clips.job._IDLE_S", 0.2)
    monkeypatch.setattr("agent.storage.clips.job._WAIT_S", 0.1)
    camera, video = (
        Camera(tmp_path / "clips", clips=MAIN, capture=CaptureConfig(stall_s=0.1)),
        make_video(tmp_path / "a.mp4", 3.0),
    )
    try:
        for packet in packets_of(video, time.monotonic_ns() - 3 * SECOND):
            camera.stream.add_packet(packet)
        camera.stream.add_events([event("new")])
        wait_for(lambda: camera.clips, 20.0)
        assert len(shown_in(Path(camera.clips[0].path))) > 20
        for packet in packets_of(video, time.monotonic_ns()):
            camera.stream.add_packet(packet)
        wait_for(lambda: len(camera.clips) > 1, 20.0)
        assert len(shown_in(Path(camera.clips[1].path))) > 70
        assert camera.clips[1].occasion == camera.clips[0].occasion
    finally:
        camera.close()


def test_a_clip_that_begins_long_after_its_event_says_so(
    doubled: Camera, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    began_ns = time.monotonic_ns()
    doubled.stream.add_events([event("new")])
    for packet in packets_of(make_video(tmp_path / "a.mp4", 1.0), began_ns + 5 * SECOND):
        doubled.stream.add_packet(packet)
    doubled.stream.abandon()
    path = doubled.clip().path
    assert caplog.messages == [f"clip {path}: begins 5 s late: no earlier group of pictures is left"]


def test_a_connection_that_begins_anew_says_what_is_copied_once(
    camera: Camera, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = make_video(tmp_path / "a.mp4", 1.0)
    camera.play([*packets_of(path), *packets_of(path, 5 * SECOND)], {})
    assert sum("is copied" in record.getMessage() for record in caplog.records) == 1


def test_the_answer_names_the_file_that_is_written(
    camera: Camera, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.storage.clips.job._WAIT_S", 0.1)
    video = make_video(tmp_path / "a.mp4", 3.0)
    camera.play(packets_of(video), {})
    first = camera.stream.record(9.0)
    camera.play(packets_of(video, 5 * SECOND), {})  # its time stamps begin anew
    wait_for(lambda: camera.clips and camera.stream.record(9.0).endswith(".mp4"))
    second = camera.stream.record(9.0)
    assert second != first == camera.clip().path
    camera.stream.abandon()
    assert camera.clip(1).path == second


def test_video_without_parameters_waits_for_them_and_nothing_is_encoded_meanwhile(
    camera: Camera, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    packets = packets_of(make_video(tmp_path / "a.mp4", 9.0))
    bare = msgspec.structs.replace(packets[0].track, header=b"", width=0, height=0)
    early = [msgspec.structs.replace(packet, track=bare, keyframe=False) for packet in packets[:25]]
    camera.play([*early, *packets[25:]], AROUND)
    assert shown_in(Path(camera.clip().path))
    assert camera.taken == 0
    assert not any("browsers" in record.getMessage() for record in caplog.records)


def test_a_second_source_without_key_frames_is_told_as_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.capture.network.Liveness", partial(Liveness, key_frame_s=12.0))
    units = encode(pattern(150, 160, 128), options={"preset": "ultrafast", "x264-params": "keyint=300:bframes=0"})
    camera = Camera(tmp_path / "clips", clips=MAIN)
    with PacketCamera(units[1:]) as other:
        clips, capture = ClipsConfig(record_source=other.uri), CaptureConfig(stall_s=4.0)
        config = StreamConfig("test:", "nanodet", clips=clips, capture=capture)
        source = camera.stream.other_source = open_record_source("front", config, camera.stream.add_packet)
        assert source is not None
        try:
            wait_for(lambda: source.stats.detail == "waiting for a key frame")
            with pytest.raises(CommandError, match=r"record_source is starting, .*: waiting for a key frame"):
                camera.stream.record(5.0)
            wait_for(lambda: source.stats.state == "lost")
            assert camera.stream.trouble.endswith("no key frame for 12 s")
            with pytest.raises(CommandError, match="no key frame for 12 s"):
                camera.stream.record(5.0)
        finally:
            camera.close()


def test_a_clip_of_a_camera_whose_frames_are_late_takes_what_comes(camera: Camera, tmp_path: Path) -> None:
    takes, began_ns = camera.stream.on_packet, time.monotonic_ns()
    packets = [one for one in packets_of(make_video(tmp_path / "a.mp4", 4.0)) if one.track.kind == "video"]
    assert takes is not None
    for number, packet in enumerate(packets):
        if number == len(packets) // 2:
            camera.stream.record(1.0)
        captured_ns = began_ns + packet.captured_ns - packets[0].captured_ns
        takes(msgspec.structs.replace(packet, captured_ns=captured_ns))
        camera.stream.add_frame(Frame(image(0), "front", 0, captured_ns - 4 * SECOND, datetime.now(UTC)), [])
    assert camera.clip().duration_s > 1.9


def test_a_camera_of_few_pictures_is_recorded_in_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.storage.clips.job._IDLE_S", 0.2)
    options = {"preset": "ultrafast", "tune": "zerolatency", "x264-params": "keyint=5:min-keyint=5:scenecut=0"}
    pictures = encode(pattern(20, 160, 128), options=options)
    units = [
        msgspec.structs.replace(pictures[number // 15], pts_s=number / 15)
        if number % 15 == 0
        else Unit(b"", False, 0)
        for number in range(20 * 15)
    ]
    continuous = {"record": "continuous", "segment_s": 600.0}
    camera = Camera(tmp_path / "clips", clips={**MAIN, **continuous}, capture=CaptureConfig(stall_s=20.0))
    with PacketCamera(units, shift_s=lambda number: 100.0) as other:
        clips, capture = ClipsConfig(record_source=other.uri), CaptureConfig(stall_s=20.0)
        config = StreamConfig("test:", "nanodet", clips=clips, capture=capture)
        source = camera.stream.other_source = open_record_source("front", config, camera.stream.add_packet)
        assert source is not None
        try:
            wait_for(lambda: source.stats.frames >= 12)
        finally:
            camera.close()
    (piece,) = clips_in(tmp_path / "clips")
    with av.open(str(piece.path)) as file:
        assert sum(1 for _ in file.decode(video=0)) >= 11
