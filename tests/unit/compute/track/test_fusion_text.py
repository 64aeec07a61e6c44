"""Texts as evidence: words as before, phrases by their meaning with how alike they are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some

from agent.compute.text_vectors.vectors import TextVectors
from agent.compute.track.fusion import Fusion, FusionTimes
from agent.compute.track.fusion_rule import EvidenceSource, Rule
from agent.compute.track.fusion_text import TextReader
from tests.unit.compute.text_vectors import small

VECTORS = {"gate": TextVectors(small.content())}
SOURCES = {
    "front": EvidenceSource("pictures", ("person",)),
    "gate": EvidenceSource("text", has_vectors=True),
    "door": EvidenceSource("text"),
}


def reader(rule: str, similarity: float = 0.7) -> TextReader:
    return TextReader(Rule(rule, SOURCES).terms, VECTORS, similarity)


def found(made: TextReader, source: str, text: str) -> dict[str, float]:
    return {one.label: round(one.score, 2) for one in made.evidence(source, text, 7)}


def test_words_stand_in_a_text_and_a_meaning_is_alike() -> None:
    made = reader('"parcel" or ~"somebody needs help"')
    assert found(made, "gate", "Please assist") == {"~somebody needs help": 0.9}
    assert found(made, "gate", "the parcel") == {"parcel": 1.0}
    assert found(made, "door", "the parcel, please assist") == {"parcel": 1.0}
    assert found(made, "front", "parcel") == {}


def test_less_likeness_than_asked_for_is_shown_but_is_no_evidence() -> None:
    made = reader('~"somebody needs help"', 0.99)
    assert found(made, "gate", "Please assist") == {}
    (match,) = made.matches("gate", "Please assist")
    assert (match.term, match.counts, round(match.score, 2)) == ('~"somebody needs help"', False, 0.9)


def test_the_same_words_by_letter_and_by_meaning_are_two_terms() -> None:
    made = reader('"help" and ~"help"')
    assert found(made, "gate", "assist") == {"~help": 0.79}
    assert found(made, "gate", "help") == {"~help": 1.0, "help": 1.0}


def test_a_fused_event_begins_with_a_text_that_means_it() -> None:
    rule = Rule('person or ~"help"', SOURCES)
    fusion = Fusion("call", rule, FusionTimes.of_seconds(1.0, 0.1, 0.1, 5.0))
    for evidence in reader('person or ~"help"').evidence("gate", "assist", 5):
        assert fusion.add(evidence)
    (reading,) = [one for one in fusion.readings(6) if one.present]
    assert round(reading.score, 2) == 0.79
    assert not fusion.add(next(iter(reader('"help"').evidence("gate", "help", 5)))), "not by letter"


def test_the_files_that_count_are_those_that_a_term_asks_for() -> None:
    assert reader("person").sha256 == ()
    assert reader('gate:~"help"').sha256 == (VECTORS["gate"].sha256,)


@given(some.text(max_size=200))
def test_any_text_can_be_read(text: str) -> None:
    assert all(0.0 <= one.score <= 1.001 for one in reader('"help" or ~"help"').matches("gate", text))
