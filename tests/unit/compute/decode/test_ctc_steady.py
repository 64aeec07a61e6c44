from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from agent.compute.decode.ctc import SteadyText
from agent.types import Detection

READINGS = st.lists(st.sampled_from("AB "), max_size=40)


def steady(readings: str, hits: int = 3) -> str:
    """The text that stands after each reading, a character each; a space is none."""
    texts, shown = SteadyText(hits), ""
    for one in readings:
        found = texts.update([Detection(one, 0.9)] if one.strip() else [])
        shown += found[0].label if found else " "
    return shown


def test_a_text_counts_when_it_has_been_read_often_in_a_row() -> None:
    assert steady("AAAA") == "  AA"
    assert steady("AABAA") == "     "


def test_an_error_now_and_then_changes_nothing() -> None:
    assert steady("AAABAACAA AA") == "  AAAAAAAAAA"


def test_a_new_text_follows_the_old_one() -> None:
    assert steady("AAABBB") == "  AAAB"


def test_the_old_text_ends_when_none_or_only_others_are_read() -> None:
    assert steady("AAA    ") == "  AAA  "
    assert steady("AAABCBC") == "  AAA  "


def test_one_reading_is_enough_where_that_is_asked_for() -> None:
    assert steady("AB A", hits=1) == "AB A"


def test_pictures_are_wanted_until_a_text_counts() -> None:
    texts = SteadyText(3)
    wanted = []
    for _ in range(4):
        texts.update([Detection("A", 0.9)])
        wanted.append(texts.is_undecided)
    assert wanted == [True, True, False, False]
    texts.reset()
    texts.update([Detection("A", 0.9)])
    assert texts.is_undecided


@given(readings=READINGS, hits=st.integers(1, 5))
def test_texts_change_no_more_often_than_readings_allow(readings: list[str], hits: int) -> None:
    shown = steady("".join(readings), hits)
    changes = sum(one != other for one, other in pairwise(shown) if other != " ")
    assert changes <= len(readings) // hits
    for at, one in enumerate(shown):
        assert one == " " or one in readings[max(0, at - hits + 1) : at + 1] or one == shown[at - 1]
