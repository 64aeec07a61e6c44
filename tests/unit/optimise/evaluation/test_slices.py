"""Slices of an evaluation, and the files that describe them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ModelError
from agent.optimise.evaluation.slices import (
    SlicedExample,
    brightness_of,
    clarity_of,
    folder_of,
    loudness_of,
    read_slices,
    size_of,
    slice_results,
)

NAMES = ("red/a.png", "red/b.png", "blue/a.png")


def outcomes(**values: tuple[int, int]) -> list[SlicedExample]:
    return [SlicedExample(name, {"light": name}, right, total) for name, (right, total) in values.items()]


def test_the_lowest_figure_of_enough_examples_is_the_worst() -> None:
    found = slice_results(outcomes(day=(9, 10), night=(5, 10), fog=(0, 2)), {})
    assert [(one.value, one.count, one.worst) for one in found] == [
        ("day", 10, False),
        ("fog", 2, False),
        ("night", 10, True),
    ]
    assert found[2].figure == 0.5
    assert found[2].interval[0] < 0.5 < found[2].interval[1]


def test_equal_slices_have_no_worst_one() -> None:
    assert not any(one.worst for one in slice_results(outcomes(day=(5, 10), night=(5, 10)), {}))


def test_an_attribute_of_one_value_or_of_very_many_is_left_out() -> None:
    assert slice_results(outcomes(day=(5, 10)), {}) == ()
    assert slice_results(outcomes(**{f"v{number}": (1, 1) for number in range(50)}), {}) == ()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.integers(0, 5)), max_size=30))
def test_slices_of_an_attribute_add_up_to_all_examples(rows: list[tuple[str, int, int]]) -> None:
    given_rows = [SlicedExample("x", {"by": value}, min(right, total), total) for value, right, total in rows]
    found = slice_results(given_rows, {})
    if found:
        assert sum(one.count for one in found) == sum(one.total for one in given_rows)
        assert all(one.interval[0] - 1e-9 <= one.figure <= one.interval[1] + 1e-9 for one in found)


def test_given_attributes_stand_beside_measured_ones() -> None:
    given_values = {"day": {"camera": "one"}, "night": {"camera": "two"}}
    found = slice_results(outcomes(day=(9, 10), night=(5, 10)), given_values)
    assert [(one.attribute, one.value) for one in found] == [
        ("light", "day"),
        ("light", "night"),
        ("camera", "one"),
        ("camera", "two"),
    ]


def test_attributes_are_read_from_csv_and_json() -> None:
    csv = b"file,attribute,value\nred/a.png,camera,one\nb.png, camera ,two\n\n"
    assert read_slices(csv, "s.csv", NAMES) == {"red/a.png": {"camera": "one"}, "red/b.png": {"camera": "two"}}
    json = b'{"blue/a.png": {"camera": 3, "night": true}}'
    assert read_slices(json, "s.json", NAMES) == {"blue/a.png": {"camera": "3", "night": "True"}}


@pytest.mark.parametrize(
    ("content", "shown", "says"),
    [
        (b"red/a.png,camera\n", "s.csv", "s.csv:1: expected `file,attribute,value`"),
        (b"red/a.png,camera,one\ngone.png,camera,two\n", "s.csv", "s.csv:2: gone.png is none of the files"),
        (b"a.png,camera,one\n", "s.csv", "a.png is the name of several files"),
        (b"\xff\n", "s.csv", "is not UTF-8"),
        (b"[]", "s.json", "expected {file: {attribute: value}}"),
    ],
)
def test_what_is_wrong_with_attributes_is_told(content: bytes, shown: str, says: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_slices(content, shown, NAMES)
    assert says in str(caught.value)


def test_measures_have_names() -> None:
    assert [brightness_of(mean) for mean in (20.0, 120.0, 200.0)] == ["dark", "medium", "bright"]
    assert [size_of(side**2) for side in (31.0, 32.0, 96.0, 97.0)] == ["small", "medium", "medium", "large"]
    assert [loudness_of(level) for level in (-50.0, -30.0, -10.0)] == ["quiet", "medium", "loud"]
    assert [clarity_of(ratio) for ratio in (3.0, 15.0, 40.0)] == ["below 10 dB", "10 to 25 dB", "above 25 dB"]
    assert [folder_of(name) for name in ("a.png", "red/a.png", "red/night/a.png")] == ["", "", "night"]
