"""When a new version may stay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.health import DaemonHealth, StreamReport
from agent.update.bundle import HealthGate
from agent.update.install.health_check import (
    Baseline,
    DaemonBefore,
    HealthTrial,
    Observation,
    TrialDecision,
    baseline,
)

GATE = HealthGate(steady_s=10, within_s=60, p95_factor=1.5, p95_floor_ms=5.0, memory_mb=200)
FRONT = StreamReport("running", inferred=10, infer_p95_ms=20.0)
WELL = DaemonHealth("2.0", 7, "", 0.0, True, 100.0, {"front": FRONT})
BEFORE = Baseline({"front": 20.0}, known=True)


def trial(before: Baseline = BEFORE, version: str = "2.0") -> HealthTrial:
    return HealthTrial(GATE, before, version, began_s=0.0)


def with_stream(**changes: object) -> DaemonHealth:
    return replace(WELL, streams={"front": replace(WELL.streams["front"], **changes)})


def test_a_version_that_is_well_for_long_enough_stays() -> None:
    one = trial()
    assert one.evaluate(3.0, Observation(WELL)).verdict == "wait"
    assert one.evaluate(12.9, Observation(WELL)).verdict == "wait"
    assert one.evaluate(13.0, Observation(WELL)) == TrialDecision("commit")
    assert one.ready_at == 3.0


def test_the_daemon_of_before_is_none_of_the_same_version() -> None:
    """It is well while systemd stops it: nothing is known of the new one."""
    one = HealthTrial(GATE, BEFORE, "2.0", 0.0, replaced=7)
    for now in (0.0, 10.0, 20.0):
        outcome = one.evaluate(now, Observation(WELL))
        assert outcome == TrialDecision("wait", "the previous daemon has not stopped yet")
    assert one.evaluate(21.0, Observation(replace(WELL, pid=8))).verdict == "wait"
    assert one.ready_at == 21.0
    assert one.evaluate(31.0, Observation(replace(WELL, pid=8))).verdict == "commit"
    assert (
        HealthTrial(GATE, BEFORE, "2.0", 0.0, replaced=7).evaluate(60.0, Observation(WELL)).verdict == "roll back"
    )


def test_what_was_unwell_in_between_begins_anew() -> None:
    one = trial()
    one.evaluate(0.0, Observation(WELL))
    one.evaluate(9.0, Observation(None))
    assert one.evaluate(11.0, Observation(WELL)).verdict == "wait"
    assert one.evaluate(21.0, Observation(WELL)).verdict == "commit"


def test_a_version_that_ends_by_itself_is_rolled_back_at_once() -> None:
    outcome = trial().evaluate(1.0, Observation(WELL, 1, "signal"))
    assert outcome.verdict == "roll back"
    assert outcome.reason.startswith("the service ended by itself: signal; see")
    assert (
        trial()
        .evaluate(1.0, Observation(WELL, 1, "success"))
        .reason.startswith("the service ended by itself; see")
    )
    assert "2 times" in trial().evaluate(1.0, Observation(WELL, 2, "signal")).reason


@pytest.mark.parametrize(
    ("health", "why"),
    [
        (None, "does not report its health"),
        (replace(WELL, version="1.0"), "version 1.0 runs, not 2.0"),
        (replace(with_stream(inferred=0), ready=False), "stream front has not inferred yet"),
        (replace(WELL, ready=False), "not ready: it is starting"),
        (replace(WELL, streams={}), "stream front is gone"),
        (with_stream(state="lost", detail="no camera"), "stream front is lost: no camera"),
        (with_stream(state="failed"), "stream front is failed"),
        (with_stream(inferred=0), "stream front has not inferred yet"),
        (with_stream(infer_p95_ms=30.1), "30.1 ms (p95), 30.0 are allowed: 20.0 before"),
        (replace(WELL, rss_mb=201.0), "201 MB of memory, 200 are allowed"),
    ],
)
def test_one_that_is_not_well_waits_and_is_rolled_back_when_its_time_is_over(
    health: DaemonHealth | None, why: str
) -> None:
    one = trial()
    waits = one.evaluate(59.0, Observation(health))
    assert waits.verdict == "wait"
    assert why in waits.reason
    ends = one.evaluate(60.0, Observation(health))
    assert ends.verdict == "roll back"
    assert ends.reason == f"not healthy within 60 s: {waits.reason}"


@pytest.mark.parametrize(
    "health",
    [
        with_stream(state="degraded"),
        with_stream(state="disabled"),
        with_stream(infer_p95_ms=None),
        replace(WELL, streams={**WELL.streams, "attic": StreamReport("lost", "no camera")}),
    ],
)
def test_what_was_not_well_before_or_is_not_to_run_says_nothing_against_it(health: DaemonHealth) -> None:
    one = trial()
    assert one.evaluate(0.0, Observation(health)).verdict == "wait"
    assert one.evaluate(10.0, Observation(health)).verdict == "commit"


def test_times_below_the_floor_are_not_looked_at() -> None:
    one = trial(Baseline({"front": 0.5}, known=True))
    one.evaluate(0.0, Observation(with_stream(infer_p95_ms=4.9)))
    assert one.evaluate(10.0, Observation(with_stream(infer_p95_ms=4.9))).verdict == "commit"


def test_without_a_daemon_before_every_stream_has_to_be_well() -> None:
    two = replace(WELL, streams={**WELL.streams, "attic": StreamReport("lost", "no camera")})
    assert baseline(None) == Baseline()
    assert "attic is lost" in trial(Baseline()).evaluate(0.0, Observation(two)).reason
    assert baseline(two).streams == {"front": 20.0}


def test_models_are_tried_on_any_version() -> None:
    one = trial(version="")
    assert one.evaluate(0.0, Observation(replace(WELL, version="1.0"))).reason.startswith("healthy; ")


def test_what_the_daemon_refuses_after_it_has_taken_the_models_up_is_somebody_elses() -> None:
    one = HealthTrial(GATE, BEFORE, "", 0.0, asked=DaemonBefore(7, 3))
    assert "has not loaded" in one.evaluate(0.0, Observation(replace(WELL, reloads=3))).reason
    assert one.evaluate(1.0, Observation(replace(WELL, reloads=4))).reason.startswith("healthy; ")
    typo = replace(WELL, reloads=5, reload_refused="vedette.toml:3: a typo")
    assert one.evaluate(2.0, Observation(typo)).reason.startswith("healthy; ")
    assert (
        HealthTrial(GATE, BEFORE, "", 0.0, asked=DaemonBefore(7, 3)).evaluate(2.0, Observation(typo)).verdict
        == "roll back"
    )


def test_one_that_is_well_now_and_then_comes_to_an_end() -> None:
    one, outcome, now = trial(), TrialDecision("wait"), 0.0
    while outcome.verdict == "wait":
        outcome = one.evaluate(now, Observation(WELL if int(now) % 8 else None))
        now += 1.0
        assert now < 100
    assert outcome.verdict == "roll back"


@given(st.lists(st.tuples(st.floats(0.1, 5.0), st.booleans(), st.booleans()), max_size=60))
def test_it_is_kept_only_after_it_was_well_on_end(looks: list[tuple[float, bool, bool]]) -> None:
    one, now, well_since = trial(), 0.0, None
    for pause, is_well, fails in looks:
        now += pause
        outcome = one.evaluate(now, Observation(WELL if is_well else None, int(fails)))
        well_since = (now if well_since is None else well_since) if is_well and not fails else None
        if outcome.verdict == "commit":
            assert well_since is not None
            assert now - well_since >= GATE.steady_s
        if outcome.verdict != "wait":
            return
        assert not fails
