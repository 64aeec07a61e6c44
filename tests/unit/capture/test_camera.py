from __future__ import annotations

import threading
import time
from collections.abc import Callable

from agent.capture.camera import Cameras
from agent.capture.camera_sound import CameraSound
from agent.capture.source import DecodeMode, Demand
from agent.capture.streams import FrameStream
from agent.config import CaptureConfig
from agent.types import Frame

_CAMERA = "test:?size=64x48&fps=50"


def _stream(name: str, cameras: Cameras, uri: str = _CAMERA, max_fps: float = 0.0) -> FrameStream:
    return FrameStream(name, uri, CaptureConfig(max_fps=max_fps), on_change=print, cameras=cameras)


def _take(stream: FrameStream, within_s: float = 60.0) -> Frame:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if (frame := stream.take(0.2)) is not None:
            return frame
    raise AssertionError("no frame came")


def _readers() -> set[str]:
    return {one.name for one in threading.enumerate() if one.name.startswith("read-")}


def _wait(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    until = time.monotonic() + within_s
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()


def test_two_streams_open_a_camera_once() -> None:
    cameras, before = Cameras(), _readers()
    one, other = _stream("one", cameras), _stream("other", cameras)
    one.start()
    other.start()
    try:
        first, second = _take(one), _take(other)
        assert (first.stream, second.stream) == ("one", "other")
        assert len(_readers() - before) == 1
    finally:
        one.stop()
        other.stop()


def test_a_picture_is_in_memory_once_and_is_marked_as_shared() -> None:
    cameras = Cameras()
    one, other = _stream("one", cameras), _stream("other", cameras)
    one.start()
    other.start()
    try:
        _take(one), _take(other)
        pictures: dict[int, Frame] = {}
        for _ in range(20):
            for stream in (one, other):
                frame = _take(stream)
                if (same := pictures.get(frame.captured_ns)) is not None:
                    assert same.image is frame.image
                    assert (same.shared, frame.shared) == (True, True)
                    return
                pictures[frame.captured_ns] = frame
        raise AssertionError("the streams had no picture in common")
    finally:
        one.stop()
        other.stop()


def test_a_picture_stays_as_it_is_until_all_have_given_it_back() -> None:
    cameras = Cameras()
    one, other = _stream("one", cameras), _stream("other", cameras)
    one.start()
    other.start()
    try:
        held = _take(other)
        before = held.image.copy()
        for _ in range(30):
            one.give_back(_take(one))
        assert (held.image == before).all()
    finally:
        one.stop()
        other.stop()


def test_memory_is_used_again() -> None:
    cameras = Cameras()
    one, other = _stream("one", cameras), _stream("other", cameras)
    one.start()
    other.start()
    seen = set()
    try:
        for _ in range(40):
            for stream in (one, other):
                frame = _take(stream)
                seen.add(id(frame.image))
                stream.give_back(frame)
        assert len(seen) <= 8
    finally:
        one.stop()
        other.stop()


def test_a_stream_goes_on_when_another_stops() -> None:
    cameras = Cameras()
    one, other = _stream("one", cameras), _stream("other", cameras)
    one.start()
    other.start()
    _take(one)
    one.stop()
    try:
        newest = _take(other).seq
        assert _take(other).seq > newest
    finally:
        other.stop()


def test_a_stream_that_hangs_leaves_the_camera_to_the_others() -> None:
    cameras = Cameras()
    hung, other = _stream("hung", cameras), _stream("other", cameras)
    hung.start()
    other.start()
    try:
        held = _take(hung)  # and it is never given back
        before = held.image.copy()
        hung.stop(wait=False)
        for _ in range(30):
            other.give_back(_take(other))
        assert (held.image == before).all()
    finally:
        other.stop()


def test_the_last_stream_closes_the_camera_and_the_next_opens_it_again() -> None:
    cameras, before = Cameras(), _readers()
    for _ in range(3):
        one, other = _stream("one", cameras), _stream("other", cameras)
        one.start()
        other.start()
        _take(one), _take(other)
        other.stop()
        one.stop()
        _wait(lambda: _readers() <= before)


def test_who_wants_the_sound_alone_does_not_have_pictures_decoded_for_it() -> None:
    cameras = Cameras()
    one = _stream("one", cameras)
    one.set_demand(Demand(DecodeMode.FULL, most=DecodeMode.KEYFRAMES))
    one.start()
    camera = one._camera
    assert camera is not None
    sound = _stream("sound", cameras)
    sound.set_demand(CameraSound.demand)
    sound.start()
    try:
        assert camera.demand == Demand(DecodeMode.FULL, most=DecodeMode.KEYFRAMES)
        sound.set_demand(Demand())
        assert camera.demand == Demand()
    finally:
        one.stop()
        sound.stop()


def test_each_stream_has_its_own_rate() -> None:
    cameras = Cameras()
    fast, slow = _stream("fast", cameras), _stream("slow", cameras, max_fps=5.0)
    fast.start()
    slow.start()
    try:
        _take(fast), _take(slow)
        began = time.monotonic()
        while time.monotonic() < began + 2.0:
            fast.take(0.02), slow.take(0.001)
        _wait(lambda: slow.stats.frames < fast.stats.frames / 3)
        assert slow.stats.frames <= 5.0 * (time.monotonic() - began) + 4
    finally:
        fast.stop()
        slow.stop()


def test_a_replay_that_is_over_begins_again_for_the_next_stream() -> None:
    cameras, uri = Cameras(), "test:?size=64x48&fps=50&frames=4"
    one = _stream("one", cameras, uri)
    one.start()
    while not one.ended:
        one.take(0.2)
    other = _stream("other", cameras, uri)
    other.start()
    try:
        assert _take(other).stream == "other"
    finally:
        other.stop()
        one.stop()


def test_replays_are_read_by_each_stream_from_the_beginning() -> None:
    cameras, uri = Cameras(), "test:?size=64x48&fps=50&frames=5&pace=fast"
    one, other = _stream("one", cameras, uri), _stream("other", cameras, uri)
    one.start()
    other.start()
    try:
        for stream in (one, other):
            assert [_take(stream).seq for _ in range(5)] == [0, 1, 2, 3, 4]
    finally:
        one.stop()
        other.stop()


def test_stopping_twice_and_before_the_start_does_no_harm() -> None:
    cameras = Cameras()
    one, other = _stream("one", cameras), _stream("other", cameras)
    other.stop()
    one.start()
    _take(one)
    one.stop()
    one.stop()
    assert one.take(0.0) is None


def test_streams_come_and_go_at_random_without_loss() -> None:
    cameras, failures = Cameras(), []

    def come_and_go(name: str) -> None:
        try:
            for _ in range(8):
                stream = _stream(name, cameras)
                stream.start()
                for _ in range(3):
                    stream.give_back(_take(stream))
                stream.stop()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=come_and_go, args=(f"s{number}",)) for number in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert failures == []


def test_pictures_are_exact_if_one_of_those_who_share_a_camera_needs_that() -> None:
    cameras = Cameras()
    one, other = _stream("one", cameras), _stream("other", cameras)
    one.start()
    other.start()
    camera = one._camera
    assert camera is not None
    try:
        assert not camera.demand.exact
        other.set_demand(Demand(exact=True))
        assert camera.demand.exact
    finally:
        one.stop()
        other.stop()
