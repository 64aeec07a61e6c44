from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.config.features import SecondaryConfig
from agent.features.chains.rules import AttributeVotes, chosen, crop_of, shorter_side
from agent.types import Detection

_PLATE = SecondaryConfig("plate", "reader")
_S = 1_000_000_000


def _votes(*answers: tuple[str, float], config: SecondaryConfig = _PLATE) -> AttributeVotes:
    votes = AttributeVotes(config)
    for number, (text, score) in enumerate(answers):
        votes.add([Detection(text, score)], number * _S, 0.1)
    return votes


def test_the_first_answer_is_the_value() -> None:
    votes = AttributeVotes(_PLATE)
    assert votes.add([Detection("AB1", 0.7)], 0, 0.1) is True
    assert votes.attribute is not None
    assert (votes.attribute.value, votes.attribute.score, votes.attribute.answers) == ("AB1", 0.7, 1)


def test_one_other_answer_does_not_replace_what_was_told_more_often() -> None:
    votes = _votes(("AB1", 0.9), ("AB1", 0.9), ("AB1", 0.9), ("A81", 0.9))
    assert votes.attribute is not None
    assert votes.attribute.value == "AB1"
    assert votes.attribute.score < 0.9


def test_an_object_that_changes_changes_its_value_once() -> None:
    votes, changes = _votes(*[("closed", 0.9)] * 8), 0
    for number in range(8, 20):
        changes += votes.add([Detection("open", 0.9)], number * _S, 0.1)
    assert votes.attribute is not None
    assert (votes.attribute.value, changes) == ("open", 1)


def test_nothing_told_leaves_the_value_as_it_is() -> None:
    votes = _votes(("AB1", 0.8))
    before = votes.attribute
    assert votes.add([], 5 * _S, 0.1) is False
    assert votes.attribute is before


def test_measurements_are_joined_to_their_mean() -> None:
    votes = AttributeVotes(SecondaryConfig("age", "ages"))
    for number, value in enumerate((30.0, 34.0, 32.0)):
        votes.add([Detection("years", 1.0, values=(value,))], number * _S, 0.1)
    assert votes.attribute is not None
    assert votes.attribute.value == "years"
    assert 31.0 < votes.attribute.values[0] < 33.0


def test_an_object_is_asked_at_once_then_after_its_time() -> None:
    votes = AttributeVotes(_PLATE)
    assert votes.due_in(0, 0.1) == float("-inf")
    votes.add([Detection("AB1", 0.9)], 0, 0.1)
    assert votes.due_in(0, 0.1) == 1.0
    assert votes.due_in(2 * _S, 0.1) == -1.0


def test_a_larger_view_is_due_sooner() -> None:
    votes = _votes(("AB1", 0.9))
    assert votes.due_in(_S // 2, 0.1) > 0
    assert votes.due_in(_S // 2, 0.2) < 0


def test_equal_answers_are_asked_for_ever_less_often_up_to_a_limit() -> None:
    votes = AttributeVotes(_PLATE)
    waits = []
    for number in range(12):
        votes.add([Detection("AB1", 0.9)], number * _S, 0.1)
        waits.append(votes.due_in(number * _S, 0.1))
    assert waits == sorted(waits)
    assert waits[0] == 1.0
    assert waits[-1] == 10.0


def test_an_object_may_stay_for_ever() -> None:
    for config in (_PLATE, replace(_PLATE, every_s=0.0)):
        votes = AttributeVotes(config)
        for number in range(3000):
            votes.add([Detection("AB1", 0.9)] if number % 2 else [], number * _S, 0.1)
            votes.add([Detection("AB1", 0.9)], number * _S, 0.1)
            assert votes.due_in(number * _S, 0.1) <= 10.0
    silent = AttributeVotes(_PLATE)
    for number in range(3000):
        silent.add([], number * _S, 0.1)
        assert silent.due_in(number * _S, 0.1) <= 10.0


def test_another_answer_is_followed_closely_again() -> None:
    votes = _votes(*[("AB1", 0.9)] * 10)
    votes.add([Detection("A81", 0.9)], 10 * _S, 0.1)
    assert votes.due_in(10 * _S, 0.1) == 1.0


def test_those_that_were_never_asked_come_first() -> None:
    waiting = [(-0.5, "b"), (float("-inf"), "c"), (-3.0, "a"), (0.5, "d")]
    assert chosen(waiting, 2) == ["c", "a"]
    assert chosen(waiting, 9) == ["c", "a", "b"]


_answers = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c"]), st.floats(0.0, 1.0)) | st.none(), min_size=1, max_size=40
)


@given(_answers)
def test_a_score_is_a_share_and_a_value_was_told(answers: list[tuple[str, float] | None]) -> None:
    votes = AttributeVotes(_PLATE)
    for number, one in enumerate(answers):
        before = votes.attribute
        changed = votes.add([Detection(*one)] if one else [], number * _S, 0.1)
        now = votes.attribute
        assert changed == ((before.value if before else None) != (now.value if now else None))
    told = {one[0] for one in answers if one}
    assert (votes.attribute is None) == (not told)
    if votes.attribute is not None:
        assert votes.attribute.value in told
        assert 0.0 <= votes.attribute.score <= 1.0
        assert votes.attribute.answers == sum(one is not None for one in answers)


_edges = st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)).map(sorted)


@given(_edges, _edges, st.floats(0.0, 1.0), st.booleans())
def test_a_crop_holds_the_box_and_lies_in_the_picture(
    across: list[float], down: list[float], margin: float, square: bool
) -> None:
    box = across[0], down[0], across[1], down[1]
    large = crop_of(box, replace(_PLATE, margin=margin, square=square), 64, 48)
    assert 0.0 <= large[0] <= box[0] <= box[2] <= large[2] <= 1.0
    assert 0.0 <= large[1] <= box[1] <= box[3] <= large[3] <= 1.0
    assert shorter_side(large, 64, 48) >= shorter_side(box, 64, 48) - 1e-9


def test_a_square_crop_has_equal_sides_in_pixels() -> None:
    x0, y0, x1, y1 = crop_of((0.4, 0.3, 0.5, 0.7), replace(_PLATE, margin=0.0, square=True), 640, 480)
    assert (x1 - x0) * 640 == pytest.approx((y1 - y0) * 480)
    assert (x0 + x1) / 2 == pytest.approx(0.45)
