"""Decoders of numbers: measurements by label, and outputs as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from agent.compute.tflite.model import TensorSpec
from agent.config import DecodeConfig
from agent.errors import ModelError
from tests.support.decoding import decoder, picture, spec

pytestmark = pytest.mark.numerics

ONE = (spec("out", 1, 1),)
TWO = (spec("out", 1, 2),)


def test_measurements_have_their_labels_and_their_scale() -> None:
    decode = decoder("regression", picture(64), TWO, ("pressure", "level"), scale=100.0, offset=-20.0, unit="kPa")
    found = decode([np.array([[0.5, 1.2]], np.float32)])
    assert [one.label for one in found] == ["pressure", "level"]
    assert [one.values[0] for one in found] == pytest.approx([30.0, 100.0])
    assert all((one.score, one.box) == (1.0, None) for one in found)


def test_without_labels_measurements_are_numbered() -> None:
    (one,) = decoder("regression", picture(64), ONE)([np.ones((1, 1), np.float32)])
    assert one.label == "value"
    found = decoder("regression", picture(64), TWO)([np.ones((1, 2), np.float32)])
    assert [one.label for one in found] == ["value0", "value1"]


def test_stored_integers_are_measured_as_what_they_stand_for() -> None:
    stored = (spec("out", 1, 1, dtype="int8", scale=0.5, zero_point=-10),)
    (one,) = decoder("regression", picture(64), stored)([np.array([[30]], np.int8)])
    assert one.values == (20.0,)


def test_a_measurement_that_is_no_number_is_none() -> None:
    found = decoder("regression", picture(64), TWO)([np.array([[np.nan, 1.0]], np.float32)])
    assert [one.label for one in found] == ["value1"]
    assert decoder("regression", picture(64), ONE)([np.array([[np.inf]], np.float32)]) == []


def test_only_wanted_measurements_are_given() -> None:
    config = DecodeConfig(labels=("level",))
    decode = decoder("regression", picture(64), TWO, ("pressure", "level"), config=config)
    assert [one.label for one in decode([np.zeros((1, 2), np.float32)])] == ["level"]


@pytest.mark.parametrize(
    ("outputs", "labels", "options", "why"),
    [
        (TWO, ("one",), {}, "for each label, 1; found"),
        ((*ONE, *TWO), (), {}, "one output"),
        (TWO, ("one", "one"), {}, "same label"),
        ((spec("out", 1, 65),), (), {}, "1 to 64; found"),
        (ONE, (), {"unit": "a\nb"}, "cannot be printed"),
        (ONE, (), {"scale": "x"}, "scale"),
        (ONE, (), {"factor": 2.0}, "factor"),
    ],
)
def test_what_does_not_fit_is_refused(
    outputs: tuple[TensorSpec, ...], labels: tuple[str, ...], options: dict[str, Any], why: str
) -> None:
    with pytest.raises(ModelError, match=why):
        decoder("regression", picture(64), outputs, labels, **options)


def test_outputs_are_given_as_they_are() -> None:
    outputs = (spec("a", 1, 2, 2), spec("b", 1, 1, dtype="uint8", scale=0.1, zero_point=0))
    found = decoder("raw", picture(64), outputs)(
        [np.arange(4, dtype=np.float32).reshape(1, 2, 2), np.full((1, 1), 7, np.uint8)]
    )
    assert [(one.label, one.values) for one in found] == [
        ("a", (0.0, 1.0, 2.0, 3.0)),
        ("b", (pytest.approx(0.7),)),
    ]


def test_an_embedding_has_length_one() -> None:
    decode = decoder("raw", picture(64), (spec("out", 1, 3),), normalise=True)
    (one,) = decode([np.array([[3.0, 0.0, 4.0]], np.float32)])
    assert one.values == pytest.approx((0.6, 0.0, 0.8))
    (none,) = decode([np.zeros((1, 3), np.float32)])
    assert none.values == (0.0, 0.0, 0.0)


def test_too_many_numbers_are_refused_and_a_part_can_be_chosen() -> None:
    with pytest.raises(ModelError, match="4096 numbers together"):
        decoder("raw", picture(64), (spec("a", 1, 4000), spec("b", 1, 100)))
    outputs = (spec("a", 1, 40), spec("b", 1, 2))
    (one,) = decoder("raw", picture(64), outputs, config=DecodeConfig(labels=("b",)))(
        [np.zeros((1, 40), np.float32), np.ones((1, 2), np.float32)]
    )
    assert (one.label, one.values) == ("b", (1.0, 1.0))
    with pytest.raises(ModelError, match="no label 'c'"):
        decoder("raw", picture(64), outputs, config=DecodeConfig(labels=("c",)))


def test_numbers_that_json_has_not_and_large_ones_are_kept_as_near_as_can_be() -> None:
    decode = decoder("raw", picture(64), (spec("out", 1, 3),))
    (one,) = decode([np.array([[np.nan, np.inf, -np.inf]], np.float32)])
    assert one.values == pytest.approx((0.0, 3.4028235e38, -3.4028235e38))
    (whole,) = decoder("raw", picture(64), (spec("out", 1, 1, dtype="int32"),))(
        [np.array([[2147483647]], np.int32)]
    )
    assert whole.values == (2147483647.0,)
    (large,) = decoder("raw", picture(64), (spec("out", 1, 2),), normalise=True)(
        [np.full((1, 2), 1e25, np.float32)]
    )
    assert large.values == pytest.approx((0.5**0.5, 0.5**0.5))
