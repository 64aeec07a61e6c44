from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from agent.capture.streams import FrameStream
from agent.config import CaptureConfig
from agent.config.source_uri import SCHEMES, Scheme
from agent.errors import SourceError
from tests.unit.capture import scripted

_LIVE = "v4l2:/dev/scripted"
_QUICK = CaptureConfig(stall_s=60.0, reopen_max_s=0.05)
"""Reopens at once; no pause of a busy machine is a stall."""
_STALLS = CaptureConfig(stall_s=1.0, reopen_max_s=0.05)
"""For sources that hang until a test releases them."""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[scripted.Script]:
    """Behaviour of the source `_LIVE`."""
    monkeypatch.setitem(SCHEMES, "v4l2", Scheme("tests.unit.capture.scripted:open_scripted", "", live=True))
    monkeypatch.setattr(scripted, "script", scripted.Script())
    yield scripted.script
    scripted.script.released.set()


@contextmanager
def grabbing(
    uri: str, config: CaptureConfig = _QUICK, name: str = "door"
) -> Iterator[tuple[FrameStream, list[tuple[str, str]]]]:
    """A started grabber, and what it reports."""
    news: list[tuple[str, str]] = []
    grabber = FrameStream(name, uri, config, on_change=lambda state, reason: news.append((state, reason)))
    grabber.start()
    try:
        yield grabber, news
    finally:
        grabber.stop()


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def drain(grabber: FrameStream, work_s: float = 0.0) -> list[int]:
    """The numbers of all frames until the end."""
    numbers = []
    while not grabber.ended:
        frame = grabber.take(0.25)
        if frame is not None:
            numbers.append(frame.seq)
            time.sleep(work_s)
            grabber.give_back(frame)
    return numbers


def test_a_fast_replay_hands_on_every_frame_to_a_slow_consumer() -> None:
    with grabbing("test:?size=32x32&frames=60&pace=fast") as (grabber, news):
        assert drain(grabber, work_s=0.003) == list(range(60))
        assert grabber.stats.state == "ended"
        assert (grabber.stats.frames, grabber.stats.dropped) == (60, 0)
        assert grabber.take(0) is None
    assert news == []


def test_a_consumer_that_pauses_is_no_stall() -> None:
    with grabbing("test:?size=32x32&frames=10&pace=fast", _STALLS) as (grabber, news):
        time.sleep(2.0 * _STALLS.stall_s)
        assert drain(grabber) == list(range(10))
    assert news == []


def test_a_slow_pace_is_no_stall() -> None:
    with grabbing("test:?size=32x32&frames=2&fps=0.5", _STALLS) as (grabber, news):
        began = time.monotonic()
        assert drain(grabber) == [0, 1]
        assert time.monotonic() - began > 1.5 * _STALLS.stall_s
    assert news == []


def test_a_replay_at_realtime_drops_for_a_slow_consumer_and_counts() -> None:
    numbers = []
    with grabbing("test:?size=32x32&frames=40&fps=200") as (grabber, _):
        while not grabber.ended:
            frame = grabber.take(0.25)
            if frame is not None:
                numbers.append(frame.seq)
                grabber.give_back(frame)
                until(partial(_has_gone_on, grabber, min(40, frame.seq + 5)))
        stats = grabber.stats
    assert numbers == sorted(set(numbers))
    assert stats.frames == 40
    assert stats.dropped == 40 - len(numbers) >= 20


def _has_gone_on(grabber: FrameStream, frames: int) -> bool:
    return grabber.stats.frames >= frames


def test_frames_carry_name_and_time() -> None:
    before = time.monotonic_ns()
    with grabbing("test:?size=32x16&frames=5&pace=fast") as (grabber, _):
        frames = [grabber.take(60.0) for _ in range(5)]
        after = time.monotonic_ns()
    times = [frame.captured_ns for frame in frames if frame]
    assert times == sorted(times)
    assert len(times) == 5
    first = frames[0]
    assert first is not None
    assert (first.stream, first.order, first.image.shape) == ("door", "bgr", (16, 32, 3))
    assert before <= first.captured_ns <= after
    assert first.captured_at.tzinfo is not None


