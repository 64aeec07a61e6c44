"""When new models may take the place of those in use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.health import DaemonHealth, ShadowReport, StreamReport
from agent.update.bundle import HealthGate, ShadowGate
from agent.update.install.health_check import Observation, ShadowTrial, TrialDecision

GATE = ShadowGate(agreement=0.9, compared=50, within_s=600)
HEALTH = HealthGate(p95_factor=1.5, p95_floor_ms=5.0)
GOOD = ShadowReport(50, 0.95, 25.0, 20.0)
STREAM = StreamReport("running", inferred=10, infer_p95_ms=20.0, shadow=GOOD)


def judge() -> ShadowTrial:
    return ShadowTrial("12ab", GATE, HEALTH, began_s=0.0)


def seen(shadow: ShadowReport | None = GOOD, update: str = "12ab", **changes: object) -> Observation:
    front = replace(STREAM, **{"shadow": shadow, **changes})
    return Observation(DaemonHealth("1.0", 7, "", 0.0, True, 100.0, {"front": front}, update))


def test_models_that_agree_often_enough_and_in_time_may_go_on() -> None:
    one = judge()
    assert one.evaluate(1.0, seen()) == TrialDecision("commit")
    assert one.agreement == {"front": 0.95}


@pytest.mark.parametrize(
    ("shadow", "why"),
    [
        (
            replace(GOOD, agreement=0.62),
            "agrees by 0.62 with the one in use in 50 answers, expected at least",
        ),
        (replace(GOOD, infer_p95_ms=30.1), "infers in 30.1 ms (p95), 30.0 are allowed: 20.0 for the one in use"),
        (ShadowReport(failed="killed by signal 11"), "fails beside the one in use: killed by signal 11"),
    ],
)
def test_what_does_not_hold_is_refused_at_once(shadow: ShadowReport, why: str) -> None:
    outcome = judge().evaluate(1.0, seen(shadow))
    assert outcome.verdict == "roll back"
    assert outcome.reason.startswith("stream front: the new model ")
    assert why in outcome.reason


def test_a_little_time_is_not_looked_at() -> None:
    assert judge().evaluate(1.0, seen(ShadowReport(50, 1.0, 4.9, 0.5))).verdict == "commit"


def test_too_few_answers_are_waited_for_until_the_time_is_over() -> None:
    one, few = judge(), seen(replace(GOOD, compared=26, agreement=0.1))
    waits = one.evaluate(599.0, few)
    assert waits == TrialDecision("wait", "stream front: 50 % of 50 answers with a result")
    assert one.evaluate(600.0, few) == TrialDecision("roll back", f"undecided after 600 s: {waits.reason}")


@pytest.mark.parametrize(
    ("blind", "why"),
    [
        (Observation(None), "does not run the new models"),
        (seen(update=""), "does not run the new models"),
        (seen(update="other"), "does not run the new models"),
        (seen(None), "no stream that infers uses one of the models that change"),
        (seen(None, inferred=0), "stream front has not inferred yet"),
        (seen(state="lost"), "no stream that infers uses one"),
    ],
)
def test_where_nothing_is_compared_for_a_minute_on_end_they_are_refused(blind: Observation, why: str) -> None:
    one, few = judge(), seen(replace(GOOD, compared=1))
    assert why in one.evaluate(59.0, blind).reason
    assert one.evaluate(100.0, few).verdict == "wait"
    assert one.evaluate(101.0, blind).verdict == "wait"
    assert one.evaluate(160.0, blind).verdict == "wait"
    outcome = one.evaluate(161.0, blind)
    assert outcome.verdict == "roll back"
    assert why in outcome.reason


def test_a_service_that_ends_by_itself_meanwhile_refuses_them() -> None:
    outcome = judge().evaluate(1.0, replace(seen(), failures=1, why="signal"))
    assert outcome.verdict == "roll back"
    assert outcome.reason.startswith("the service ended by itself: signal; see")


def test_every_stream_that_uses_one_has_to_hold() -> None:
    streams = {"front": STREAM, "attic": replace(STREAM, shadow=replace(GOOD, compared=10))}
    health = DaemonHealth("1.0", 7, "", 0.0, True, 100.0, streams, "12ab")
    assert judge().evaluate(1.0, Observation(health)).reason.startswith("stream attic: 20 % of 50")


def test_a_stream_that_has_not_inferred_yet_is_waited_for() -> None:
    attic = replace(STREAM, state="starting", inferred=0, shadow=None)
    health = DaemonHealth("1.0", 7, "", 0.0, True, 100.0, {"front": STREAM, "attic": attic}, "12ab")
    assert judge().evaluate(1.0, Observation(health)) == TrialDecision(
        "wait", "stream attic has not inferred yet"
    )


@given(
    st.integers(0, 200), st.none() | st.floats(0, 1), st.none() | st.floats(0, 1e4), st.none() | st.floats(0, 1e4)
)
def test_none_goes_on_that_has_not_shown_all(
    compared: int, agreement: float | None, infer_ms: float | None, present_ms: float | None
) -> None:
    outcome = judge().evaluate(1.0, seen(ShadowReport(compared, agreement, infer_ms, present_ms)))
    holds = compared >= 50 and (agreement or 0.0) >= 0.9
    in_time = infer_ms is None or present_ms is None or infer_ms <= max(5.0, 1.5 * present_ms)
    assert (outcome.verdict == "commit") == (holds and in_time)
