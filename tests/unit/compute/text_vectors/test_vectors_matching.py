"""Matching by meaning: sentences, the most alike one, and bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from agent.compute.text_vectors.vectors import LONGEST, SENTENCES_MAX, PhraseMatcher, TextVectors, sentences_in
from tests.unit.compute.text_vectors import small

VECTORS = TextVectors(small.content())
MATCHER = PhraseMatcher(VECTORS, ("~help", "~parcel delivered"))


def test_the_most_alike_phrase_is_the_one_that_is_meant() -> None:
    found = MATCHER.compare("somebody needs aid")
    assert found["~help"] > 0.7 > 0.4 > found["~parcel delivered"]


def test_one_sentence_of_several_is_enough() -> None:
    whole = "the parcel. the box. the package. Please assist!"
    assert MATCHER.compare(whole)["~help"] == pytest.approx(MATCHER.compare("Please assist!")["~help"])


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("All fine. Help me!", ["All fine.", "Help me!"]),
        ("help\nplease;now", ["help", "please", "now"]),
        ("at 3.5 km", ["at 3.5 km"]),
        ("助けて。お願い", ["助けて", "お願い"]),
        ("  ", []),
        ("a. " * 200, ["a."] * SENTENCES_MAX),
    ],
)
def test_sentences_end_at_signs_and_lines(text: str, sentences: list[str]) -> None:
    assert sentences_in(text) == sentences


@given(some.text(max_size=300))
def test_any_text_is_between_unlike_and_the_same(text: str) -> None:
    assert all(0.0 <= one <= 1.0 + 1e-6 for one in MATCHER.compare(text).values())


def test_what_lies_behind_the_longest_text_is_left_out() -> None:
    long = "x" * LONGEST
    assert MATCHER.compare(long + ". help") == MATCHER.compare(long)
    assert MATCHER.compare("zz " * 400_000)["~help"] < 0.5


def test_a_text_without_a_word_is_like_nothing() -> None:
    assert MATCHER.compare("!?") == {"~help": 0.0, "~parcel delivered": 0.0}
    assert PhraseMatcher(VECTORS, ()).compare("help") == {}