def test_memory_is_not_allocated_in_steady_state(script: scripted.Script) -> None:
    with grabbing(_LIVE) as (grabber, _):
        for _ in range(60):
            frame = grabber.take(60.0)
            assert frame is not None
            grabber.give_back(frame)
            grabber.give_back(frame)
    assert script.allocated <= 3


def test_a_frame_in_use_is_never_written_over() -> None:
    with grabbing("test:?size=32x32&frames=100&pace=fast") as (grabber, _):
        kept = grabber.take(60.0)
        assert kept is not None
        copy = kept.image.copy()
        drain(grabber)
    assert (kept.image == copy).all()


def test_at_most_max_fps_are_handed_on(script: scripted.Script) -> None:
    with grabbing(_LIVE, CaptureConfig(max_fps=20.0)) as (grabber, _):
        times = []
        for _ in range(10):
            frame = grabber.take(60.0)
            assert frame is not None
            times.append(frame.captured_ns / 1e9)
            grabber.give_back(frame)
        stats = grabber.stats
    assert stats.frames - 2 <= 20.0 * (time.monotonic() - times[0])
    assert stats.frames - stats.dropped <= len(times) + 1, "what is not handed on is not counted as dropped"


def test_a_fast_replay_is_thinned_by_its_own_clock() -> None:
    with grabbing("test:?size=32x32&frames=60&fps=30&pace=fast", CaptureConfig(max_fps=10.0)) as (grabber, _):
        assert len(drain(grabber)) == 20


def test_a_missing_file_fails_for_good(tmp_path: Path) -> None:
    with grabbing(f"file:{tmp_path}/none.mp4") as (grabber, news):
        for _ in range(2):
            with pytest.raises(SourceError, match="there is no"):
                grabber.take(60.0)
        assert not grabber.ended
        assert grabber.lost
        assert "there is no" in grabber.stats.detail
    assert news == []


def test_a_file_that_hangs_fails_for_good_and_does_not_hold_up_stop(tmp_path: Path) -> None:
    pipe = tmp_path / "clip.mp4"
    os.mkfifo(pipe)
    with grabbing(f"file:{pipe}", _STALLS, "pipe") as (grabber, _):
        with pytest.raises(SourceError, match=r"no picture for 1 s"):
            grabber.take(60.0)
        grabber.stop()
        assert "read-pipe" in {thread.name for thread in threading.enumerate()}, "it would be waited for for ever"
    pipe.open("wb").close()  # lets the abandoned thread go


def test_a_wrong_uri_is_refused_before_anything_starts() -> None:
    with pytest.raises(SourceError, match="expected one of"):
        FrameStream("door", "flie:a.mp4", _QUICK, on_change=print)


def test_a_camera_that_refuses_at_first_is_lost_once_and_tried_again(script: scripted.Script) -> None:
    script.mood = "refuse"
    with grabbing(_LIVE) as (grabber, news):
        until(lambda: script.opened > 4)
        assert grabber.lost
        assert grabber.take(0) is None
        assert news == [("lost", "nothing there")]
        script.mood = "give"
        until(lambda: not grabber.lost)
        assert grabber.take(60.0) is not None
    assert [state for state, _ in news] == ["lost", "running"]
    assert news[1][1].startswith("back after ")
    assert grabber.stats.detail == "16x16"


def test_a_camera_that_breaks_comes_back_by_itself(script: scripted.Script) -> None:
    with grabbing(_LIVE) as (grabber, news):
        assert grabber.take(60.0) is not None
        until(lambda: grabber.stats.state == "running")
        script.mood = "break"
        until(lambda: script.opened > 3)
        assert news == [("lost", "the plug was pulled")]
        script.mood = "give"
        until(lambda: len(news) > 1)
        assert grabber.take(60.0) is not None
        assert grabber.stats.reopened == 1
        until(lambda: script.closed == script.opened - 1)
    assert [state for state, _ in news] == ["lost", "running"]


