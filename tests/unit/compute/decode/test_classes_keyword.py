from __future__ import annotations

import numpy as np
import pytest

from agent.config import DecodeConfig
from agent.types import Detection
from tests.support.decoding import decoder, spec

pytestmark = pytest.mark.numerics

LABELS = ("yes", "no", "silence")


def answer(
    values: list[float], labels: tuple[str, ...] = LABELS, wanted: tuple[str, ...] = ()
) -> list[Detection]:
    tensors = [spec("hidden", 1, 9, 4), spec("scores", 1, len(labels))]
    decode = decoder(
        "keyword", spec("x", 1, 9, 4), tensors, labels, score=0.6, config=DecodeConfig(labels=wanted)
    )
    return decode([np.zeros((1, 9, 4), np.float32), np.array([values], np.float32)])


def test_the_best_label_is_the_answer_however_unsure_and_has_no_box() -> None:
    (found,) = answer([0.2, 0.5, 0.3])
    assert (found.label, found.box) == ("no", None)
    assert found.score == pytest.approx(0.5)


def test_silence_is_an_answer_too() -> None:
    assert [one.label for one in answer([0.1, 0.0, 0.9])] == ["silence"]


def test_a_wake_word_always_gives_its_score() -> None:
    assert [answer([score], ("alexa",)) for score in (0.0, 1.0)] == [[Detection("alexa", s)] for s in (0.0, 1.0)]


def test_another_label_than_those_asked_for_is_no_answer() -> None:
    assert answer([0.4, 0.5, 0.1], wanted=("yes",)) == []
    assert [one.label for one in answer([0.6, 0.3, 0.1], wanted=("yes",))] == ["yes"]


def test_what_is_not_finite_is_never_sure() -> None:
    (found,) = answer([np.nan, np.inf, 0.1])
    assert found.label == "silence"
    assert found.score == pytest.approx(0.1)


@pytest.mark.parametrize(("dtype", "scale"), [("float32", 0.0), ("int8", 1 / 16), ("uint8", 1 / 16)])
def test_a_wake_word_of_logits_is_as_sure_as_its_sigmoid(dtype: str, scale: float) -> None:
    zero = 128 if dtype == "uint8" else 0
    tensor = spec("word", 1, 1, dtype=dtype, scale=scale, zero_point=zero)
    decode = decoder("keyword", spec("x", 1, 9, 4), [tensor], ("alexa",), score=0.6, logits="sigmoid")
    for real, expected in ((-4.0, 0.018), (0.0, 0.5), (3.0, 0.9526)):
        (found,) = decode([np.full((1, 1), real / (scale or 1.0) + zero).astype(dtype)])
        assert found.score == pytest.approx(expected, abs=1e-3)
