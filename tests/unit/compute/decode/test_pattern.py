from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.decode.pattern import Pattern
from agent.errors import ModelError

ITEMS = ["a", "b", "-", "[ab]", "[^a]", "[a-c1-3]", "[]a]", "[a-]", ".", r"\d", r"\W", r"\.", r"[\d-]", r"[\]a]"]
TIMES = ["", "", "?", "*", "+", "{2}", "{0}", "{1,3}", "{0,2}", "{2,}"]
EXPRESSIONS = st.recursive(
    st.builds(str.__add__, st.sampled_from(ITEMS), st.sampled_from(TIMES)),
    lambda inner: st.one_of(
        st.builds(str.__add__, inner, inner),
        st.builds(lambda one, other, times: f"({one}|{other}){times}", inner, inner, st.sampled_from(TIMES)),
        st.builds(lambda one, times: f"(?:{one}){times}", inner, st.sampled_from(TIMES)),
    ),
    max_leaves=5,
)
TEXTS = st.text("abc13-. ]", max_size=8)


@given(expression=EXPRESSIONS, text=TEXTS)
def test_it_matches_what_the_standard_library_matches(expression: str, text: str) -> None:
    assert Pattern(expression).matches(text) == bool(re.fullmatch(expression, text))


@given(expression=EXPRESSIONS, text=TEXTS, at=st.integers(0, 8))
def test_a_beginning_of_a_match_can_become_one(expression: str, text: str, at: int) -> None:
    pattern = Pattern(expression)
    begun = pattern.step(pattern.start, text[:at])
    assert pattern.is_match(pattern.step(begun, text[at:])) == pattern.matches(text)
    if pattern.matches(text):
        assert begun


def test_a_beginning_that_cannot_become_a_match_is_told_at_once() -> None:
    plate = Pattern("[A-Z]{2}[0-9]{4}")
    assert plate.step(plate.start, "AB1")
    assert not plate.step(plate.start, "A1")


def test_anchors_at_the_ends_change_nothing() -> None:
    assert Pattern("^AB$").matches("AB")
    assert not Pattern("^AB$").matches("ABC")


@pytest.mark.parametrize("text", ["(a*)*b", "(a|a)*b", "(a|aa)+b", "a*a*a*a*a*a*b", "(.*)*(.*)*b"])
def test_no_expression_takes_exponential_time(text: str) -> None:
    assert not Pattern(text).matches("a" * 256)


FAULTY = "( a) [a [ *a a** a{3 a{x} a{5,2} a{1,1000} (a{200}){200} [z-a] a} (a"
STRANGE = r"(?=a) \1 \b \ [a-\] [a-\d]"


@pytest.mark.parametrize("text", [*FAULTY.split(" "), *STRANGE.split(" "), "(" * 21 + "a" + ")" * 21])
def test_what_is_not_understood_is_refused_with_the_expression(text: str) -> None:
    with pytest.raises(ModelError) as refused:
        Pattern(text)
    assert repr(text) in str(refused.value)


@given(text=st.text("ab()[]{}|?*+^$\\-.,12", max_size=30))
def test_any_text_is_an_expression_or_is_refused(text: str) -> None:
    try:
        Pattern(text).matches("ab12")
    except ModelError:
        return
    re.compile(text)  # what is taken here, the standard library takes as well