def test_an_error_of_a_library_is_ours(script: scripted.Script) -> None:
    script.mood = "crash"
    with grabbing(_LIVE) as (_, news):
        until(lambda: bool(news))
    assert news[0][1].startswith("v4l2:/dev/scripted: RuntimeError: in ")


def test_an_error_of_a_library_about_an_address_on_the_network_is_not_quoted(
    script: scripted.Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme = Scheme("tests.unit.capture.scripted:open_scripted", "", live=True, network=True)
    monkeypatch.setitem(SCHEMES, "rtsp", scheme)
    script.mood = "crash"
    with grabbing("rtsp://user:secret@host/secret") as (_, news):
        until(lambda: bool(news))
    assert news[0][1] == "rtsp://host: RuntimeError"


def test_a_camera_that_pauses_longer_than_a_stall_comes_back_without_reopening(script: scripted.Script) -> None:
    with grabbing(_LIVE, _STALLS) as (grabber, news):
        until(lambda: grabber.stats.state == "running")
        script.mood = "hang"
        until(lambda: grabber.lost)
        script.mood = "give"
        script.released.set()
        until(lambda: not grabber.lost)
        assert grabber.stats.reopened == 0
    assert [state for state, _ in news] == ["lost", "running"]


def test_a_reader_that_hangs_is_abandoned_and_closed_when_it_comes_back(script: scripted.Script) -> None:
    with grabbing(_LIVE, _STALLS) as (grabber, news):
        until(lambda: grabber.stats.state == "running")
        script.mood = "hang"
        until(lambda: grabber.lost)
        until(lambda: script.opened == 2)
        assert script.closed == 0
        script.mood = "give"
        script.released.set()
        until(lambda: script.closed == 1)
        until(lambda: not grabber.lost)
    assert [state for state, _ in news] == ["lost", "running"]
    assert news[0][1] == "v4l2:/dev/scripted: no picture for 1 s"


def test_not_more_than_a_few_readers_may_hang(script: scripted.Script) -> None:
    script.mood = "hang"
    with grabbing(_LIVE, CaptureConfig(stall_s=0.5, reopen_max_s=0.01)) as (grabber, news):
        until(lambda: script.opened == 3)
        time.sleep(2.0)
        assert script.opened == 3
        script.mood = "give"
        script.released.set()
        until(lambda: not grabber.lost)
    assert [state for state, _ in news] == ["lost", "running"]


def test_stop_returns_at_once_even_when_the_reader_hangs(script: scripted.Script) -> None:
    with grabbing(_LIVE, CaptureConfig()) as (grabber, _):
        assert grabber.take(60.0) is not None
        script.mood = "hang"
        assert script.hangs.wait(60.0)
        grabber.stop()
        assert script.closed == 0, "it hangs until it is released, and is not waited for"
        script.released.set()
        until(lambda: script.closed == 1)


def test_stop_ends_every_thread_and_wakes_the_consumer(script: scripted.Script) -> None:
    with grabbing(_LIVE, name="gate") as (grabber, _):
        until(lambda: {"capture-gate", "read-gate"} <= {thread.name for thread in threading.enumerate()})
        until(lambda: grabber.stats.frames > 0)
    until(lambda: not {"capture-gate", "read-gate"} & {thread.name for thread in threading.enumerate()})
    assert script.closed == 1


def test_stop_before_start_does_no_harm() -> None:
    grabber = FrameStream("door", "test:", _QUICK, on_change=print)
    assert grabber.stats.state == "starting"
    grabber.stop()


def test_a_grabber_that_has_stopped_keeps_no_picture() -> None:
    with grabbing("test:?size=64x48&pace=fast", name="yard") as (grabber, _):
        frames = [frame for frame in (grabber.take(60.0) for _ in range(8)) if frame is not None]
        for frame in frames[:-1]:
            grabber.give_back(frame)
        until(lambda: len(grabber._queue._items) > 0)
    memory = [weakref.ref(frame.image) for frame in frames]
    grabber.give_back(frames.pop())
    del frame, frames
    assert [image for image in memory if image() is not None] == []
    assert grabber._queue.take(0.0) is None
