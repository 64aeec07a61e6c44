from __future__ import annotations

import numpy as np
import pytest

from agent.compute.decode.decoder import softmax
from agent.config import DecodeConfig
from agent.errors import ModelError
from tests.support.decoding import decoder, picture, spec

pytestmark = pytest.mark.numerics

LABELS = ("cat", "dog", "cow", "hen")


def test_the_strongest_label_of_probabilities() -> None:
    tensor = spec("p", 1, 4, dtype="uint8", scale=1 / 256)
    (found,) = decoder("classify", picture(8), [tensor], LABELS)([np.array([[5, 200, 110, 1]], np.uint8)])
    assert (found.label, found.box) == ("dog", None)
    assert found.score == pytest.approx(200 / 256)


@pytest.mark.parametrize("shape", [(1, 4), (1, 1, 1, 4)])
def test_logits_and_several_verdicts(shape: tuple[int, ...]) -> None:
    decode = decoder("classify", picture(8), [spec("p", *shape)], LABELS, score=0.2, logits=True, top_k=3)
    found = decode([np.array([2.0, 3.0, 2.5, np.nan], np.float32).reshape(shape)])
    assert [d.label for d in found] == ["dog", "cow"]


def test_a_broken_file_with_a_billion_classes_is_refused_at_once() -> None:
    with pytest.raises(ModelError, match="expected at most 1,000,000 classes, found 1,023,410,178"):
        decoder("classify", picture(8), [spec("p", 1, 1_023_410_178)])


def test_only_wanted_labels() -> None:
    decode = decoder("classify", picture(8), [spec("p", 1, 4)], LABELS, config=DecodeConfig(labels=("cow",)))
    assert [d.label for d in decode([np.array([[0.1, 0.9, 0.5, 0]], np.float32)])] == ["cow"]


def test_the_right_head_of_two_is_found_by_its_labels() -> None:
    specs = [spec("embedding", 1, 64), spec("head", 1, 4)]
    found = decoder("classify", picture(8), specs, LABELS)(
        [np.ones((1, 64), np.float32), np.eye(1, 4, dtype=np.float32)]
    )
    assert [d.label for d in found] == ["cat"]


@pytest.mark.parametrize("values", [[np.nan] * 4, [np.inf] * 4, [-np.inf] * 4])
def test_nothing_finite_is_no_verdict(values: list[float]) -> None:
    for logits in (False, True):
        decode = decoder("classify", picture(8), [spec("p", 1, 4)], LABELS, logits=logits)
        assert decode([np.array([values], np.float32)]) == []


def test_softmax_of_infinities_is_finite() -> None:
    assert softmax(np.array([np.inf, 1.0, 1.0], np.float32)).tolist() == [0.0, 0.5, 0.5]


def test_top_k_must_be_positive() -> None:
    with pytest.raises(ModelError, match="top_k"):
        decoder("classify", picture(8), [spec("p", 1, 4)], LABELS, top_k=0)


def test_another_number_of_labels_than_of_classes_is_named() -> None:
    with pytest.raises(ModelError, match=r"scores \[1,4\] .* found p float32\[1,5\] \(4 labels\)"):
        decoder("classify", picture(8), [spec("p", 1, 5)], LABELS)


@pytest.mark.parametrize(("dtype", "scale"), [("float32", 0.0), ("int8", 1 / 16), ("uint8", 1 / 16)])
def test_a_sigmoid_lets_several_classes_stand(dtype: str, scale: float) -> None:
    zero = 128 if dtype == "uint8" else 0
    tensor = spec("p", 1, 4, dtype=dtype, scale=scale, zero_point=zero)
    decode = decoder("classify", picture(8), [tensor], LABELS, score=0.5, logits="sigmoid", top_k=4)
    real = np.array([[2.0, -1.0, 1.0, -3.0]])
    found = decode([(real / (scale or 1.0) + zero).astype(dtype)])
    assert [d.label for d in found] == ["cat", "cow"]
    assert [d.score for d in found] == pytest.approx([0.8808, 0.7311], abs=1e-3)


def test_scores_that_are_no_probabilities_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    decode = decoder("classify", picture(8), [spec("p", 1, 4)], LABELS)
    for _ in range(3):
        (found,) = decode([np.array([[0.2, 7.5, 3.0, -1.0]], np.float32)])
        assert (found.label, found.score) == ("dog", 1.0)
    (record,) = caplog.records
    assert "output p has a score of 7.5" in record.message
    caplog.clear()
    decoder("classify", picture(8), [spec("p", 1, 4)], LABELS)([np.array([[0.0, 1.0, 0.0, 0.0]], np.float32)])
    assert not caplog.records
