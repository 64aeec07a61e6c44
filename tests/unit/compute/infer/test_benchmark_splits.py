"""What several streams get with each number of threads: real workers, and the rule that chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.compute.infer import benchmark
from agent.compute.infer.benchmark import measure_splits
from agent.compute.infer.chain import TimingRun
from agent.compute.infer.choice import WORTH_A_THREAD, SplitMeasurement, best_split
from agent.compute.infer.litert import side_by_side
from agent.compute.infer.worker import WorkerSession
from agent.errors import BackendError
from agent.models.library import open_model
from tests.support.doubles import person_model

measurements = st.builds(
    SplitMeasurement,
    st.integers(1, 4),
    st.integers(1, 4),
    st.just(1),
    per_s=st.floats(0.0, 1e3),
    cpu_ms=st.floats(0.1, 1e3),
    refused=st.sampled_from(["", "", "crashed"]),
)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "SPLIT_TURN_S", 0.05)


@pytest.mark.parametrize("spare_mb", [1e9, 1.0])
def test_each_way_is_measured_with_all_streams(tmp_path: Path, spare_mb: float) -> None:
    model = open_model(str(person_model(tmp_path)))
    told: list[str] = []
    found = measure_splits(model, 3, 2, 4, spare_mb=spare_mb, turns=2, progress=told.append)
    assert [(one.streams, one.threads, one.at_once) for one in found] == [(3, 1, 2), (3, 2, 2)]
    assert all(one.per_s > 0 and one.cpu_ms > 0 and not one.refused for one in found)
    assert all(one.latency_ms == pytest.approx(3e3 / one.per_s) for one in found)
    assert set(told) == {"3 streams, 1 thread each", "3 streams, 2 threads each"}


def test_a_way_that_fails_is_refused_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, real = open_model(str(person_model(tmp_path))), WorkerSession.time_turn
    threads: dict[int, int] = {}

    def time_turn(session: WorkerSession, seconds: float) -> TimingRun:
        if threads[session.pid] == 2:
            raise BackendError("it crashed")
        return real(session, seconds)

    init = WorkerSession.__init__

    def remember(session: WorkerSession, *args: Any, **more: Any) -> None:
        init(session, *args, **more)
        threads[session.pid] = args[2].threads

    monkeypatch.setattr(WorkerSession, "__init__", remember)
    monkeypatch.setattr(WorkerSession, "time_turn", time_turn)
    one, two = measure_splits(model, 2, 2, 2, turns=2)
    assert (one.refused, two.refused) == ("", "it crashed")
    assert best_split([one, two], 2, "latency") == one


def test_where_none_runs_the_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def time_turn(session: WorkerSession, seconds: float) -> TimingRun:
        raise BackendError("it crashed")

    model = open_model(str(person_model(tmp_path)))
    monkeypatch.setattr(WorkerSession, "time_turn", time_turn)
    with pytest.raises(BackendError, match="crashed"):
        measure_splits(model, 2, 2, 2)


@given(st.lists(measurements, max_size=8), st.integers(1, 8))
def test_the_best_is_one_that_runs_and_none_is_much_better(found: list[SplitMeasurement], streams: int) -> None:
    best = best_split(found, streams, "latency")
    usable = [one for one in found if not one.refused and one.per_s > 0]
    assert (best is None) == (not usable)
    if best is not None:
        same = [one for one in usable if one.streams == best.streams]
        assert all(abs(best.streams - streams) <= abs(one.streams - streams) for one in usable)
        assert best.per_s >= WORTH_A_THREAD ** len(same) * max(one.per_s for one in same)


def test_more_threads_must_be_worth_it() -> None:
    one = SplitMeasurement(2, 1, 2, per_s=100.0, cpu_ms=10.0)
    two = replace(one, threads=2, per_s=102.0, cpu_ms=9.0)
    assert best_split([two, one], 2, "latency") == one
    assert best_split([two, one], 2, "energy") == two
    assert best_split([replace(two, per_s=110.0), one], 7, "latency") == replace(two, per_s=110.0)


def test_so_many_inferences_keep_the_cores_busy() -> None:
    assert [side_by_side(4, threads) for threads in (1, 2, 3, 4)] == [4, 3, 2, 2]
    assert side_by_side(1, 4) == 2
