"""Spans are kept while a trace runs, up to a number."""

from __future__ import annotations

import threading

import pytest

from agent import spans
from agent.spans import SpanRecorder


@pytest.fixture(autouse=True)
def off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "active", None)


def test_nothing_is_kept_while_no_trace_runs() -> None:
    assert spans.span("a") is spans.span("b")
    with spans.span("a"):
        pass


def test_a_span_has_its_thread_and_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = SpanRecorder()
    monkeypatch.setattr(spans, "active", recorder)
    with spans.span("outer"), pytest.raises(ValueError, match="x"), spans.span("inner"):
        raise ValueError("x")
    inner, outer = recorder.spans
    assert (inner.name, outer.name) == ("inner", "outer")
    assert recorder.began_ns <= outer.began_ns <= inner.began_ns <= inner.ended_ns <= outer.ended_ns
    assert inner.thread == threading.get_native_id()


def test_a_span_that_ends_after_the_trace_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "active", SpanRecorder())
    with spans.span("late"):
        monkeypatch.setattr(spans, "active", None)


def test_the_memory_is_bounded() -> None:
    recorder = SpanRecorder(capacity=3)
    for number in range(5):
        recorder.add("a", number, number + 1)
    assert [one.began_ns for one in recorder.spans] == [0, 1, 2]
    assert recorder.dropped == 2
