"""Log-odds: what readings add, when they are a situation, and files that cannot be used."""

from __future__ import annotations

import msgspec
import pytest

from agent.errors import ConfigError
from agent.features.fusion.expression import (
    EvidenceSource,
    FusionCalibration,
    LogOdds,
    Reading,
    TermWeights,
    logit,
    probability,
    read_calibration,
)

SOURCES = {"front": EvidenceSource("pictures", ("person",)), "gate": EvidenceSource("text")}
PERSON = TermWeights("front:person", absent=-2.0, present=10.0, score=1.0)
WORD = TermWeights('"help"', absent=-1.0, present=4.0)
BOTH = FusionCalibration((PERSON, WORD), prior=-9.0, window_s=5.0)
SEEN, ABSENT, UNKNOWN = Reading(True, True, 0.5), Reading(False, True, 0.0), Reading(False, False, 0.0)


@pytest.mark.parametrize(
    ("readings", "odds"),
    [
        ((SEEN, SEEN), 5.0),
        ((SEEN, ABSENT), 0.0),
        ((SEEN, UNKNOWN), 1.0),
        ((UNKNOWN, UNKNOWN), -9.0),
        ((Reading(True, True, 0.9), SEEN), 5.0 + logit(0.9)),
    ],
)
def test_each_reading_adds_its_part_and_an_unknown_one_nothing(
    readings: tuple[Reading, Reading], odds: float
) -> None:
    truth, score = LogOdds(BOTH, 0.6, SOURCES).judge(readings)
    assert score == pytest.approx(probability(odds))
    assert truth is (score >= 0.6)


def test_a_higher_score_never_speaks_against_unless_the_weights_say_so() -> None:
    assert LogOdds(BOTH, 0.5, SOURCES).is_monotone
    against = msgspec.structs.replace(BOTH, terms=(PERSON, TermWeights('"help"', absent=0.5, present=-3.0)))
    assert not LogOdds(against, 0.5, SOURCES).is_monotone
    steep = msgspec.structs.replace(BOTH, terms=(msgspec.structs.replace(PERSON, score=3.0), WORD))
    assert not LogOdds(steep, 0.5, SOURCES).is_monotone, "a faint detection says less than none"


def test_a_certain_score_is_not_taken_for_certain() -> None:
    assert logit(1.0) == pytest.approx(6.0)
    assert logit(0.0) == pytest.approx(-6.0)
    assert logit(0.5) == 0.0


def test_a_threshold_that_nothing_reaches_below_is_refused() -> None:
    always = msgspec.structs.replace(BOTH, prior=1.0)
    with pytest.raises(ConfigError, match="higher threshold"):
        LogOdds(always, 0.5, SOURCES)


def test_a_term_that_nothing_gives_is_refused() -> None:
    with pytest.raises(ConfigError, match="no stream or text"):
        LogOdds(BOTH, 0.5, {"gate": SOURCES["gate"]})


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "no calibration"),
        (b"\xff", "no calibration"),
        (b"[" * 100_000, "no calibration"),
        (b'{"terms": [], "prior": 0, "window_s": 5}', "1 to 32 terms"),
        (b'{"terms": [{"term": "a", "absent": 0, "present": 1e9}], "prior": 0, "window_s": 5}', "between"),
        (b'{"terms": [], "prior": 0, "window_s": 5, "wat": 1}', "no calibration"),
    ],
)
def test_a_file_that_is_none_is_refused(content: bytes, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        read_calibration(content)


def test_a_file_is_read_as_it_was_written() -> None:
    assert read_calibration(msgspec.json.encode(BOTH)) == BOTH
