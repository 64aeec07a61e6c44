"""Every picture of a recording is in a file soon, or told as missing, however its packets are broken up."""

from __future__ import annotations

import errno
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import av
import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent.config import StorageConfig
from agent.storage.clips.file import ClipFile
from agent.storage.clips.packets import PacketRing, TimedPacket
from agent.storage.clips.recorder import Recorder
from agent.storage.clips.store import CONTINUOUS, clips_in
from agent.types import Clip, ClipReason, MediaPacket, MediaTrack
from tests.support.clip_pictures import SECOND
from tests.support.media import Encoder

NOW = datetime.now(UTC)
STEP = SECOND // 10
"""Between two pictures, ns."""
GROUP = 4
"""Pictures from key frame to key frame."""

Break = Literal["reconnects", "resizes", "jumps", "goes back", "pauses", "is full", "none"]
Run = tuple[Break, int]
"""What comes first, and the number of pictures until the next break."""


class Stepped(Recorder):
    """Serves its clips only when it is told to."""

    def start(self) -> None:
        """Start no thread."""

    def serve(self) -> None:
        self._serve_all()


class Camera:
    """A camera whose packets break: ten pictures a second."""

    def __init__(self, ring: PacketRing) -> None:
        self.ring, self.sent = ring, 0
        self._number, self._shift_ms = 0, 0
        self._size = (64, 48)
        self._track = encoded(self._size)[0].track

    def begin(self, what: Break) -> None:
        if what == "resizes":
            self._size = (128, 96) if self._size == (64, 48) else (64, 48)
        if what in ("resizes", "reconnects"):
            self._track = msgspec.structs.replace(encoded(self._size)[0].track)
            self._number = -(-self._number // GROUP) * GROUP
        self._shift_ms += {"jumps": 40_000, "goes back": -20_000}.get(what, 0)

    def send(self) -> None:
        """Send the next picture."""
        number = self._number
        packet, captured_ns = encoded(self._size)[number % GROUP], (number + 1) * STEP
        stamp = captured_ns // 1_000_000 + self._shift_ms
        self._number, self.sent = number + 1, self.sent + 1
        self.ring.add(_stamped(packet, self._track, stamp, captured_ns))


@cache
def encoded(size: tuple[int, int]) -> Sequence[MediaPacket]:
    """One group of pictures."""
    encoder = Encoder(size)
    return [encoder.packet(number, number * SECOND // 2) for number in range(GROUP)]


def _stamped(packet: MediaPacket, track: MediaTrack, stamp_ms: int, captured_ns: int) -> MediaPacket:
    track_ms = stamp_ms * track.time_base[1] // (1000 * track.time_base[0])
    return msgspec.structs.replace(packet, track=track, pts=track_ms, dts=track_ms, captured_ns=captured_ns)


@contextmanager
def recorded() -> Iterator[tuple[Stepped, Camera, Path]]:
    """A recorder that is served by the test, while the camera never is silent and everything is due at once."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("agent.storage.clips.job._WAIT_S", 1e9)
        patch.setattr("agent.storage.clips.job._PIECE", 0)
        told = list[Clip]()
        config = StorageConfig(clips_keep_free_bytes=0)
        recorder = Stepped(Path(folder), config, told.append)
        yield recorder, Camera(PacketRing(2.0, 1 << 20)), Path(folder)


def pictures_in(path: Path) -> int:
    with av.open(str(path)) as file:
        return sum(packet.pts is not None for packet in file.demux(video=0))


def missing(lines: Sequence[str]) -> int:
    found = (re.search(r": (\d+) pictures? missing: ", line) for line in lines)
    return sum(int(one[1]) for one in found if one)


def refuse(file: ClipFile, packets: Sequence[TimedPacket]) -> None:
    """Write a part of the packets, as on a disk that is full then."""
    half = packets[: len(packets) // 2]
    file.frames += sum(one.is_video for one in packets) - sum(one.is_video for one in half)
    append(file, half)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fill_disk_of_front(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Refuse packets of the stream `front` while the list that is returned has an element."""
    full = list[bool]()

    def refuse_front(self: ClipFile, packets: Sequence[TimedPacket]) -> None:
        if full and "front" in self.path.parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, packets)

    monkeypatch.setattr(ClipFile, "append", refuse_front)
    return full


append = ClipFile.append
RUNS = st.lists(st.tuples(st.sampled_from(get_args(Break)), st.integers(1, 12)), min_size=1, max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@example([("reconnects", 1), ("reconnects", 6), ("reconnects", 9), ("pauses", 9), ("is full", 1)], 9, 1.0)
@given(RUNS, st.integers(1, 9), st.sampled_from([0.0, 0.5, 1.0]))
def test_every_picture_is_in_a_file_soon_or_told_as_missing(
    caplog: pytest.LogCaptureFixture, runs: list[Run], every: int, segment_s: float
) -> None:
    caplog.clear()
    with recorded() as (recorder, camera, folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr("agent.storage.clips.job._RETRY_S", 0.0)
        reason = ClipReason("front", CONTINUOUS if segment_s else "asked")
        job = recorder.begin(camera.ring, reason, NOW, 0, 0, segment_s=segment_s)
        for what, length in runs:
            camera.begin(what)
            if what == "is full" and segment_s:  # a clip with an end is over then
                patch.setattr(ClipFile, "append", refuse)
                recorder.serve()
                patch.setattr(ClipFile, "append", append)
            if what == "pauses":  # so long that the open file is completed
                recorder.serve()
                patch.setattr("agent.storage.clips.job._IDLE_S", -1.0)
                recorder.serve()
                patch.setattr("agent.storage.clips.job._IDLE_S", 10.0)
            for _ in range(length):
                camera.send()
                if camera.sent % every == 0:
                    recorder.serve()
                    waiting = camera.ring.between(job.next_seq, 1 << 62)
                    assert len({one.part for one in waiting}) <= 1
                    assert len(waiting) <= 5, "no more than half a second waits to grow"
        job.end()
        recorder.serve()
        in_files = sum(pictures_in(entry.path) for entry in clips_in(folder))
        assert not list(folder.rglob(".*.part"))
        assert in_files + missing(caplog.messages) == camera.sent


def test_pictures_that_a_disk_refuses_are_told_and_that_it_is_over_when_they_are_written_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("agent.storage.clips.job._RETRY_S", 1e9)
    full = fill_disk_of_front(monkeypatch)
    with recorded() as (recorder, front, folder):
        side = Camera(PacketRing(2.0, 1 << 20))
        job, _ = (
            recorder.begin(camera.ring, ClipReason(stream, CONTINUOUS), NOW, 0, 0, segment_s=0.5)
            for stream, camera in (("front", front), ("side", side))
        )
        for number in range(60):
            full[:] = [True] * (10 <= number < 40)
            job.paused_until_s = 0.0 if number == 41 else job.paused_until_s
            front.send()
            side.send()
            recorder.serve()
        recorder.close(0.0)
        recorder.serve()
        files = {
            name: [one for one in clips_in(folder) if one.path.parent.name == name] for name in ("front", "side")
        }
        assert sum(pictures_in(one.path) for one in files["side"]) == side.sent
        refused = front.sent - sum(pictures_in(one.path) for one in files["front"])
    assert refused > 30
    assert missing(caplog.messages) == refused
    assert any("saved again" in line for line in caplog.messages)


@pytest.mark.parametrize("what", ["reconnects", "resizes", "jumps"])
def test_a_short_run_between_two_breaks_does_not_hold_up_what_follows(
    what: Break, caplog: pytest.LogCaptureFixture
) -> None:
    with recorded() as (recorder, camera, folder):
        job = recorder.begin(camera.ring, ClipReason("front", CONTINUOUS), NOW, 0, 0, segment_s=60.0)
        for length in (8, 4, 8):
            for _ in range(length):
                camera.send()
            recorder.serve()
            camera.begin(what)
        assert job.next_seq == camera.ring.next_seq
        job.end()
        recorder.serve()
        assert sorted(pictures_in(entry.path) for entry in clips_in(folder)) == [4, 8, 8]
        assert missing(caplog.messages) == 0


def test_pictures_that_no_key_frame_precedes_after_a_jump_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with recorded() as (recorder, camera, folder):
        job = recorder.begin(camera.ring, ClipReason("front", CONTINUOUS), NOW, 0, 0, segment_s=60.0)
        for number in range(20):
            if number == 9:
                camera.begin("jumps")
            camera.send()
            recorder.serve()
        job.end()
        recorder.serve()
        assert sorted(pictures_in(entry.path) for entry in clips_in(folder)) == [8, 9]
    (line,) = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert "3 pictures missing" in line


def test_the_first_piece_is_named_after_its_first_picture(caplog: pytest.LogCaptureFixture) -> None:
    with recorded() as (recorder, camera, folder):
        began = NOW - timedelta(hours=2)
        job = recorder.begin(camera.ring, ClipReason("front", CONTINUOUS), began, 0, 0, segment_s=60.0)
        for _ in range(8):
            camera.send()
        recorder.serve()
        job.end()
        recorder.serve()
        (entry,) = clips_in(folder)
        assert abs(entry.at - datetime.now(UTC)) < timedelta(hours=1)


def test_a_clip_names_the_file_that_is_open() -> None:
    with recorded() as (recorder, camera, _):
        job = recorder.begin(camera.ring, ClipReason("front", "asked"), NOW, 0, 0)
        for _ in range(8):
            camera.send()
        recorder.serve()
        first = job.shown
        camera.begin("reconnects")
        for _ in range(8):
            camera.send()
        recorder.serve()
        assert job.file is not None
        assert job.shown == str(job.file.path) != first == str(job.path)


def test_what_is_captured_after_a_recording_was_ended_is_not_in_it() -> None:
    with recorded() as (recorder, camera, folder):
        jobs = [
            recorder.begin(camera.ring, ClipReason("front", reason), NOW, 0, 0, segment_s=segment_s)
            for reason, segment_s in (("asked", 0.0), (CONTINUOUS, 60.0))
        ]
        for number in range(12):
            if number == 8:
                for job in jobs:
                    job.end(8 * STEP)
            camera.send()
        recorder.serve()
        assert [pictures_in(entry.path) for entry in clips_in(folder)] == [8, 8]
