from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.capture.source import open_source
from agent.capture.streams import FrameStream
from agent.config import CaptureConfig
from agent.errors import SourceError
from tests.support.rtsp import RtspServer

_CONFIG = CaptureConfig(stall_s=1.5, reopen_max_s=0.5)


@contextmanager
def grabbing(uri: str) -> Iterator[tuple[FrameStream, list[tuple[str, str]]]]:
    """A started grabber, and what it reports."""
    news: list[tuple[str, str]] = []
    grabber = FrameStream("yard", uri, _CONFIG, on_change=lambda state, reason: news.append((state, reason)))
    grabber.start()
    try:
        yield grabber, news
    finally:
        grabber.stop()


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def frames_flow(grabber: FrameStream, count: int = 10) -> None:
    """So many frames come, each with its own picture."""
    for _ in range(count):
        frame = grabber.take(60.0)
        assert frame is not None
        assert frame.image.shape == (240, 320, 3)
        grabber.give_back(frame)


def test_a_camera_that_dies_and_returns_is_lost_once_and_back_once() -> None:
    with RtspServer() as server, grabbing(server.uri) as (grabber, news):
        frames_flow(grabber)
        server.kill()
        until(lambda: grabber.lost)
        time.sleep(2)
        server.start()
        until(lambda: not grabber.lost)
        frames_flow(grabber)
        assert [state for state, _ in news] == ["lost", "running"]
        assert "stopped sending" in news[0][1]
        assert news[1][1].startswith("back after ")
        assert grabber.stats.reopened == 1


def test_a_camera_that_freezes_is_noticed_after_the_stall_time() -> None:
    with RtspServer() as server, grabbing(server.uri) as (grabber, news):
        frames_flow(grabber)
        server.freeze()
        until(lambda: grabber.lost)
        assert "no picture for 1.5 s" in news[0][1]
        until(lambda: "no stream comes in time; is the camera on" in grabber.stats.detail)
        server.thaw()
        until(lambda: not grabber.lost)
        frames_flow(grabber)
        assert [state for state, _ in news] == ["lost", "running"]


def test_a_camera_that_comes_later_is_waited_for() -> None:
    server = RtspServer()
    with grabbing(server.uri) as (grabber, news):
        until(lambda: grabber.lost)
        assert "Connection refused" in news[0][1]
        with server:
            frames_flow(grabber)
            until(lambda: len(news) == 2)
            assert [state for state, _ in news] == ["lost", "running"]


def test_a_wrong_path_is_named() -> None:
    with RtspServer() as server, pytest.raises(SourceError, match="Server returned 404 Not Found"):
        open_source(server.uri.replace("/cam", "/door"), stall_s=20.0)


def test_a_wrong_password_is_named_and_not_shown() -> None:
    with RtspServer("eve", "right") as server:
        with pytest.raises(SourceError, match=r"401 Unauthorized.*set capture\.username") as caught:
            open_source(server.uri.replace("//", "//eve:wrong@"), stall_s=20.0)
        assert "wrong" not in str(caught.value)
        assert "eve" not in str(caught.value)
        source = open_source(server.uri.replace("//", "//eve:right@"), stall_s=20.0)
        assert source.read(None) is not None
        source.close()


def test_the_password_of_a_camera_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("p@ss/w:rd#?%\n")
    login = CaptureConfig(username="eve", password_file=str(file))
    with RtspServer("eve", "p@ss/w:rd#?%") as server:
        source = open_source(server.uri, stall_s=20.0, login=login)
        assert source.read(None) is not None
        source.close()
        file.write_text("wrong")
        with pytest.raises(SourceError, match=r"401 Unauthorized.*set capture\.username") as caught:
            open_source(server.uri, stall_s=20.0, login=login)
    assert "wrong" not in str(caught.value)


def test_a_consumer_that_is_slow_sees_the_newest_frame() -> None:
    with RtspServer() as server, grabbing(server.uri) as (grabber, _):
        frames_flow(grabber)
        slept_at = grabber.stats.frames
        until(lambda: grabber.stats.frames > slept_at + 20)
        delivered = grabber.stats.frames
        frame = grabber.take(60.0)
        assert frame is not None
        assert frame.seq >= delivered - 1
        assert grabber.stats.dropped > 5
