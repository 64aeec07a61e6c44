from __future__ import annotations

import numpy as np
import pytest

from agent.config import DecodeConfig
from agent.errors import ModelError
from agent.types import Detection
from tests.support.decoding import assert_sound, decoder, picture, spec

pytestmark = pytest.mark.numerics

LABELS = ("background", "cat", "dog")


def regions() -> np.ndarray:
    """Class numbers 32×32: a cat of 8×4, a dog in two pieces of 6×6 and 1×1."""
    classes = np.zeros((32, 32), np.int64)
    classes[4:8, 2:10] = 1
    classes[20:26, 20:26] = 2
    classes[30, 1] = 2
    return classes


def logits(classes: np.ndarray, height: float = 8.0) -> np.ndarray:
    return np.asarray((np.eye(3) * height)[classes][None], np.float32)


def by_label(detections: list[Detection]) -> dict[str, Detection]:
    return {d.label: d for d in detections}


def test_regions_of_logits() -> None:
    found = by_label(decoder("segment", picture(64), [spec("out", 1, 32, 32, 3)], LABELS)([logits(regions())]))
    assert set(found) == {"cat", "dog"}
    cat = found["cat"]
    assert cat.box == (2 / 32, 4 / 32, 10 / 32, 8 / 32)
    assert cat.area == 32 / 1024
    assert cat.score == pytest.approx(np.exp(8) / (np.exp(8) + 2), abs=1e-4)
    assert len(cat.outline) == 4
    assert (2.5 / 32, 4.5 / 32) in cat.outline


@pytest.mark.parametrize("dtype", ["int64", "uint8", "float32"])
def test_regions_of_class_numbers(dtype: str) -> None:
    tensor = spec("out", 1, 32, 32, dtype=dtype)
    found = decoder("segment", picture(64), [tensor], LABELS)([regions()[None].astype(dtype)])
    assert {d.label: d.score for d in found} == {"cat": 1.0, "dog": 1.0}


def test_every_piece_counts_when_the_least_area_allows_it() -> None:
    decode = decoder("segment", picture(64), [spec("out", 1, 32, 32, dtype="int64")], LABELS, min_area=0.0)
    assert [d.label for d in decode([regions()[None]])].count("dog") == 2


def test_probabilities_and_quantised_logits() -> None:
    probabilities = logits(regions(), 0.9)
    found = decoder("segment", picture(64), [spec("out", 1, 32, 32, 3)], LABELS, logits=False)([probabilities])
    assert {round(d.score, 3) for d in found} == {0.9}
    tensor = spec("out", 1, 32, 32, 3, dtype="int8", scale=0.1, zero_point=-100)
    stored = (logits(regions()) * 10 - 100).astype(np.int8)
    found = decoder("segment", picture(64), [tensor], LABELS)([stored])
    assert {round(d.score, 2) for d in found} == {1.0}


@pytest.mark.parametrize(("raw", "value"), [(True, 3.0), (False, 0.95)])
def test_a_mask_of_one_class(raw: bool, value: float) -> None:
    mask = np.full((1, 32, 32, 1), -3.0 if raw else 0.02, np.float32)
    mask[0, 8:16, 8:16] = value
    mask[0, 0] = np.nan
    (found,) = decoder("segment", picture(64), [spec("out", 1, 32, 32, 1)], ("person",), logits=raw)([mask])
    assert found.label == "person"
    assert found.box == (0.25, 0.25, 0.5, 0.5)
    assert found.score == pytest.approx(0.952, abs=0.01)


def test_wanted_labels_thresholds_and_limits() -> None:
    tensor = [spec("out", 1, 32, 32, dtype="int64")]
    for config, labels in (
        (DecodeConfig(labels=("dog",)), ["dog"]),
        (DecodeConfig(max_detections=1), ["cat"]),
    ):
        assert [
            d.label for d in decoder("segment", picture(64), tensor, LABELS, config=config)([regions()[None]])
        ] == labels
    weak = logits(regions(), 0.2)
    assert decoder("segment", picture(64), [spec("out", 1, 32, 32, 3)], LABELS, score=0.5)([weak]) == []


def test_noise_is_no_crash() -> None:
    random = np.random.default_rng(0)
    wild = random.normal(0, 9, (1, 32, 32, 3)).astype(np.float32)
    wild[random.random(wild.shape) < 0.1] = np.nan
    wild[random.random(wild.shape) < 0.1] = np.inf
    assert_sound(decoder("segment", picture(64), [spec("out", 1, 32, 32, 3)], LABELS)([wild]))
    numbers = random.integers(-(2**60), 2**60, (1, 32, 32))
    assert decoder("segment", picture(64), [spec("out", 1, 32, 32, dtype="int64")], LABELS)([numbers]) == []
    numbers = np.where(random.random((1, 32, 32)) < 0.5, np.nan, 1.0).astype(np.float32)
    assert_sound(decoder("segment", picture(64), [spec("out", 1, 32, 32)], LABELS)([numbers]))


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ModelError, match="mask in the shape of the 64x64 input"):
        decoder("segment", picture(64), [spec("out", 1, 32, 8, 3)], LABELS)
