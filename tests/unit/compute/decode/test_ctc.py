from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from agent.compute.decode.ctc import LONGEST
from agent.compute.tflite.model import TensorSpec
from agent.config import DecodeConfig
from agent.errors import ModelError
from tests.support.decoding import decoder, picture, spec

pytestmark = pytest.mark.numerics

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ-./: "
LABELS = tuple(ALPHABET)
CLASSES = len(ALPHABET) + 1
IMAGE = picture(32, 160)
TEXTS = st.text(ALPHABET, max_size=20)


def steps(text: str, classes: str = ALPHABET, *, spare: int = 2, blank: str = "last") -> NDArray[np.float32]:
    """Probabilities [steps, characters] of an ideal reader: each character twice, then a blank."""
    none = 0 if blank == "first" else len(classes)
    numbers = [none] * spare
    for character in text:
        number = classes.index(character) + (blank == "first")
        numbers += [number, number, none]
    return np.eye(len(classes) + 1, dtype=np.float32)[numbers + [none] * spare]


def read(
    values: NDArray[Any], labels: tuple[str, ...] = LABELS, pattern: str = "", **options: Any
) -> list[tuple[str, float]]:
    if pattern:
        options["config"] = DecodeConfig(pattern=pattern)
    decode = decoder("ctc", IMAGE, (spec("out", *values.shape),), labels, **options)
    found = decode([values])
    assert all(one.box is None for one in found)
    return [(one.label, one.score) for one in found]


@given(text=TEXTS, blank=st.sampled_from(["first", "last"]))
def test_any_text_comes_back(text: str, blank: str) -> None:
    found = read(steps(text, blank=blank)[None], blank=blank)
    assert found == ([(text.strip(), 1.0)] if text.strip() else [])


@pytest.mark.parametrize("shape", [(1, -1, CLASSES), (-1, 1, CLASSES), (1, 1, -1, CLASSES), (1, -1, 1, CLASSES)])
def test_axes_may_stand_in_any_order(shape: tuple[int, ...]) -> None:
    assert read(steps("AB-12").reshape(shape))[0][0] == "AB-12"


def test_characters_may_be_the_first_axis() -> None:
    assert read(np.ascontiguousarray(steps("AB-12").T)[None])[0][0] == "AB-12"


def test_equal_neighbours_are_one_character_and_a_blank_separates_them() -> None:
    a, none = ALPHABET.index("A"), len(ALPHABET)
    values = np.eye(CLASSES, dtype=np.float32)[[a, a, a, none, a, none, none, a]]
    assert read(values[None])[0][0] == "AAA"
    assert read(values[None], collapse=False)[0][0] == "AAAAA"


def test_blanks_alone_are_no_text() -> None:
    assert read(steps("")[None]) == []
    assert read(steps("")[None], pattern="[A-Z]*") == []


def test_slots_with_a_padding_among_the_labels() -> None:
    labels = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_")
    values = np.eye(37, dtype=np.float32)[[labels.index(one) for one in "AA11___"]]
    assert read(values[None], labels, collapse=False)[0][0] == "AA11"


def test_a_dictionary_without_its_space_at_the_end() -> None:
    values = np.eye(13, dtype=np.float32)[[0, 2, 0, 12, 0, 3]]
    assert read(values[None], tuple("0123456789A"), blank="first")[0][0] == "1 2"


@pytest.mark.parametrize("lost", ["", "???"])
def test_a_label_that_has_lost_its_space_is_a_space(lost: str) -> None:
    values = np.eye(4, dtype=np.float32)[[0, 1, 2]]
    assert read(values[None], ("A", lost, "B"))[0][0] == "A B"


