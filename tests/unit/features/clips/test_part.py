"""A camera's frames and events, through real encoding and writing, to clips that play."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.av_encoding import PictureEncoder
from agent.config import ClipsConfig, PublishConfig, StorageConfig, StreamConfig
from agent.config.features import StreamBudget
from agent.daemon.streams.pipeline import VideoPipeline
from agent.errors import BackendError, CommandError
from agent.features.clips.part import StreamClips
from agent.features.clips.rules import PicturePace
from agent.storage.clips.recorder import Recorder
from agent.types import Clip, Event, Frame, Lease
from tests.support.clip_pictures import SECOND, frames_of, image, play
from tests.support.doubles import FrameList, Kept, snapshots
from tests.support.publishing import wait_for
from tests.unit.daemon.streams.test_pipeline import make_pipeline
from tests.unit.features.clips.test_rules import event


class Released(Lease):
    """Notes which frames were released by who has kept them."""

    def __init__(self, camera: Any, number: int) -> None:
        super().__init__(lambda: None)
        self.camera, self.number = camera, number

    def release(self) -> None:
        super().release()
        self.camera.given_back.append(self.number)

    __slots__ = ("camera", "number")


class Backs:
    def __init__(self) -> None:
        self.given_back: list[int] = []


class Camera:
    """Frames of a replay, thirty in a second, and the clips that come of them."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.clips: list[Clip] = []
        self.given_back: list[int] = []
        self.taken: list[int] = []
        self.recorder = Recorder(folder, StorageConfig(clips_keep_free_bytes=0), self.clips.append, turn_s=0.02)
        fields = {"before_s": 1.0, "after_s": 1.0, "max_s": 10.0, "fps": 10.0, **config}
        self.clips_of_stream = StreamClips(
            "front", StreamConfig("test:?pace=fast", "nanodet", clips=ClipsConfig(**fields)), self.recorder
        )

    def add_frames(self, first: int, last: int, *events: Event) -> None:
        """Frames by number; the events are in the first."""
        for number in range(first, last + 1):
            at_ns = number * SECOND // 30
            frame = Frame(image(number), "front", number, at_ns, datetime.now(UTC), lease=Released(self, number))
            if self.clips_of_stream.add_frame(frame, events if number == first else ()):
                self.taken.append(number)

    def clip(self, number: int = 0) -> Clip:
        wait_for(lambda: len(self.clips) > number)
        return self.clips[number]


@pytest.fixture
def camera(tmp_path: Path) -> Iterator[Camera]:
    made = Camera(tmp_path)
    yield made
    made.clips_of_stream.close()
    made.recorder.close(5.0)


def test_an_event_makes_a_clip_of_the_time_around_it(camera: Camera) -> None:
    camera.add_frames(0, 59)
    camera.add_frames(60, 89, event("new"))
    camera.add_frames(90, 150, event("end"))
    clip = camera.clip()
    assert (clip.occasion.label, clip.tracks) == ("person", ("1",))
    played = play(Path(clip.path))
    assert played.numbers == [number % 60 for number in range(0, 121, 3)], "from the key frame before it on"
    assert clip.duration_s == pytest.approx(4.1, abs=0.05)
    assert clip.ended_at - clip.began_at == timedelta(seconds=clip.duration_s)


def test_the_picture_of_the_event_is_in_it_whatever_the_rate(camera: Camera) -> None:
    camera.add_frames(0, 31)
    camera.add_frames(32, 33, event("new"))
    camera.add_frames(34, 80, event("end"))
    assert 32 in play(Path(camera.clip().path)).numbers


@pytest.mark.parametrize("fps", [1.0, 4.0, 7.0, 29.0, 30.0, 60.0])
def test_no_more_is_encoded_than_the_rate_asks_for(tmp_path: Path, fps: float) -> None:
    camera = Camera(tmp_path, fps=fps)
    camera.add_frames(0, 299)
    camera.clips_of_stream.close()
    assert len(camera.taken) == pytest.approx(10 * min(fps, 30.0), abs=1)


@pytest.mark.parametrize("jitter_ms", [0, 9, 40])
def test_a_camera_of_just_that_rate_loses_no_picture_to_its_jitter(tmp_path: Path, jitter_ms: int) -> None:
    camera, chance = Camera(tmp_path, fps=5.0), random.Random(1)
    for number in range(100):
        at_ns = number * 200_000_000 + chance.randint(-jitter_ms, jitter_ms) * 1_000_000 + SECOND
        frame = Frame(image(number), "front", number, at_ns, datetime.now(UTC), lease=Released(camera, number))
        camera.clips_of_stream.add_frame(frame, ())
    camera.clips_of_stream.close()
    assert len(camera.given_back) >= 98


