"""What a stream counts of its stages, and the spans of an input."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.daemon.streams.counters import BOUNDS_S, StageTimer, StreamMetrics
from agent.daemon.streams.pipeline import add_stages
from agent.spans import SpanRecorder
from agent.types import StageTimes, StreamResult

MS = 1_000_000
RAN = StreamResult([], [], StageTimes(1 * MS, 2 * MS, 3 * MS, 8 * MS, 5 * MS, 6 * MS))
GATED = StreamResult([], None, StageTimes(1 * MS, 2 * MS, track=6 * MS))


def counted(metrics: StreamMetrics) -> dict[str, int]:
    return {stage: sum(timer.counts) for stage, timer in metrics.stages.items() if any(timer.counts)}


def test_a_closed_gate_counts_no_stage_that_did_not_run() -> None:
    metrics = StreamMetrics()
    for result in (RAN, GATED, GATED):
        metrics.add(result, 1)
    assert (metrics.frames, metrics.gated, metrics.inferences) == (3, 2, 1)
    assert counted(metrics) == {"queue": 3, "gate": 3, "prepare": 1, "infer": 1, "decode": 1, "track": 3}


def test_a_picture_that_the_governor_leaves_out_is_not_one_of_a_closed_gate() -> None:
    metrics = StreamMetrics()
    metrics.add(StreamResult([], None, GATED.stages, predicted=[]), 1)
    assert (metrics.frames, metrics.gated, metrics.predicted, metrics.inferences) == (1, 0, 1, 0)


def test_the_newest_times_are_of_the_current_run_and_totals_stay() -> None:
    metrics = StreamMetrics()
    metrics.add(RAN, 2)
    assert metrics.p95_ms() == {
        "queue": 1.0,
        "gate": 2.0,
        "prepare": 3.0,
        "infer": 4.0,
        "decode": 5.0,
        "track": 6.0,
    }
    metrics.begin_run()
    assert metrics.p95_ms() == {}
    assert metrics.latency.p95_ms is None
    assert counted(metrics)["infer"] == 1


@given(st.lists(st.integers(-(10**6), 10**12), max_size=50))
def test_every_time_is_in_the_bucket_of_its_bound(times: list[int]) -> None:
    timer = StageTimer()
    for one in times:
        timer.add(one)
    total = 0
    for bound, count in zip((*BOUNDS_S, float("inf")), timer.counts, strict=True):
        total += count
        assert total == sum(max(0, one) <= bound * 1e9 for one in times)
    assert timer.sum_ns == sum(max(0, one) for one in times)


def test_the_stages_of_a_frame_lie_in_it_one_after_the_other() -> None:
    recorder = SpanRecorder()
    add_stages(recorder, 100 * MS, RAN.stages, 7)
    *stages, frame = recorder.spans
    assert [one.name for one in stages] == ["gate", "prepare", "infer", "decode", "track"]
    assert (frame.name, frame.number, frame.began_ns) == ("frame", 7, 100 * MS)
    at_ns = frame.began_ns
    for one in stages:
        assert one.began_ns == at_ns
        at_ns = one.ended_ns
    assert at_ns == frame.ended_ns


def recent(*ms: float) -> StageTimer:
    kept = StageTimer()
    for one in ms:
        kept.add(round(one * 1e6))
    return kept


@pytest.mark.parametrize(
    ("ms", "p95_ms"),
    [
        ((), None),
        ((7.5,), 7.5),
        ((1.0, 9.0), 9.0),
        (tuple(range(1, 21)), 19.0),
        (tuple(range(1, 101)), 95.0),
        ((*[500.0] * 300, *[2.0] * 256), 2.0),
        ((*[2.0] * 300, *[500.0] * 13), 500.0),
        ((*[2.0] * 300, *[500.0] * 12), 2.0),
    ],
)
def test_the_quantile_is_that_of_the_newest(ms: tuple[float, ...], p95_ms: float | None) -> None:
    assert recent(*ms).p95_ms == p95_ms
