"""Spans of the stages of one input, for a trace."""

from __future__ import annotations

from agent.spans import SpanRecorder
from agent.types import StageTimes

_IN_TURN = ("gate", "prepare", "infer", "decode", "track", "secondary")


def add_stages(recorder: SpanRecorder, began_ns: int, stages: StageTimes, number: int) -> None:
    """Add a span `frame` and in it one for each stage that ran; they follow one another without a pause.

    Args:
        recorder: of the trace.
        began_ns: when the first stage began, CLOCK_MONOTONIC, ns.
        stages: durations; the time in the queue was spent on another thread, and is not shown.
        number: of the picture, or of the first sample.
    """
    at_ns = began_ns
    for name in _IN_TURN:
        took_ns: int = getattr(stages, name)
        if took_ns > 0:
            recorder.add(name, at_ns, at_ns + took_ns)
            at_ns += took_ns
    recorder.add("frame", began_ns, at_ns, number)