def spelt(text: str, values: NDArray[np.float32], labels: str) -> float:
    """The probability of a text, by trying each way of choosing a class at each step."""
    total = 0.0
    for way in itertools.product(range(len(labels) + 1), repeat=len(values)):
        kept = [one for one, _ in itertools.groupby(way) if one < len(labels)]
        if "".join(labels[one] for one in kept) == text:
            total += float(np.prod([row[one] for row, one in zip(values, way, strict=True)]))
    return total


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 6), sharp=st.sampled_from([0.2, 1.0, 5.0]))
def test_the_score_is_the_probability_of_all_ways_to_spell_the_text(seed: int, count: int, sharp: float) -> None:
    values = np.random.default_rng(seed).dirichlet(np.full(3, sharp), count).astype(np.float32)
    for text, score in read(values[None], ("A", "B"), score=0.0):
        assert score == pytest.approx(spelt(text, values, "AB"), abs=1e-5)


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 5))
def test_the_score_of_a_searched_text_is_that_probability_too(seed: int, count: int) -> None:
    values = np.random.default_rng(seed).dirichlet(np.full(3, 1.0), count).astype(np.float32)
    for text, score in read(values[None], ("A", "B"), score=0.0, pattern="A?B"):
        assert score == pytest.approx(spelt(text, values, "AB"), abs=1e-3)


def test_the_score_of_slots_is_the_product_of_their_probabilities() -> None:
    values = np.array([[[0.9, 0.05, 0.05], [0.2, 0.7, 0.1], [0.3, 0.1, 0.6]]], np.float32)
    ((text, score),) = read(values, ("A", "B"), collapse=False, score=0.0)
    assert text == "AB"
    assert score == pytest.approx(0.9 * 0.7 * 0.6)
    assert read(values, ("A", "B"), collapse=False, score=0.4) == []


@given(text=st.text(ALPHABET, min_size=1, max_size=12), seed=st.integers(0, 2**32 - 1), kind=st.booleans())
def test_quantised_logits_read_as_their_float_ones(text: str, seed: int, kind: bool) -> None:
    random = np.random.default_rng(seed)
    logits = 8.0 * steps(text) + random.normal(0.0, 1.5, steps(text).shape).astype(np.float32)
    dtype, zero = ("int8", -10) if kind else ("uint8", 100)
    limits = np.iinfo(dtype)
    stored = np.clip(np.round(logits / 0.125) + zero, limits.min, limits.max).astype(dtype)[None]
    quantised = decoder("ctc", IMAGE, (TensorSpec("out", stored.shape, dtype, 0.125, zero),), LABELS, logits=True)
    exact = decoder("ctc", IMAGE, (spec("out", *stored.shape),), LABELS, logits=True)
    found, wanted = quantised([stored]), exact([(stored.astype(np.float32) - zero) * 0.125])
    assert [one.label for one in found] == [one.label for one in wanted]
    assert [one.score for one in found] == pytest.approx([one.score for one in wanted], abs=1e-5)


@given(text=st.text(ALPHABET, max_size=12), seed=st.integers(0, 2**32 - 1))
def test_a_pattern_that_takes_everything_keeps_a_clear_text(text: str, seed: int) -> None:
    values = np.random.default_rng(seed).dirichlet(np.full(CLASSES, 0.3), 3 * len(text) + 4)
    values = (0.2 * values + 0.8 * steps(text)).astype(np.float32)
    assert read(values[None], pattern=".+") == read(values[None])


