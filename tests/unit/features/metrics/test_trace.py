"""A trace is recorded once at a time, fits into a message, and is what the format allows."""

from __future__ import annotations

import base64
import gzip
import queue
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import spans
from agent.daemon.streams.pipeline import add_stages
from agent.errors import CommandError
from agent.features.metrics import part as module
from agent.features.metrics.part import TraceRecording, pack
from agent.spans import SpanRecorder
from agent.types import StageTimes
from tests.support.publishing import wait_for
from tests.support.trace_events import Slice, read_trace

Told = tuple[dict[str, Any] | None, str]
MAIN = {threading.get_native_id(): "stream-front"}


def unpacked(result: dict[str, Any]) -> tuple[str, list[Slice]]:
    return read_trace(gzip.decompress(base64.b64decode(result["trace"])))


def is_recording() -> bool:
    return spans.active is not None


def started(recording: TraceRecording, seconds: float, max_packet: int = 0) -> queue.SimpleQueue[Told]:
    answers: queue.SimpleQueue[Told] = queue.SimpleQueue()
    recording.start(seconds, max_packet, lambda result, why: answers.put((result, why)))
    return answers


def filled(frames: int) -> SpanRecorder:
    """Spans as those of a stream whose stages take times that do not repeat."""
    recorder = SpanRecorder()
    at_ns = recorder.began_ns
    for number in range(frames):
        took = (number * 7919) % 100_003
        add_stages(
            recorder, at_ns, StageTimes(0, 1000 + took, 300_000 + took, 9_000_000 + took * 50, took, took), number
        )
        at_ns += 60_000_000 + took
    return recorder


def test_what_threads_do_meanwhile_is_in_the_trace() -> None:
    recording = TraceRecording("porch")
    answers = started(recording, 100.0)
    wait_for(is_recording)
    with spans.span("commit"):
        time.sleep(0.01)
    assert recording.end()
    result, why = answers.get(timeout=60)
    assert not is_recording()
    assert (why, result is not None) == ("", True)
    assert result is not None
    process, (commit,) = unpacked(result)
    assert (process, commit.thread, commit.name) == ("vedette porch", "MainThread", "commit")
    assert 10_000 <= commit.end - commit.ts < 9_000_000, "in microseconds"
    assert (result["spans"], result["dropped"]) == (1, 0)


def test_a_second_one_is_refused_while_one_is_recorded() -> None:
    recording = TraceRecording("porch")
    answers = started(recording, 100.0)
    with pytest.raises(CommandError, match=r"already, for \d+ s more"):
        started(recording, 0.1)
    wait_for(recording.end)
    answers.get(timeout=60)
    assert started(recording, 0.01).get(timeout=60)[1] == ""


def test_a_trace_can_be_ended_early_and_is_answered_with_what_there_is() -> None:
    recording = TraceRecording("porch")
    assert not recording.end()
    answers = started(recording, 100.0)
    wait_for(is_recording)
    assert recording.end()
    result, why = answers.get(timeout=60)
    assert (result is not None, why, is_recording()) == (True, "", False)
    assert started(recording, 0.01).get(timeout=60)[1] == ""


def test_a_daemon_that_stops_ends_it_without_an_answer() -> None:
    recording = TraceRecording("porch")
    answers = started(recording, 100.0)
    wait_for(is_recording)
    recording.stop()
    wait_for(lambda: not is_recording())
    wait_for(lambda: not any(one.name == "trace" for one in threading.enumerate()))
    assert answers.empty()


def test_an_internal_error_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "pack", lambda *_: 1 // 0)
    result, why = started(TraceRecording("porch"), 0.01).get(timeout=60)
    assert (result, "ZeroDivisionError" in why) == (None, True)


def test_all_that_is_kept_fits_into_a_message_or_its_first_part_does() -> None:
    recorder = filled(3000)
    result = pack(recorder, MAIN, "porch", module.LARGEST)
    assert len(result["trace"]) <= module.LARGEST
    assert result["spans"] + result["dropped"] == len(recorder.spans) + recorder.dropped
    assert result["spans"] > 10_000
    _, slices = unpacked(result)
    assert len(slices) == result["spans"]
    assert max(one.end for one in slices) / 1e6 == pytest.approx(result["covered_s"], abs=1e-3)


@pytest.mark.parametrize("most", [100_000, 20_000, 2_000, 1])
def test_a_smaller_message_has_the_first_part(most: int) -> None:
    recorder = filled(1500)
    result = pack(recorder, MAIN, "porch", most)
    assert len(result["trace"]) <= most or result["spans"] == 0
    _, slices = unpacked(result)
    whole = unpacked(pack(recorder, MAIN, "porch", 10**9))[1]
    assert [one for one in whole if one in slices][: len(slices)] == slices


@given(
    st.lists(
        st.tuples(st.integers(-(10**9), 10**12), st.lists(st.integers(0, 10**9), min_size=5, max_size=5)),
        max_size=20,
    )
)
def test_whatever_the_clock_says_slices_are_nested_or_apart(frames: list[tuple[int, list[int]]]) -> None:
    recorder = SpanRecorder()
    at_ns = recorder.began_ns
    for pause, stages in frames:
        at_ns += max(pause, 0)
        add_stages(recorder, at_ns, StageTimes(0, *stages), 1)
        at_ns += sum(stages)
    assert unpacked(pack(recorder, MAIN, "porch", module.LARGEST))[0] == "vedette porch"


def test_a_span_that_began_before_the_trace_begins_with_it() -> None:
    recorder = SpanRecorder()
    recorder.add("wait", recorder.began_ns - 5_000_000, recorder.began_ns + 2_000_000)
    _, (wait,) = unpacked(pack(recorder, {}, "porch", module.LARGEST))
    assert (wait.ts, wait.end) == (0, 2000)
    assert wait.thread.startswith("thread ")
