"""Verdicts on parts: what a picture says, how several are joined, and what happens when something is missing."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.comms.messages import PartVerdict
from agent.config.features import InspectionConfig
from agent.errors import ConfigError
from agent.features.inspection.checks import check_inspection, check_labels
from agent.features.inspection.rules import (
    OPEN_MAX,
    ClosedPart,
    Counters,
    Inspector,
    ViewJudgement,
    counted,
    judge_view,
    touches_edge,
)
from agent.types import Detection

AT = datetime(2026, 11, 28, 10, 0, tzinfo=UTC)
S = 1_000_000_000
OK = ViewJudgement("ok", "good", 0.0, ())
NG = ViewJudgement("ng", "scratch", 0.9, (Detection("scratch", 0.9),))
UNSURE = ViewJudgement("unsure", "between", 0.5, (Detection("scratch", 0.5),))


def config(**keys: Any) -> InspectionConfig:
    return InspectionConfig(**{"trigger": "command", **keys})


def verdict(closed: ClosedPart | None) -> tuple[str, str]:
    assert closed is not None
    return closed.verdict.verdict, closed.verdict.reason


CASES: list[tuple[list[Detection], dict[str, Any], tuple[str, str]]] = [
    ([], {}, ("ok", "good")),
    ([Detection("scratch", 0.9)], {}, ("ng", "scratch")),
    ([Detection("scratch", 0.5)], {}, ("unsure", "between")),
    ([Detection("scratch", 0.6)], {}, ("ng", "scratch")),
    ([Detection("dust", 0.9)], {"ng_labels": ("scratch",)}, ("ok", "good")),
    ([Detection("dust", 0.7), Detection("scratch", 0.8)], {}, ("ng", "scratch")),
    ([Detection("ok_front", 0.9)], {"ok_labels": ("ok_front",)}, ("ok", "good")),
    ([Detection("ok_front", 0.5)], {"ok_labels": ("ok_front",)}, ("unsure", "between")),
    ([], {"ok_labels": ("ok_front",)}, ("unsure", "not found")),
    ([Detection("ok_front", 0.9), Detection("scratch", 0.7)], {"ok_labels": ("ok_front",)}, ("ng", "scratch")),
    ([Detection("nut", 0.9, (0.0, 0.2, 0.3, 0.6))], {"ok_labels": ("nut",)}, ("unsure", "half in view")),
    ([Detection("nut", 0.9, (0.1, 0.2, 0.3, 0.6))], {"ok_labels": ("nut",)}, ("ok", "good")),
    (
        [Detection("nut", 0.9, (0.25, 0.3, 0.4, 0.6))],
        {"ok_labels": ("nut",), "crop": (0.25, 0.0, 1.0, 1.0)},
        ("unsure", "half in view"),
    ),
]


@pytest.mark.parametrize(("found", "keys", "wanted"), CASES)
def test_a_picture_says(found: list[Detection], keys: dict[str, Any], wanted: tuple[str, str]) -> None:
    judged = judge_view(found, config(**keys))
    assert (judged.verdict, judged.reason) == wanted


def test_a_part_that_reaches_out_of_the_picture_is_never_ok() -> None:
    assert judge_view([], config(), is_cut=True).reason == "half in view"


def test_a_defect_of_a_part_that_reaches_out_of_the_picture_is_one() -> None:
    assert judge_view([Detection("scratch", 0.9)], config(), is_cut=True).verdict == "ng"


def opened(*parts: tuple[str, float], **keys: Any) -> Inspector:
    inspector = Inspector(config(**keys))
    for key, (name, at_s) in enumerate(parts):
        assert inspector.trigger(key, name, round(at_s * S), round(at_s * S), AT) == []
    return inspector


def test_a_part_without_a_defect_in_all_its_pictures_is_ok() -> None:
    inspector = opened(("a", 1.0), views=3, view_every_s=0.1)
    shots = [round(at * S) for at in (0.9, 1.0, 1.05, 1.1, 1.2)]
    taken = [shot for shot in shots if inspector.wants(shot) and not inspector.add(shot, shot, OK)]
    assert taken == [1 * S, round(1.1 * S)]
    closed = inspector.due(10 * S)
    assert closed == []  # the third picture has closed it


def test_pictures_from_before_the_trigger_and_its_delay_are_not_of_the_part() -> None:
    inspector = opened(("a", 1.0), delay_s=0.5)
    assert [inspector.wants(round(at * S)) for at in (0.9, 1.2, 1.5)] == [False, False, True]


def test_a_defect_in_one_picture_is_enough_and_ends_the_part_at_once() -> None:
    inspector = opened(("a", 1.0), views=3)
    assert inspector.add(1 * S, 1 * S, OK) is None
    assert verdict(inspector.add(2 * S, round(1.1 * S), NG)) == ("ng", "scratch")
    assert not inspector.wants(3 * S)


def test_a_doubt_in_one_picture_is_not_outvoted() -> None:
    inspector = opened(("a", 1.0), views=2)
    assert inspector.add(1 * S, 1 * S, UNSURE) is None
    closed = inspector.add(2 * S, round(1.1 * S), OK)
    assert verdict(closed) == ("unsure", "between")
    assert closed is not None
    assert (closed.verdict.score, closed.verdict.views) == (0.5, 2)


def test_a_part_without_a_picture_is_unsure_at_its_deadline() -> None:
    inspector = opened(("a", 1.0), deadline_s=0.5)
    assert inspector.next_due_ns == round(1.5 * S)
    assert inspector.due(round(1.49 * S)) == []
    (closed,) = inspector.due(round(1.5 * S))
    assert verdict(closed) == ("unsure", "no picture")
    assert closed.triggered_ns == 1 * S
    assert opened().next_due_ns is None


def test_a_part_with_too_few_pictures_is_unsure() -> None:
    inspector = opened(("a", 1.0), views=2)
    assert inspector.add(1 * S, 1 * S, OK) is None
    assert verdict(inspector.due(5 * S)[0]) == ("unsure", "too few pictures")


def test_an_answer_that_comes_after_the_deadline_is_unsure() -> None:
    inspector = opened(("a", 1.0), deadline_s=0.5)
    assert verdict(inspector.add(1 * S, round(1.6 * S), OK)) == ("unsure", "late")


def test_a_defect_that_is_found_too_late_is_one() -> None:
    inspector = opened(("a", 1.0), deadline_s=0.5)
    assert verdict(inspector.add(1 * S, round(1.6 * S), NG)) == ("ng", "scratch")


def test_the_next_part_takes_over_when_its_pictures_begin() -> None:
    inspector = opened(("a", 1.0), ("b", 1.2), views=2, delay_s=0.5)
    assert inspector.add(round(1.5 * S), round(1.5 * S), OK) is None
    assert inspector.overtaken(round(1.6 * S)) == []
    assert verdict(inspector.overtaken(round(1.7 * S))[0]) == ("unsure", "overtaken")
    assert inspector.wants(round(1.7 * S))
    assert inspector.add(round(1.7 * S), round(1.7 * S), OK) is None


def test_what_is_open_at_a_stop_is_unsure() -> None:
    inspector = opened(("a", 1.0), ("b", 1.2))
    assert [verdict(one) for one in inspector.finish("shutdown")] == [("unsure", "shutdown")] * 2
    assert inspector.finish("shutdown") == []


def test_a_flood_of_triggers_closes_the_oldest_parts() -> None:
    inspector = opened(*((str(number), 1.0 + number) for number in range(OPEN_MAX)))
    (closed,) = inspector.trigger(-1, "more", 100 * S, 100 * S, AT)
    assert closed.verdict.part == "0"


@given(
    triggers=st.lists(st.integers(0, 200), max_size=20),
    shots=st.lists(st.tuples(st.integers(0, 300), st.sampled_from([OK, NG, UNSURE])), max_size=60),
    views=st.integers(1, 4),
)
def test_every_part_has_exactly_one_verdict(
    triggers: list[int], shots: list[tuple[int, ViewJudgement]], views: int
) -> None:
    inspector, closed = Inspector(config(views=views, deadline_s=0.05)), []
    steps = [(at, str(number)) for number, at in enumerate(triggers)]
    both: list[tuple[int, str | ViewJudgement]] = [*steps, *shots]
    for at, what in sorted(both, key=lambda one: one[0]):
        now = at * 10_000_000
        closed += inspector.due(now)
        if isinstance(what, str):
            closed += inspector.trigger(int(what), what, now, now, AT)
            continue
        closed += inspector.overtaken(now)
        if inspector.wants(now) and (one := inspector.add(now, now, what)):
            closed.append(one)
    closed += inspector.finish("ended")
    assert sorted(one.verdict.part for one in closed) == sorted(name for _, name in steps)
    assert all(one.verdict.views == views for one in closed if one.verdict.verdict == "ok")


@given(st.tuples(*[st.floats(0.0, 1.0)] * 4))
def test_a_box_inside_by_a_hundredth_touches_no_edge(box: tuple[float, float, float, float]) -> None:
    inside = all(0.01 <= value <= 0.99 for value in box)
    assert not (inside and touches_edge(box))


def test_parts_are_judged_in_the_order_of_their_windows() -> None:
    inspector = opened(("late", 2.0), ("early", 1.9))
    closed = inspector.add(2 * S, 2 * S, OK)
    assert closed is not None
    assert closed.verdict.part == "early"
    assert inspector.next_due_ns == 3 * S


def test_a_deadline_that_passes_first_is_kept_whatever_is_open_before() -> None:
    inspector = Inspector(config(deadline_s=0.5))
    inspector.trigger(1, "a", 1 * S, 9 * S, AT)  # a replay: its clock is another
    inspector.trigger(2, "b", 2 * S, 2 * S, AT)
    assert [one.key for one in inspector.due(3 * S)] == [2]


BAD: dict[str, dict[str, Any]] = {
    "region: trigger": {"trigger": "region"},
    "inspection.region": {"trigger": "command", "region": (0.1, 0.1, 0.2, 0.2)},
    "region: .* sides": {"trigger": "region", "region": (0.1, 0.1, 0.10001, 0.2)},
    "reaches out of `crop`": {"trigger": "region", "region": (0.1, 0.1, 0.2, 0.2), "crop": (0.5, 0, 1, 1)},
    "crop: .* sides": {"crop": (0.5, 0.0, 0.5, 1.0)},
    "views": {"trigger": "every", "views": 2},
    "delay_s": {"trigger": "every", "delay_s": 0.1},
    "reject": {"trigger": "gpio:17", "reject": "gpio:17"},
    "reject_after_s": {"reject": "gpio:22", "reject_after_s": 0.5},
    "deadline_s": {"views": 5, "view_every_s": 0.3},
    "ng_labels": {"ng_labels": ("a",), "ok_labels": ("a",)},
}


@pytest.mark.parametrize("named", BAD)
def test_a_contradiction_is_refused_by_its_key(named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        check_inspection(config(**BAD[named]))


def test_labels_and_scores_that_do_not_fit_the_model_are_refused() -> None:
    with pytest.raises(ConfigError, match="never finds 'wrong'"):
        check_labels(config(ng_labels=("wrong",)), ("scratch", "ok"), 0.0, tells_classes=False)
    with pytest.raises(ConfigError, match="ng_score"):
        check_labels(config(), (), 0.9, tells_classes=False)
    with pytest.raises(ConfigError, match="ok_labels: the model tells"):
        check_labels(config(), ("bad", "good"), 0.0, tells_classes=True)


def test_a_camera_that_is_too_slow_for_the_pictures_is_refused() -> None:
    check_inspection(config(views=5))
    with pytest.raises(ConfigError, match="max_fps take 4 s"):
        check_inspection(config(views=5), max_fps=1.0)


def test_a_usual_configuration_is_taken() -> None:
    usual = config(trigger="gpio:17", reject="gpio:22", reject_after_s=1.5, ok_labels=("ok",))
    check_inspection(usual)
    check_labels(usual, ("scratch", "ok"), 0.4, tells_classes=True)


def part(kind: Any, reason: str = "good", *, rejected: bool = False) -> PartVerdict:
    return PartVerdict("a", kind, reason, 0.0, 1, AT, (), rejected)


def test_parts_are_counted_by_verdict_and_reason() -> None:
    counters = Counters()
    for one in (part("ok"), part("ng", "scratch", rejected=True), part("ng", "scratch"), part("unsure", "late")):
        counters = counted(counters, one)
    assert counters == Counters(1, 2, 1, 1, {"scratch": 2, "late": 1}, "unsure")


def test_no_more_reasons_are_counted_than_a_message_can_hold() -> None:
    counters = Counters()
    for number in range(100):
        counters = counted(counters, part("ng", f"label {number}"))
    assert (counters.ng, len(counters.reasons)) == (100, 64)
