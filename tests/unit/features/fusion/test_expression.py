"""Rules of fused events: what they mean, where their terms come from, and what is wrong with those that fail."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from agent.errors import ConfigError
from agent.features.fusion.expression import (
    RULE_MAX,
    TERMS_MAX,
    EvidenceSource,
    Reading,
    Rule,
    parse_term,
    phrases_in,
    plain_words,
)
from agent.features.fusion.rules import text_evidence

SOURCES = {
    "front": EvidenceSource("pictures", ("person", "traffic light")),
    "yard": EvidenceSource("pictures", ("person", "dog")),
    "mic": EvidenceSource("words", ("help", "stop")),
    "ear": EvidenceSource("sounds", ("bark",)),
    "gate": EvidenceSource("text"),
    "scale": EvidenceSource("none"),
    "new": EvidenceSource("unknown"),
}
SEEN, ABSENT, UNKNOWN = Reading(True, True, 0.8), Reading(False, True, 0.0), Reading(False, False, 0.0)


def truth(text: str, *readings: Reading) -> bool | None:
    return Rule(text, SOURCES).judge(readings).truth


def test_a_label_may_come_from_every_stream_that_gives_it_and_a_word_from_texts_and_keywords() -> None:
    rule = Rule('person and "help"', SOURCES)
    assert [term.sources for term in rule.terms] == [("front", "yard", "new"), ("mic", "gate", "new")]
    assert parse_term("front:person", SOURCES).sources == ("front",)
    assert parse_term('front:"Traffic Light"', SOURCES).label == "traffic light"
    assert parse_term("stop", SOURCES).sources == ("mic", "new"), "a keyword is a label too"


def test_and_binds_closer_than_or_and_not_closer_than_both() -> None:
    readings = [SEEN, ABSENT, ABSENT]
    assert truth("person or dog and bark", *readings) is True
    assert truth("(person or dog) and bark", *readings) is False
    assert truth("person and not dog and not bark", *readings) is True
    assert truth("PERSON And NOT Dog", SEEN, ABSENT) is True, "case does not matter"


def test_a_term_that_is_written_twice_is_read_once() -> None:
    assert len(Rule("person and (dog or person)", SOURCES).terms) == 2


def test_what_nobody_can_see_is_neither_there_nor_absent() -> None:
    assert truth("person and not dog", SEEN, UNKNOWN) is None
    assert truth("person and dog", ABSENT, UNKNOWN) is False
    assert truth("person or dog", SEEN, UNKNOWN) is True
    assert truth("person or dog", ABSENT, UNKNOWN) is None


def test_the_score_is_the_least_of_and_and_the_highest_of_what_is_true_in_or() -> None:
    strong, weak = Reading(True, True, 0.9), Reading(True, True, 0.6)
    assert Rule("person and dog", SOURCES).judge([strong, weak]).score == 0.6
    assert Rule("person or dog", SOURCES).judge([strong, weak]).score == 0.9
    assert Rule("person or not dog and bark", SOURCES).judge([weak, ABSENT, ABSENT]).score == 0.6


def test_only_a_not_makes_more_evidence_refute() -> None:
    assert Rule("person and (dog or bark)", SOURCES).is_monotone
    assert not Rule("person and (dog or not bark)", SOURCES).is_monotone


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "expected labels"),
        ("person and", "expected labels"),
        ('person and "help', "'\"' cannot be read"),
        ("person & dog", "'&' cannot be read"),
        ("person # dog", "'#' cannot be read"),
        ("person dog", "expected labels"),
        ("person (dog)", "expected labels"),
        ("(person", "expected labels"),
        ("person)", "expected labels"),
        ("()", "expected labels"),
        ("front: and dog", "expected labels"),
        ("side:person", "no stream or text is called 'side'"),
        ('person and "..."', "no word in it"),
    ],
)
def test_an_error_says_what_was_expected(text: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        Rule(text, SOURCES)


def test_a_rule_may_have_several_lines() -> None:
    assert truth("person\n  and (dog\n  or bark)", SEEN, ABSENT, SEEN) is True


def test_a_state_may_be_taught_to_a_stream_that_is_named() -> None:
    sources = {**SOURCES, "front": EvidenceSource("pictures", ("person",), learns=True)}
    (term,) = Rule('front:"gate open"', sources).terms
    assert (term.label, term.sources) == ("gate open", ("front",))
    for text in ('yard:"gate open"', "front:gate"):
        with pytest.raises(ConfigError):
            Rule(text, sources)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("front:dog", "known: person, traffic light"),
        ("mic:person", "known: help, stop"),
        ("scale:person", "no tracks or keywords"),
    ],
)
def test_a_label_that_its_stream_never_gives_is_refused(text: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        Rule(text, SOURCES)


def test_a_word_needs_a_text_or_keywords_and_a_label_a_stream() -> None:
    with pytest.raises(ConfigError, match=r"\[text.NAME\]"):
        Rule('"help"', {"front": SOURCES["front"]})
    with pytest.raises(ConfigError, match="words of a text are in quotes"):
        Rule("help", {"front": SOURCES["front"], "gate": SOURCES["gate"]})
    with pytest.raises(ConfigError, match="known: none"):
        Rule("person", {"gate": SOURCES["gate"]})


@pytest.mark.parametrize("text", ["not person", "person or not dog", "not (person and dog)"])
def test_a_rule_that_needs_no_evidence_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="nothing is seen or heard"):
        Rule(text, SOURCES)


def test_what_is_too_large_is_refused_before_it_costs_anything() -> None:
    with pytest.raises(ConfigError, match="characters"):
        Rule("a" * (RULE_MAX + 1), SOURCES)
    with pytest.raises(ConfigError, match="parentheses"):
        Rule("(" * 400 + "person" + ")" * 400, SOURCES)
    assert truth("not " * 200 + "person", SEEN) is True
    with pytest.raises(ConfigError, match="different terms"):
        Rule(" or ".join(f'"w{n}"' for n in range(TERMS_MAX + 1)), SOURCES)
    with pytest.raises(ConfigError, match="single label"):
        parse_term("person and dog", SOURCES)


@given(some.text(max_size=60))
def test_any_text_is_a_rule_or_a_clear_error(text: str) -> None:
    try:
        rule = Rule(text, SOURCES)
    except ConfigError:
        return
    assert rule.judge([ABSENT] * len(rule.terms)).truth is not True


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Help me, please!", ["help"]),
        ("helpful", []),
        ("HELP", ["help"]),
        ("call the Police: now", ["the police"]),
        ("the\npolice", ["the police"]),
        ("the old police", []),
        ("", []),
    ],
)
def test_words_of_a_text_are_matched_whole_and_in_any_case(text: str, found: list[str]) -> None:
    assert phrases_in(text, ["help", "the police"]) == found


def test_words_are_compared_without_case_composition_and_signs() -> None:
    assert plain_words("Grüße") == plain_words("GRÜSSE") == plain_words("Gru\u0308ße")
    assert plain_words("traffic_light") == plain_words("Traffic light!") == "traffic light"
    assert plain_words("don't") == "don't"


def test_a_text_is_evidence_for_the_words_in_it_that_a_rule_asks_of_it() -> None:
    rule = Rule('person and ("help" or gate:"call the police")', SOURCES)

    def said(source: str, text: str) -> list[str]:
        return [one.label for one in text_evidence(rule.terms, source, text, 7)]

    assert said("gate", "Help! Please call the police.") == ["help", "call the police"]
    assert said("gate", "helpless police") == []
    assert said("front", "help") == []
