"""The recorder with real files: what is kept before, what comes after, and disks that refuse."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.comms.messages import clip_message
from agent.config import StorageConfig
from agent.errors import StorageError
from agent.storage.clips.file import ClipFile, ClipLabel, pack_units, part_of
from agent.storage.clips.job import ClipJob
from agent.storage.clips.packets import PacketRing, TimedPacket
from agent.storage.clips.recorder import ClipStats, Recorder
from agent.storage.clips.store import CONTINUOUS, ClipStore, clip_path, clips_in, newest_clips
from agent.types import Clip, ClipReason, MediaPacket, MediaTrack
from tests.support.clip_pictures import SECOND, play
from tests.support.media import Encoder, timed
from tests.support.publishing import wait_for

PERSON = ClipReason("front", "appeared", "front-1a-1", "person")
NOW = datetime.now(UTC)


class Made:
    """A recorder, its footage of two seconds, and the clips that it told of."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.clips: list[Clip] = []
        self.folder = folder
        storage = StorageConfig(**{"clips_keep_free_bytes": 0, **config})
        self.recorder = Recorder(folder, storage, self.clips.append, turn_s=0.02)
        self.footage, self.encoder = PacketRing(2.0, 1 << 20), Encoder()

    def add_frames(self, first: int, last: int) -> None:
        """Two pictures a second, by number; every fourth is a key frame."""
        for number in range(first, last + 1):
            self.footage.add(self.encoder.packet(number, number * SECOND // 2))

    def begin(self, from_s: float, until_s: float, occasion: ClipReason = PERSON) -> ClipJob:
        from_ns, until_ns = round(from_s * SECOND), round(until_s * SECOND)
        return self.recorder.begin(self.footage, occasion, NOW, from_ns, from_ns, until_ns)

    def clip(self, number: int = 0) -> Clip:
        """The so-many-th, when it is there."""
        wait_for(lambda: len(self.clips) > number)
        return self.clips[number]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    prepared = Made(tmp_path / "clips")
    yield prepared
    prepared.recorder.close(5.0)


def said(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == level]


def test_a_clip_has_what_was_before_and_what_came_after(made: Made) -> None:
    made.add_frames(0, 9)
    recording = made.begin(2.5, 7.0)
    recording.tracks = ("front-1a-1", "front-1a-2")
    made.add_frames(10, 16)
    clip = made.clip()
    assert clip.path == str(recording.path)
    assert play(recording.path).numbers == list(range(4, 15)), "from the key frame before the wanted begin on"
    assert (clip.frames, clip.duration_s, clip.tracks) == (11, 5.5, ("front-1a-1", "front-1a-2"))
    assert clip.began_at == NOW - timedelta(seconds=0.5)
    assert clip.ended_at - clip.began_at == timedelta(seconds=5.5)
    assert made.footage.between(0, 1 << 62)[0].packet.captured_ns == 4 * SECOND, "nothing is held any more"


def test_packets_are_copied_as_they_are(made: Made) -> None:
    made.add_frames(0, 3)
    recording = made.begin(0, 1.5)
    kept = [packet.packet.data for packet in made.footage.between(0, 2 * SECOND)]
    made.clip()
    content = recording.path.read_bytes()
    assert len(kept) == 4
    assert all(pack_units(data) in content for data in kept)


def test_an_end_that_moves_makes_it_longer(made: Made) -> None:
    made.add_frames(0, 1)
    recording = made.begin(0, 1)
    assert recording.move_end(3 * SECOND)
    made.add_frames(2, 7)
    assert made.clip().frames == 7
    assert not recording.move_end(5 * SECOND), "too late"


def test_a_camera_that_goes_away_does_not_keep_its_clip_open(made: Made) -> None:
    made.add_frames(0, 1)
    recording = made.begin(0, 0.6)
    assert made.clip().frames == 2
    assert recording.finished


def test_a_clip_without_a_single_picture_is_none(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    recording = made.begin(0, 0.01)
    wait_for(lambda: recording.finished)
    wait_for(lambda: said(caplog, logging.WARNING))
    assert "no picture came in time" in said(caplog, logging.WARNING)[0]
    assert (made.clips, list((made.folder).rglob("*.mp4*"))) == ([], [])


def test_two_clips_of_one_camera_may_overlap(made: Made) -> None:
    made.add_frames(0, 3)
    made.begin(0, 3)
    made.begin(1, 5, ClipReason("front", "appeared", "front-1a-2", "cat"))
    made.add_frames(4, 12)
    made.clip(1)
    found = {clip.occasion.label: play(Path(clip.path)).numbers for clip in made.clips}
    assert found == {"person": list(range(7)), "cat": list(range(11))}


def test_the_end_of_the_recorder_ends_every_clip_as_it_is(made: Made) -> None:
    made.add_frames(0, 3)
    recording = made.begin(0, 100)
    made.recorder.close(5.0)
    assert play(recording.path).numbers == [0, 1, 2, 3]
    assert made.clips[0].frames == 4


def test_pictures_of_another_size_go_into_the_next_file_of_the_clip(made: Made) -> None:
    made.add_frames(0, 3)
    recording = made.begin(0, 3.5)
    made.encoder = Encoder((128, 96))
    made.add_frames(4, 8)
    first, second = made.clip(0), made.clip(1)
    assert (first.path, play(recording.path).numbers) == (str(recording.path), [0, 1, 2, 3])
    assert play(Path(second.path)).numbers == [4, 5, 6, 7]
    assert second.occasion == PERSON
    assert second.began_at == NOW + timedelta(seconds=2)


def test_a_next_file_that_begins_in_the_second_of_the_event_has_a_name_of_its_own(made: Made) -> None:
    at = NOW.replace(microsecond=0)
    made.add_frames(0, 3)
    recording = made.recorder.begin(made.footage, PERSON, at, 2 * SECOND, 0, 4 * SECOND)
    made.encoder = Encoder((128, 96))
    made.add_frames(4, 5)
    wait_for(lambda: bool(made.clips) and bool(part_names(made.folder)) and recording.file is not None)
    shown = newest_clips(made.folder)
    assert [entry.recording for entry, _ in shown].count(True) == 1, "the page has the one being recorded"
    assert len(shown) == 2
    made.add_frames(6, 9)
    first, second = made.clip(0), made.clip(1)
    assert second.began_at == at
    assert first.path == str(recording.path)
    assert first.path != second.path
    assert play(Path(first.path)).numbers == [0, 1, 2, 3]
    assert play(Path(second.path)).numbers == [4, 5, 6, 7, 8]
    made.recorder.close(5.0)
    assert sorted(path.name for path in made.folder.rglob("*.mp4*")) == sorted(
        Path(clip.path).name for clip in made.clips
    )


def test_a_further_file_of_a_clip_is_named_after_the_first_also_where_its_event_comes_after_an_outage(
    made: Made,
) -> None:
    made.add_frames(0, 3)
    made.encoder = Encoder((128, 96))
    made.add_frames(4, 7)
    made.recorder.begin(made.footage, PERSON, NOW, round(3.5 * SECOND), 0, 9 * SECOND)
    made.encoder = Encoder((160, 128))
    made.add_frames(8, 19)
    made.clip(2)
    made.recorder.close(5.0)
    first, second, third = (Path(clip.path).name for clip in made.clips)
    assert first < min(second, third)
    assert [clip.began_at for clip in made.clips] == sorted(clip.began_at for clip in made.clips)


def test_a_clip_whose_name_is_taken_gets_another(made: Made) -> None:
    path = clip_path(made.folder, PERSON, NOW)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"of somebody else")
    made.add_frames(0, 3)
    made.begin(0, 1)
    clip = made.clip()
    assert clip.path != str(path)
    assert play(Path(clip.path)).numbers == [0, 1, 2]
    assert path.read_bytes() == b"of somebody else"


def test_a_recording_without_an_end_is_cut_into_pieces_that_are_not_announced(made: Made) -> None:
    reason = ClipReason("front", CONTINUOUS)
    job = made.recorder.begin(made.footage, reason, NOW, 0, 0, segment_s=4.0)
    for first in range(0, 25, 5):
        made.add_frames(first, first + 4)
        wait_for(lambda first=first: job.next_seq > first)
    job.end()
    wait_for(lambda: not part_names(made.folder) and made.recorder.stats.saved == 4)
    pieces = clips_in(made.folder)
    numbers = [
        play(entry.path).numbers for entry in sorted(pieces, key=lambda entry: entry.path.stat().st_mtime_ns)
    ]
    assert numbers == [list(range(8)), list(range(8, 16)), list(range(16, 24)), [24]]
    assert all(entry.continuous for entry in pieces)
    assert made.clips == []
    assert made.recorder.stats.written == sum(entry.bytes for entry in pieces)


def test_a_recording_without_an_end_goes_on_after_the_disk_was_full(
    made: Made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("agent.storage.clips.job._RETRY_S", 0.1)
    monkeypatch.setattr("agent.storage.clips.job._WAIT_S", 0.1)
    full, real = [True], ClipFile.append

    def append(self: ClipFile, shown: Sequence[TimedPacket]) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self, shown)

    monkeypatch.setattr(ClipFile, "append", append)
    job = made.recorder.begin(made.footage, ClipReason("front", CONTINUOUS), NOW, 0, 0, segment_s=5.0)
    made.add_frames(0, 5)
    wait_for(lambda: said(caplog, logging.ERROR))
    full[0] = False
    time.sleep(0.3)
    made.add_frames(6, 16)
    wait_for(lambda: made.recorder.stats.saved == 1 or job.bytes > 0)
    job.end()
    wait_for(lambda: made.recorder.stats.saved >= 1)
    (piece,) = clips_in(made.folder)
    assert play(piece.path).numbers[-1] == 16
    assert len(said(caplog, logging.ERROR)) == 1


def test_a_piece_is_completed_when_its_camera_gives_nothing_for_a_while(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.storage.clips.job._IDLE_S", 0.1)
    monkeypatch.setattr("agent.storage.clips.job._WAIT_S", 0.05)
    job = made.recorder.begin(made.footage, ClipReason("front", CONTINUOUS), NOW, 0, 0, segment_s=60.0)
    made.add_frames(0, 3)
    wait_for(lambda: made.recorder.stats.saved == 1)
    assert not job.finished
    made.add_frames(4, 6)
    wait_for(lambda: made.recorder.stats.saved == 2)
    assert [play(entry.path).numbers for entry in clips_in(made.folder)] in (
        [[0, 1, 2, 3], [4, 5, 6]],
        [[4, 5, 6], [0, 1, 2, 3]],
    )


def test_a_piece_is_completed_when_its_camera_gives_sound_alone_for_a_while(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.storage.clips.job._IDLE_S", 0.2)
    monkeypatch.setattr("agent.storage.clips.job._WAIT_S", 0.05)
    track = MediaTrack("sound", "aac", (1, 48_000), b"", rate_hz=48_000, channels=1)
    made.recorder.begin(made.footage, ClipReason("front", CONTINUOUS), NOW, 0, 0, segment_s=60.0)
    made.add_frames(0, 3)
    for number in range(100):
        at = 72_000 + number * 1024
        made.footage.add(MediaPacket(track, bytes(9), at, at, 1024, True, at * SECOND // 48_000))
        if made.recorder.stats.saved:
            break
        time.sleep(0.02)
    assert made.recorder.stats.saved == 1
    made.add_frames(4, 6)
    wait_for(lambda: made.recorder.stats.saved == 2)
    assert sorted(play(entry.path).numbers for entry in clips_in(made.folder)) == [[0, 1, 2, 3], [4, 5, 6]]


def part_names(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*.part")]


def large(packet: MediaPacket) -> MediaPacket:
    """One of 50 kB, by a unit that decoders skip."""
    return msgspec.structs.replace(packet, data=packet.data + b"\0\0\0\1\x0c" + b"\xff" * 50_000)


def test_a_clip_ends_where_it_would_be_larger_than_all_may_be(made: Made) -> None:
    made.recorder = Recorder(
        made.folder, StorageConfig(clips_max_bytes=1 << 20, clips_keep_free_bytes=0), made.clips.append
    )
    made.footage = PacketRing(30.0, 4 << 20)
    for number in range(50):
        made.footage.add(large(made.encoder.packet(number, number * SECOND // 2)))
    recording = made.begin(0, 100)
    assert made.clip().frames == 20
    assert recording.path.stat().st_size == made.clip().bytes <= 1 << 20
    assert play(recording.path).numbers == list(range(20))


def test_clips_that_were_there_make_room(tmp_path: Path) -> None:
    (tmp_path / "back").mkdir()
    old = tmp_path / "back" / "2026-01-01T00-00-00Z-person-back-1-1.mp4"
    old.write_bytes(bytes(1 << 20))
    made = Made(tmp_path, clips_max_bytes=1 << 20, clips_max_age_s=1e8)
    made.add_frames(0, 3)
    recording = made.begin(0, 1)
    made.clip()
    assert [entry.path for entry in clips_in(tmp_path)] == [recording.path]
    made.recorder.close(5.0)


def with_an_old_clip(folder: Path) -> Path:
    """A folder with a clip of 1 byte."""
    path = folder / "front" / "2026-01-01T00-00-00Z-person-front-1-1.mp4"
    path.parent.mkdir()
    path.write_bytes(b"x")
    return path


def test_old_clips_go_once_the_clock_is_steady(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    old = with_an_old_clip(tmp_path)
    made = Made(tmp_path, clips_max_age_s=86400.0)
    made.add_frames(0, 3)
    made.begin(0, 1)
    made.clip()
    assert old.exists(), "soon after the start"
    monkeypatch.setattr("agent.storage.clips.recorder._STEADY_S", 0.0)
    made.recorder.configure(StorageConfig(clips_keep_free_bytes=0, clips_max_age_s=86400.0))
    wait_for(lambda: not old.exists())
    made.recorder.close(5.0)
    assert "clips: 1 deleted, older than clips_max_age_s" in said(caplog, logging.INFO)


def test_no_clip_goes_for_its_age_when_the_clock_was_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(tmp_path, StorageConfig(), print)
    monkeypatch.setattr("agent.storage.clips.recorder._STEADY_S", 0.05)
    time.sleep(0.1)
    assert recorder._is_clock_steady()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 8 * 86400.0)
    assert not recorder._is_clock_steady()
    time.sleep(0.1)
    assert recorder._is_clock_steady()


def test_all_clips_are_not_listed_anew_for_each_that_is_completed(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = list[float]()
    real = ClipStore.scan

    def scan(self: ClipStore) -> None:
        scans.append(time.monotonic())
        real(self)

    monkeypatch.setattr(ClipStore, "scan", scan)
    made.add_frames(0, 9)
    for number in range(3):
        made.begin(2.5, 4.0, ClipReason("front", "appeared", f"front-1a-{number}", "person"))
        made.clip(number)
    wait_for(lambda: made.recorder.stats.kept == 3)
    assert made.recorder.stats.bytes == sum(entry.bytes for entry in clips_in(made.folder))
    assert len(scans) == 1, "at the start"


def test_new_bounds_of_clips_count_at_once(tmp_path: Path) -> None:
    made = Made(tmp_path / "clips")
    folder = made.folder / "front"
    folder.mkdir(parents=True)
    for day in (1, 2, 3):
        (folder / f"2026-11-0{day}T00-00-00Z-person-{day}.mp4").write_bytes(bytes(600_000))
    made.recorder.configure(StorageConfig(clips_keep_free_bytes=0, clips_max_age_s=1e8))
    made.recorder.start()
    time.sleep(0.2)
    assert len(clips_in(made.folder)) == 3
    made.recorder.configure(
        StorageConfig(clips_keep_free_bytes=0, clips_max_age_s=1e8, clips_max_bytes=1_300_000)
    )
    wait_for(lambda: len(clips_in(made.folder)) == 2)
    assert clips_in(made.folder)[0].at.day == 2, "the oldest goes first"
    made.recorder.close(5.0)


def shown_at(*times_s: float) -> list[TimedPacket]:
    """A picture at each of these times."""
    encoder = Encoder()
    return timed([encoder.packet(number, round(at_s * SECOND)) for number, at_s in enumerate(times_s)])


def cut_off(folder: Path, occasion: ClipReason = PERSON, shown: Sequence[TimedPacket] = ()) -> Path:
    """As a process that was killed leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    path, label = folder / "2026-11-25T10-15-03Z-person-front-1a-1.mp4", ClipLabel(occasion, NOW)
    file = ClipFile(path, label, shown_at(0.0)[0], None)
    if shown:
        file.append(shown)
    file._file.close()
    return file.path


def test_what_was_cut_off_is_completed_and_told_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = cut_off(tmp_path / "front", shown=shown_at(0.0, 0.5, 1.0, 2.0))
    made = Made(tmp_path)
    made.recorder.start()
    assert (made.clip().path, made.clip().repaired, made.clip().frames) == (str(path), True, 3)
    assert play(path).numbers == [0, 1, 2]
    made.recorder.close(5.0)
    assert "completed after it was cut off" in said(caplog, logging.INFO)[0]


@pytest.mark.parametrize(
    ("occasion", "shown", "why"),
    [
        (PERSON, [], "no picture in it is whole"),
        (ClipReason("../../x", "appeared"), [0.0, 0.5, 1.0, 2.0], "another stream's folder"),
        (ClipReason("a/b/#", "appeared"), [0.0, 0.5, 1.0, 2.0], "another stream's folder"),
    ],
)
def test_what_cannot_be_completed_is_removed_with_its_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, occasion: ClipReason, shown: list[float], why: str
) -> None:
    path = cut_off(tmp_path / "front", occasion, shown_at(*shown))
    made = Made(tmp_path)
    made.recorder.start()
    wait_for(lambda: said(caplog, logging.WARNING))
    made.recorder.close(5.0)
    assert why in said(caplog, logging.WARNING)[0]
    assert not part_of(path).exists()
    assert made.clips == []


def test_a_disk_that_refuses_costs_the_clip_and_is_said_once(
    made: Made, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    full = [True]
    real = ClipFile.append

    def append(self: ClipFile, shown: Sequence[TimedPacket]) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self, shown)

    monkeypatch.setattr(ClipFile, "append", append)
    for start in (0, 10, 20):
        made.add_frames(start, start + 4)
        recording = made.begin(start / 2, start / 2 + 1)
        wait_for(lambda recording=recording: recording.finished)
    wait_for(lambda: not list(made.folder.rglob(".*.part")))
    full[0] = False
    made.add_frames(30, 34)
    made.begin(15, 16)
    assert made.clip().frames == 3
    (line,) = said(caplog, logging.ERROR)
    assert "clips cannot be saved" in line
    assert "No space left" in line
    wait_for(lambda: any("saved again" in line for line in said(caplog, logging.INFO)))
    wait_for(lambda: len(list(made.folder.rglob("*.mp4*"))) == 1)  # a clip is published before it is settled


def test_a_folder_that_cannot_be_made_is_said_and_nothing_else_breaks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "clips").write_text("a file")
    made = Made(tmp_path / "clips")
    made.add_frames(0, 3)
    recording = made.begin(0, 1)
    wait_for(lambda: recording.finished and said(caplog, logging.ERROR))
    made.recorder.close(5.0)
    assert len(said(caplog, logging.ERROR)) == 1
    stats = made.recorder.stats
    assert (stats.saved, stats.failed, "File exists" in stats.trouble) == (0, 1, True)
    with pytest.raises(StorageError, match=r"clips/front: clips cannot be saved there: "):
        made.recorder.check("front", 0)


def test_who_asks_for_a_clip_is_told_that_there_is_no_room_for_it(tmp_path: Path) -> None:
    made = Made(tmp_path / "clips")
    made.recorder.check("front", 1 << 20)
    full = Made(tmp_path / "clips", clips_keep_free_bytes=1 << 60)
    with pytest.raises(StorageError, match="MB are free on the disk"):
        full.recorder.check("front", 0)


def test_what_is_saved_and_deleted_and_kept_is_counted(tmp_path: Path) -> None:
    os.truncate(with_an_old_clip(tmp_path), 1 << 20)
    made = Made(tmp_path, clips_max_bytes=1 << 20)
    made.add_frames(0, 3)
    made.begin(0, 1)
    size = made.clip().bytes
    made.recorder.close(5.0)
    assert made.recorder.stats == ClipStats(
        saved=1, failed=0, deleted=1, kept=1, bytes=size, written=size, trouble=""
    )


def held_writes(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Hold what is written until the second event; the first one tells that something is."""
    writes, goes_on, real = threading.Event(), threading.Event(), ClipFile.append

    def slowly(self: ClipFile, shown: Sequence[TimedPacket]) -> None:
        writes.set()
        goes_on.wait(60.0)
        real(self, shown)

    monkeypatch.setattr(ClipFile, "append", slowly)
    return writes, goes_on


def test_a_stop_that_does_not_wait_for_a_clip_tells_which_and_blames_nothing(
    made: Made, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes, goes_on = held_writes(monkeypatch)
    made.add_frames(0, 3)
    recording = made.begin(0, 100)
    assert writes.wait(60.0)
    made.recorder.close(0.1)
    (line,) = said(caplog, logging.WARNING)
    assert line.startswith(f"clips: not complete 0.1 s after the stop: {recording.path}; ")
    assert "disk" not in line
    goes_on.set()
    made.clip()
    made.recorder.close(60.0)
    assert said(caplog, logging.WARNING) == [line]


def test_pictures_that_a_slow_disk_missed_are_said(
    made: Made, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes, goes_on = held_writes(monkeypatch)
    made.footage = PacketRing(2.0, 1000)
    made.add_frames(0, 3)
    made.begin(0, 10)
    assert writes.wait(60.0)
    made.add_frames(4, 21)
    goes_on.set()
    clip = made.clip()
    assert clip.frames < 21
    assert "missing: the disk was too slow" in said(caplog, logging.WARNING)[0]
    assert len(play(Path(clip.path)).numbers) == clip.frames


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_clip_that_a_crash_kept_from_being_told_of_is_told_of_at_the_next_start(made: Made) -> None:
    asked = list[Clip]()

    def die(clip: Clip) -> None:
        asked.append(clip)
        raise SystemExit  # as if the process were killed here

    made.add_frames(0, 3)
    made.recorder = Recorder(made.folder, StorageConfig(clips_keep_free_bytes=0), die)
    path = made.begin(0, 1).path
    wait_for(lambda: asked)
    wait_for(lambda: "clips-writer" not in {thread.name for thread in threading.enumerate()})
    assert part_of(path).exists()

    again = Made(made.folder)
    again.recorder.start()
    assert again.clip() == asked[0]
    ids = {clip_message(clip, "porch").id for clip in (asked[0], again.clip())}
    assert len(ids) == 1
    wait_for(lambda: not part_of(path).exists())
    again.recorder.close(5.0)
    assert play(path).numbers == [0, 1, 2]


def test_clips_are_made_again_after_their_folder_was_deleted(made: Made) -> None:
    made.add_frames(0, 9)
    made.begin(2.5, 4.0)
    made.clip()
    shutil.rmtree(made.folder)
    made.recorder.configure(StorageConfig(clips_keep_free_bytes=0))  # it looks what there is, and finds nothing
    wait_for(lambda: made.recorder.stats.kept == 0)
    made.begin(2.5, 4.0)
    assert Path(made.clip(1).path).exists()
    assert made.recorder.stats.trouble == ""


def test_a_recorder_whose_disk_hangs_tells_how_far_it_is_behind(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, goes_on, real = threading.Event(), threading.Event(), ClipFile.append

    def append(self: ClipFile, some: Sequence[TimedPacket]) -> None:
        hangs.set()
        goes_on.wait(60.0)
        real(self, some)

    monkeypatch.setattr(ClipFile, "append", append)
    monkeypatch.setattr("agent.storage.clips.job._WAIT_S", 0.1)
    assert made.recorder.behind_s == 0.0
    made.add_frames(0, 3)
    made.begin(0.0, 3.0)
    assert hangs.wait(60.0)
    wait_for(lambda: made.recorder.behind_s > 0.2)
    goes_on.set()
    made.add_frames(4, 8)
    made.clip()
    wait_for(lambda: made.recorder.behind_s == 0.0)


def test_a_camera_that_gives_nothing_is_no_load_of_the_disk(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.storage.clips.job._WAIT_S", 0.05)
    made.add_frames(0, 3)
    job = made.begin(0.0, 30.0)
    wait_for(lambda: job.bytes > 0)
    time.sleep(0.2)
    assert made.recorder.behind_s == 0.0
    assert job.behind_s == 0.0


def test_a_disk_that_becomes_full_costs_only_what_was_not_written(
    made: Made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("agent.storage.clips.job._WAIT_S", 0.05)
    made.add_frames(0, 7)
    job = made.begin(0, 100)
    wait_for(lambda: job.next_seq == 8 and job.bytes > 0)

    def append(self: ClipFile, shown: Sequence[TimedPacket]) -> None:
        os.write(self._file.fileno(), b"\0\0\1\0moof")  # the beginning of a fragment
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ClipFile, "append", append)
    made.add_frames(8, 12)
    clip = made.clip()
    assert clip.path == str(job.path)
    assert play(job.path).numbers == list(range(clip.frames))
    assert clip.frames >= 4
    assert str(job.path) in said(caplog, logging.ERROR)[0]
    wait_for(lambda: (made.recorder.stats.saved, made.recorder.stats.failed) == (1, 0))


def test_recordings_that_fill_what_all_clips_may_take_are_completed_and_go_on(
    made: Made, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.storage.clips.job._WAIT_S", 0.02)
    storage = StorageConfig(clips_max_bytes=1 << 20, clips_keep_free_bytes=0)
    made.recorder = Recorder(made.folder, storage, made.clips.append, turn_s=0.02)
    made.footage = PacketRing(30.0, 8 << 20)
    jobs = [
        made.recorder.begin(made.footage, ClipReason(name, CONTINUOUS), NOW, 0, 0, segment_s=3600.0)
        for name in ("front", "back")
    ]
    for number in range(120):
        made.footage.add(large(made.encoder.packet(number, number * SECOND // 2)))
        if number % 8 == 7:
            wait_for(lambda number=number: all(job.next_seq > number for job in jobs))
    for job in jobs:
        job.end()
    wait_for(lambda: not part_names(made.folder))
    pieces = clips_in(made.folder)
    assert len(pieces) >= 2
    assert sum(entry.bytes for entry in pieces) <= 1 << 20
    assert all(play(entry.path).numbers for entry in pieces)
    assert 119 % 60 in {play(entry.path).numbers[-1] for entry in pieces}
    assert (said(caplog, logging.ERROR), said(caplog, logging.WARNING)) == ([], [])
    made.recorder.close(5.0)


def test_a_clip_of_a_camera_that_never_gave_a_picture_fails(made: Made) -> None:
    at_ns = time.monotonic_ns()
    job = made.recorder.begin(made.footage, PERSON, NOW, at_ns, at_ns - SECOND, at_ns + SECOND // 10)
    wait_for(lambda: job.finished)
    wait_for(lambda: made.recorder.stats.failed == 1)


def test_a_clip_that_waits_for_a_lost_camera_is_no_load_of_the_disk(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.storage.clips.job._WAIT_S", 0.05)
    made.add_frames(0, 0)
    job = made.begin(0.0, 1.0)
    behind = []
    while not job.finished:
        behind.append(made.recorder.behind_s)
        time.sleep(0.01)
    assert max(behind[len(behind) // 2 :]) == 0.0, "once its beginning is written"
    assert made.clip().frames == 1
