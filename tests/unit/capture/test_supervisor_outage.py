from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.capture.reader import FrameRateLimiter, SourceThread
from agent.capture.supervisor import SourceState, SourceSupervisor
from agent.config import CaptureConfig
from agent.config.source_uri import parse_picture
from agent.errors import SourceError
from tests.support.publishing import wait_for


def test_an_outage_is_news_once_when_it_begins_and_once_when_it_ends() -> None:
    outage = SourceState()
    assert outage.mark_running(0, "640x480") is None
    assert outage.mark_lost(10, "no picture")
    assert not outage.mark_lost(15, "refused")
    assert (outage.state, outage.detail) == ("lost", "refused")
    assert outage.mark_running(22, "640x480") == "back after 12 s"
    assert outage.mark_running(23, "640x480") is None
    assert (outage.state, outage.detail) == ("running", "640x480")


def test_the_first_reason_that_explains_an_outage_is_news_once() -> None:
    outage = SourceState()
    assert outage.mark_lost(10, "no picture", explains=False)
    assert not outage.mark_lost(11, "no picture", explains=False)
    assert outage.mark_lost(12, "refused")
    assert not outage.mark_lost(13, "no picture", explains=False)
    assert not outage.mark_lost(14, "no such path")
    assert outage.mark_running(22, "640x480") == "back after 12 s"
    assert outage.mark_lost(30, "no picture", explains=False)
    assert outage.mark_lost(31, "refused")


def test_the_end_is_no_outage() -> None:
    outage = SourceState()
    outage.mark_running(0, "x")
    outage.mark_ended()
    assert (outage.state, outage.detail) == ("ended", "")


class Failing(SourceThread[Any]):
    """An opening that gives a picture; the first one lacks pictures then, and breaks."""

    def __init__(self, woken: threading.Event, *, breaks: bool) -> None:
        super().__init__("rtsp://camera/", woken, "read-yard")
        self._breaks = breaks

    def _open(self) -> Any:
        return SimpleNamespace(description="16x16", close=lambda: None)

    def _read(self, source: Any) -> None:
        self._count()
        while not self._abandoned.wait(0.1):
            self._asked_ns = time.monotonic_ns()
            if self.lacks:
                raise SourceError("the connection broke")
            self.lacks = "no picture" if self._breaks else ""
            self._woken.set()


def test_an_outage_of_pictures_that_becomes_one_of_the_camera_began_with_the_pictures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def now_s() -> float:
        return 100.0 * time.monotonic()

    monkeypatch.setattr("agent.capture.supervisor.time", SimpleNamespace(monotonic=now_s))
    news, openings = list[tuple[str, str, float]](), iter((True, False))
    supervisor = SourceSupervisor(
        "yard",
        parse_picture("rtsp://camera/"),
        CaptureConfig(stall_s=5.0, reopen_max_s=0.3),
        open_next=lambda: Failing(supervisor.woken, breaks=next(openings)),
        finish=lambda error: None,
        on_change=lambda state, why: news.append((state, why, now_s())),
        on_pictures=lambda state, why: news.append((f"pictures {state}", why, now_s())),
    )
    supervisor.start()
    try:
        wait_for(lambda: len(news) > 2)
    finally:
        supervisor.stop()
    (first, _, began_s), (second, _, _), (third, why, over_s) = news
    assert (first, second, third) == ("pictures lost", "lost", "running")
    assert float(why.removeprefix("back after ").removesuffix(" s")) == pytest.approx(over_s - began_s, abs=3.0)


@pytest.mark.parametrize(("source_fps", "max_fps"), [(30, 10), (30, 25), (25, 7), (10, 30), (60, 1)])
def test_thinning_keeps_the_rate_on_average(source_fps: float, max_fps: float) -> None:
    thinning, seconds = FrameRateLimiter(max_fps), 20
    passed = sum(thinning.passes(number / source_fps) for number in range(round(source_fps * seconds)))
    assert passed == pytest.approx(min(source_fps, max_fps) * seconds, abs=2)


@given(st.lists(st.floats(0, 10), max_size=80).map(sorted), st.floats(0.5, 20))
def test_thinning_never_exceeds_its_rate(times: list[float], max_fps: float) -> None:
    thinning = FrameRateLimiter(max_fps)
    passed = [time for time in times if thinning.passes(time)]
    if len(passed) > 2:
        assert len(passed) <= (passed[-1] - passed[0]) * max_fps + 2.01


def test_without_a_limit_everything_passes() -> None:
    thinning = FrameRateLimiter(0.0)
    assert all(thinning.passes(0.0) for _ in range(5))
