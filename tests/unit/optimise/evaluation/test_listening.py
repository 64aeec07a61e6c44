"""Rates of words at any threshold: the replayed events, which event hears which word, and intervals."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.decode.classes import Keyword
from agent.compute.decode.decoder import DecoderContext
from agent.compute.manifest import OutputManifest
from agent.compute.tflite.model import TensorSpec
from agent.config import DecodeConfig
from agent.optimise.evaluation.listening import (
    AFTER_S,
    AnswerRecorder,
    HeardWord,
    RatePoint,
    curve_point,
    judge,
    point_for_alarms,
    poisson_interval,
    rate_point,
    replay,
)
from agent.optimise.evaluation.sound_data import SpokenWord

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LABELS = ("yes", "no", "unknown")
EVERY_S = 0.1


def recorder(threshold: float, mean_of: int, refractory_s: float) -> AnswerRecorder:
    options = {"mean_of": mean_of, "refractory_s": refractory_s}
    output = OutputManifest("keyword", LABELS, threshold, options=options)
    specs = (TensorSpec("scores", (1, len(LABELS)), "float32"),)
    return AnswerRecorder(Keyword(DecoderContext(output, (), specs, DecodeConfig())), "s")


def heard(label: str, at_s: float) -> HeardWord:
    return HeardWord(label, at_s, 0.9)


def point(threshold: float, missed: int, per_hour: float | None) -> RatePoint:
    return RatePoint(threshold, 10, missed, missed / 10, (0.0, 1.0), 0, per_hour, None)


answer = st.tuples(*[st.sampled_from((0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0))] * 3)


@given(
    st.lists(st.one_of(answer, st.none()), max_size=60),
    st.integers(1, 4),
    st.sampled_from((0.0, 0.2, 1.0)),
    st.sampled_from((0.05, 0.3, 0.5, 0.65, 0.9)),
    st.sampled_from((0.1, 0.5, 0.8)),
    st.one_of(st.none(), st.integers(0, 3)),
)
def test_replayed_events_are_those_of_the_daemon(
    answers: list[tuple[float, ...] | None],
    mean_of: int,
    refractory_s: float,
    threshold: float,
    other: float,
    verified: int | None,
) -> None:
    """Whatever threshold the answers were recorded with; None is a gap in the sound.

    A verification, if there is one, accepts one word at some answers and the other at the others.
    """
    recorded, spotter = recorder(other, mean_of, refractory_s), recorder(threshold, mean_of, refractory_s)
    events, row = [], 0
    for words in (recorded, spotter):
        words.verify = None if verified is None else lambda word: (row % 3 == verified) is (word == "yes")
    for scores in answers:
        for words in (recorded, spotter):
            if scores is None:
                words.reset()
        if scores is None:
            continue
        at_ns, at = round(row * EVERY_S * 1e9), NOW + timedelta(seconds=row * EVERY_S)
        recorded.update(np.array(scores, np.float32), at_ns, at, EVERY_S)
        new = spotter.update(np.array(scores, np.float32), at_ns, at, EVERY_S)
        events += [(row, LABELS.index(event.track.label)) for event in new]
        row += 1
    again = replay(recorded.answers, threshold, spotter.decoder.wanted, round(refractory_s * 1e9))
    assert again == events


def test_an_event_hears_the_word_in_whose_time_it_comes() -> None:
    said = (SpokenWord("yes", 1.0, 1.5), SpokenWord("no", 5.0, 5.5))
    found = judge(said, [heard("yes", 1.2), heard("no", 5.5 + AFTER_S)])
    assert found.heard == (True, True)
    assert found.told == ("yes", "no")
    assert found.false == ()


def test_an_event_out_of_time_or_of_another_word_is_a_false_alarm() -> None:
    said = (SpokenWord("yes", 1.0, 1.5),)
    found = judge(said, [heard("yes", 0.9), heard("no", 1.2), heard("yes", 2.6)])
    assert found.heard == (False,)
    assert found.told == ("no",)
    assert [one.at_s for one in found.false] == [0.9, 1.2, 2.6]


def test_a_word_that_is_told_twice_is_heard_once_and_gives_no_false_alarm() -> None:
    said = (SpokenWord("yes", 1.0, 1.5),)
    found = judge(said, [heard("yes", 1.2), heard("yes", 2.2)])
    assert (found.heard, found.false) == ((True,), ())


def test_two_words_of_one_time_need_two_events() -> None:
    said = (SpokenWord("yes", 1.0, 1.4), SpokenWord("yes", 1.5, 1.9))
    assert judge(said, [heard("yes", 1.6)]).heard == (True, False)
    assert judge(said, [heard("yes", 1.4), heard("yes", 1.9)]).heard == (True, True)


def test_a_point_of_the_curve_counts_words_and_false_alarms() -> None:
    said = (SpokenWord("yes", 1.0, 1.5), SpokenWord("no", 3.0, 3.5))
    assert curve_point(said, [heard("yes", 1.2), heard("no", 9.0), heard("no", 9.9)]) == (1, 2)


def test_rates_have_intervals() -> None:
    found = rate_point(0.5, said=20, heard=18, alarms=10, hours=2.0)
    assert (found.missed, found.reject_rate, found.alarms_per_hour) == (2, 0.1, 5.0)
    assert found.reject_interval == pytest.approx((0.0279, 0.3010), abs=1e-3)  # R: binom::binom.wilson(2, 20)
    assert found.alarms_interval == pytest.approx((2.398, 9.195), abs=1e-3)
    assert rate_point(0.5, 20, 18, 0, 0.0).alarms_per_hour is None


@pytest.mark.parametrize(
    ("count", "low", "high"), [(0, 0.0, 3.689), (1, 0.0253, 5.572), (10, 4.795, 18.390), (100, 81.364, 121.627)]
)
def test_the_interval_of_a_count_is_garwoods(count: int, low: float, high: float) -> None:
    """R: poisson.test(count)$conf.int"""
    assert poisson_interval(count) == pytest.approx((low, high), abs=2e-3)


@given(st.integers(0, 5000))
def test_the_interval_of_a_count_holds_it_and_grows_with_it(count: int) -> None:
    low, high = poisson_interval(count)
    more_low, more_high = poisson_interval(count + 1)
    assert low <= count <= high
    assert low <= more_low
    assert high < more_high


def test_the_threshold_misses_fewest_words_and_is_the_highest_of_those() -> None:
    points = [point(0.1, 0, 9.0), point(0.3, 0, 1.0), point(0.5, 0, 0.0), point(0.7, 4, 0.0)]
    assert point_for_alarms(points, 1.0) == points[2]
    assert point_for_alarms(points, 9.0) == points[2]


def test_a_threshold_above_which_there_are_more_false_alarms_is_not_chosen() -> None:
    points = [point(0.1, 0, 0.5), point(0.3, 1, 2.0), point(0.5, 2, 0.5)]
    assert point_for_alarms(points, 1.0) == points[2]


def test_there_may_be_no_threshold() -> None:
    assert point_for_alarms([point(0.5, 0, 2.0)], 1.0) is None
    assert point_for_alarms([point(0.5, 0, None)], 1.0) is None