def test_every_frame_that_is_taken_is_given_back_once(camera: Camera) -> None:
    camera.add_frames(0, 100)
    camera.clips_of_stream.close()
    assert sorted(camera.given_back) == camera.taken
    assert 30 <= len(camera.taken) <= 40
    camera.add_frames(101, 200)
    assert max(camera.taken) <= 100, "closed, it takes none"


def test_a_live_camera_does_not_wait_for_the_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on, real = threading.Event(), PictureEncoder.encode

    def slowly(self: PictureEncoder, frame: Frame) -> Any:
        goes_on.wait(60.0)
        return real(self, frame)

    monkeypatch.setattr(PictureEncoder, "encode", slowly)
    back = Backs()
    recorder = Recorder(tmp_path, StorageConfig(), lambda _: None)
    recording = StreamClips("front", StreamConfig("test:", "nanodet", clips=ClipsConfig(fps=30.0)), recorder)
    frames = [
        Frame(image(n), "front", n, n * SECOND // 10, datetime.now(UTC), lease=Released(back, n))
        for n in range(30)
    ]
    assert all(recording.add_frame(frame, ()) for frame in frames)
    wait_for(lambda: len(back.given_back) >= 28)
    goes_on.set()
    recording.close()
    assert set(back.given_back) == set(range(30))


def test_an_end_that_comes_without_a_frame_ends_the_clip(camera: Camera) -> None:
    camera.add_frames(0, 29)
    camera.add_frames(30, 40, event("new"))
    camera.clips_of_stream.add_events([event("end")])
    assert play(Path(camera.clip().path)).numbers[-1] == 39


def test_recording_when_asked_takes_what_is_kept_and_what_comes(camera: Camera) -> None:
    camera.add_frames(0, 59)
    path = Path(camera.clips_of_stream.record(1.0))
    assert path.name.endswith(".mp4")
    assert "-asked-" in path.name
    camera.add_frames(60, 120)
    assert camera.clip().path == str(path)
    assert (camera.clip().occasion.reason, camera.clip().tracks) == ("asked", ())
    numbers = play(path).numbers
    assert numbers[0] == 0, "the key frame before the second that is kept"
    assert numbers[-1] >= 87 % 60


def test_what_is_asked_for_while_things_move_has_the_asked_length_beside_their_clip(camera: Camera) -> None:
    camera.add_frames(0, 29, event("new"))
    asked = camera.clips_of_stream.record(2.0)
    camera.add_frames(30, 179)
    camera.add_frames(180, 181, event("end"))
    camera.add_frames(182, 300)
    camera.clip(1)
    by_path = {clip.path: clip for clip in camera.clips}
    assert (by_path[asked].occasion.reason, by_path[asked].tracks) == ("asked", ())
    assert by_path[asked].duration_s == pytest.approx(3.0, abs=0.3)
    (other,) = by_path.keys() - {asked}
    assert (by_path[other].occasion.label, by_path[other].tracks) == ("person", ("1",))
    assert by_path[other].duration_s == pytest.approx(7.0, abs=0.3)


def test_things_that_move_in_what_is_asked_for_have_a_clip_of_their_own(camera: Camera) -> None:
    camera.add_frames(0, 29)
    asked = camera.clips_of_stream.record(2.0)
    camera.add_frames(30, 59)
    camera.add_frames(60, 239, event("new"))
    camera.add_frames(240, 400, event("end"))
    camera.clip(1)
    by_path = {clip.path: clip for clip in camera.clips}
    assert by_path.pop(asked).duration_s == pytest.approx(3.0, abs=0.3)
    ((_, other),) = by_path.items()
    assert (other.occasion.label, other.tracks) == ("person", ("1",))


def test_what_is_asked_for_again_goes_on_and_is_never_cut_short(camera: Camera) -> None:
    camera.add_frames(0, 29)
    first = camera.clips_of_stream.record(4.0)
    camera.add_frames(30, 59)
    assert camera.clips_of_stream.record(1.0) == first
    assert camera.clips_of_stream.record(5.0) == first
    camera.add_frames(60, 269)
    assert camera.clip().path == first
    assert camera.clip().duration_s == pytest.approx(7.0, abs=0.3)
    assert camera.clips_of_stream.record(1.0) != first


def test_what_would_be_longer_than_allowed_is_another_clip(camera: Camera) -> None:
    camera.add_frames(0, 29)
    first = camera.clips_of_stream.record(9.0)
    camera.add_frames(30, 94)
    assert camera.clips_of_stream.record(9.0) != first
    camera.add_frames(95, 400)
    camera.clip(1)
    assert [clip.duration_s for clip in camera.clips] == pytest.approx([10.0, 10.0], abs=0.5)


@pytest.mark.parametrize("seconds", [0.0, -1.0, 10.1, float("nan"), float("inf")])
def test_a_length_that_cannot_be_is_refused(camera: Camera, seconds: float) -> None:
    with pytest.raises(CommandError, match=r"stream front: a clip of .* s cannot be recorded.*clips\.max_s, 10"):
        camera.clips_of_stream.record(seconds)


def test_closing_saves_what_there_is(camera: Camera) -> None:
    camera.add_frames(0, 59, event("new"))
    camera.clips_of_stream.close()
    assert camera.clip().frames == 20


def test_a_picture_that_cannot_be_encoded_is_said_once_and_given_back(
    camera: Camera, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: PictureEncoder, frame: Frame) -> None:
        raise BackendError("no encoder") if frame.seq < 30 else ZeroDivisionError

    monkeypatch.setattr(PictureEncoder, "encode", refuse)
    camera.add_frames(0, 60)
    camera.clips_of_stream.close()
    assert sorted(camera.given_back) == camera.taken
    assert [r.getMessage() for r in caplog.records] == ["stream front: clips: no encoder"]


def test_what_is_drawn_into_the_snapshot_is_not_in_the_clip(camera: Camera, tmp_path: Path) -> None:
    vision, reporter = make_pipeline(tmp_path, Kept())
    grey = [
        Frame(np.full((48, 64, 3), 128, np.uint8), "front", n, n * SECOND // 10, datetime.now(UTC))
        for n in range(20)
    ]
    publish = PublishConfig(snapshot_every_s=0.01)
    parts = snapshots(vision, reporter, publish, clips=camera.clips_of_stream)
    VideoPipeline(FrameList(grey), vision, reporter, parts).run(threading.Event())
    camera.clips_of_stream.close()
    shown = frames_of(Path(camera.clip().path))
    assert len(shown) == 20
    assert all(abs(picture.astype(int) - 128).max() <= 3 for picture in shown)


def test_a_budget_makes_pictures_rarer_also_in_a_clip_that_runs_and_it_plays_at_its_own_speed(
    camera: Camera,
) -> None:
    camera.add_frames(0, 29)
    camera.add_frames(30, 59, event("new"))
    camera.clips_of_stream.set_budget(StreamBudget(clips_share=0.5))
    camera.add_frames(60, 119)
    camera.clips_of_stream.set_budget(StreamBudget())
    camera.add_frames(120, 149)
    camera.add_frames(150, 200, event("end"))
    clip = camera.clip()
    numbers = [number for number in camera.taken if number <= 180]
    assert {later - earlier for earlier, later in pairwise(numbers) if 63 <= earlier < 114} == {6}
    assert {later - earlier for earlier, later in pairwise(numbers) if earlier < 54 or earlier >= 120} <= {
        2,
        3,
        4,
    }
    assert clip.duration_s == pytest.approx(6.1, abs=0.15)
    assert clip.frames == pytest.approx(len(numbers), abs=1)


def test_no_share_is_so_small_that_a_clip_stands_still(tmp_path: Path) -> None:
    camera = Camera(tmp_path, fps=10.0)
    camera.clips_of_stream.set_budget(StreamBudget(clips_share=0.0))
    camera.add_frames(0, 299)
    camera.clips_of_stream.close()
    assert 4 <= len(camera.taken) <= 7, "a picture every two seconds"


@given(
    st.lists(st.tuples(st.integers(1, 60), st.sampled_from([0.05, 0.2, 0.5, 1.0])), min_size=1, max_size=8),
    st.sampled_from([5.0, 10.0, 30.0]),
)
def test_the_pace_follows_its_share_from_the_next_picture_on(parts: list[tuple[int, float]], fps: float) -> None:
    pace, at_ns = PicturePace(fps), 0
    for count, share in parts:
        pace.set_share(share)
        taken = 0
        for _ in range(count):
            at_ns += SECOND // 30
            taken += pace.takes(at_ns, must=False)
        # Where the rate changes, the next picture may be due by the rate before.
        late = 30 / (fps * 0.05)
        assert (count - late) / 30 * fps * share - 3 <= taken <= count / 30 * fps * share + 3