def test_a_pattern_finds_the_less_likely_characters_that_match() -> None:
    values = 0.9 * steps("AB0I23") + 0.1 / CLASSES
    for at, wanted in ((8, "O"), (11, "1")):  # the second steps of `0` and `I` waver
        values[at - 1 : at + 1, ALPHABET.index(wanted)] = 0.4
        values[at - 1 : at + 1, ALPHABET.index("AB0I23"[at // 3])] = 0.5
    assert read(values[None], score=0.0)[0][0] == "AB0I23"
    ((text, score),) = read(values[None], score=0.0, pattern="[A-Z]{2}[0-9]{4}")
    assert text == "AB0123"
    assert 0.0 < score < read(values[None], score=0.0)[0][1]


def test_a_pattern_is_the_streams_alone_since_a_strangers_may_take_hours() -> None:
    assert read(steps("AB")[None], config=DecodeConfig(pattern="[0-9]+")) == []
    with pytest.raises(ModelError, match="pattern"):
        decoder("ctc", IMAGE, (spec("out", 1, 40, CLASSES),), LABELS, pattern="[A-Z]+")
    with pytest.raises(ModelError, match="pattern"):
        read(steps("AB")[None], config=DecodeConfig(pattern="(("))


def test_noise_of_many_characters_is_not_searched() -> None:
    doubtful = 0.6 * steps("O" + "AB" * 30)[None] + 0.4 * steps("0" + "AB" * 30)[None]
    assert read(doubtful, score=0.0, pattern="0[AB]*") == []
    few = 0.6 * steps("OAB")[None] + 0.4 * steps("0AB")[None]
    assert read(few, score=0.0, pattern="0[AB]*")[0][0] == "0AB"


def test_a_pattern_is_searched_among_slots_as_well() -> None:
    values = np.array([[[0.5, 0.4, 0.1], [0.1, 0.8, 0.1]]], np.float32)
    assert read(values, ("A", "1"), collapse=False, score=0.0, pattern="[0-9]+")[0][0] == "11"


def test_a_text_that_cannot_match_is_no_text() -> None:
    assert read(steps("AB12")[None], pattern="[0-9]{8}") == []


def test_only_wanted_texts_are_told() -> None:
    config = DecodeConfig(labels=("AB 12", "XY"))
    assert read(steps("AB 12")[None], config=config)[0][0] == "AB 12"
    assert read(steps("AB 13")[None], config=config) == []


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_no_character(hole: float) -> None:
    values = steps("AB12")
    values[0], values[-1, 3] = hole, np.nan
    found = read(values[None], score=0.0)
    assert all(0.0 <= score <= 1.0 for _, score in found)


def test_characters_that_cannot_be_printed_are_replaced() -> None:
    values = np.eye(4, dtype=np.float32)[[0, 1, 2]]
    assert read(values[None], ("A", "\x1b", "\u202e"))[0][0] == "A\ufffd\ufffd"


def test_a_text_has_an_end() -> None:
    values = np.tile(np.eye(3, dtype=np.float32)[[0, 2]], (900, 1))
    assert read(values[None], ("A", "B"))[0][0] == "A" * LONGEST


def test_the_output_is_found_among_others() -> None:
    values = steps("A")[None]
    outputs = (spec("other", 1, 7), spec("text", *values.shape))
    (found,) = decoder("ctc", IMAGE, outputs, LABELS)([np.zeros((1, 7), np.float32), values])
    assert found.label == "A"
    twice = (spec("a", 1, 10, CLASSES), spec("b", 1, 10, CLASSES))
    with pytest.raises(ModelError, match="found a"):
        decoder("ctc", IMAGE, twice, LABELS)
    assert decoder("ctc", IMAGE, twice, LABELS, tensors={"text": "b"})


@pytest.mark.parametrize(
    ("output", "labels", "options", "named"),
    [
        (spec("out", 1, 40, CLASSES), (), {}, "labels"),
        (spec("out", 1, 40, CLASSES), LABELS[:20], {}, "21"),
        (spec("out", 1, 40, 7, CLASSES), LABELS, {}, "40"),
        (spec("out", 1, 0, CLASSES), LABELS, {}, "out"),
        (spec("out", 1, -1, CLASSES), LABELS, {}, "out"),
        (spec("out", 1, 9000, CLASSES), LABELS, {}, "9000"),
        (spec("out", 1, 40, CLASSES), LABELS, {"blank": 7}, "blank"),
        (spec("out", 1, 40, CLASSES), LABELS, {"blank": "middle"}, "blank"),
        (spec("out", 1, 40, CLASSES), LABELS, {"logits": "sigmoid"}, "logits"),
        (spec("out", 1, 40, CLASSES), (*LABELS[:-1], "a whole word"), {}, "a whole word"),
    ],
)
def test_what_does_not_fit_is_named(
    output: TensorSpec, labels: tuple[str, ...], options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ModelError, match=named):
        decoder("ctc", IMAGE, (output,), labels, **options)


def test_a_large_dictionary_takes_no_time() -> None:
    labels = tuple(map(chr, range(0x4E00, 0x4E00 + 6999)))
    values = np.random.default_rng(0).normal(size=(1, 200, 7000)).astype(np.float32)
    decode = decoder("ctc", IMAGE, (spec("out", 1, 200, 7000),), labels, logits=True, score=0.0)
    begin = time.thread_time()
    decode([values])
    assert time.thread_time() - begin < 1.0
