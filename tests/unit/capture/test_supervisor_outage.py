from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.capture.streams import FrameRateLimiter
from agent.capture.supervisor import SourceState


def test_an_outage_is_news_once_when_it_begins_and_once_when_it_ends() -> None:
    outage = SourceState()
    assert outage.mark_running(0, "640x480") is None
    assert outage.mark_lost(10, "no picture")
    assert not outage.mark_lost(15, "refused")
    assert (outage.state, outage.detail) == ("lost", "refused")
    assert outage.mark_running(22, "640x480") == "back after 12 s"
    assert outage.mark_running(23, "640x480") is None
    assert (outage.state, outage.detail) == ("running", "640x480")


def test_the_end_is_no_outage() -> None:
    outage = SourceState()
    outage.mark_running(0, "x")
    outage.mark_ended()
    assert (outage.state, outage.detail) == ("ended", "")


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
