"""Scores of small models in every kind of numbers, against what is known of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.compute.manifest import InputManifest, Manifest, Model, OutputManifest
from agent.errors import ModelError
from agent.optimise.data import Examples
from agent.optimise.data.annotations import ObjectBoxes
from agent.optimise.data.layouts import FoundData
from agent.optimise.evaluate import (
    Score,
    change,
    memory_mb,
    open_content,
    outputs_of,
    score,
    time_ms,
    wilson,
)
from tests.support.picture_models import COLOURS, SIDE, Numbers, classifier, detector, picture
from tests.support.tflite_builder import Op, T, write

MANIFEST = Manifest(
    "colours",
    OutputManifest("classify", COLOURS),
    InputManifest("rgb", "stretch", (127.5,) * 3, (127.5,) * 3),
)
SSD = Manifest("ssd", OutputManifest("ssd", COLOURS, 0.4), MANIFEST.input)


def examples(
    classes: list[int] | None = None, boxes: list[ObjectBoxes] | None = None, side: int = SIDE
) -> Examples:
    """Twelve pictures of red, green, blue, red …"""
    pictures = np.array([picture(COLOURS[number % 3])[:, :, ::-1] for number in range(12)])
    labels = None if classes is None else np.array(classes, np.int64)
    found = FoundData(pictures, "pictures", labels, tuple(boxes) if boxes else None, COLOURS)
    return Examples(found, (side, side, 3), MANIFEST.input, "memory")


def whole(*classes: int) -> ObjectBoxes:
    """What `detector` finds: an object at the middle, and others that it does not."""
    return ObjectBoxes(np.array(classes, np.int64), np.tile([0.1, 0.1, 0.9, 0.9], (len(classes), 1)))


@pytest.mark.parametrize("numbers", ["float32", "int8", "uint8"])
def test_a_classifier_is_scored_in_every_kind_of_numbers(numbers: Numbers) -> None:
    right = [number % 3 for number in range(12)]
    found = score(classifier(numbers), examples(right), MANIFEST)
    assert (found.metric, found.value, found.count) == ("top-1", 1.0, 12)
    wrong = [*right[:9], 1, 2, 0]
    found = score(classifier(numbers), examples(wrong), MANIFEST)
    assert found.value == 0.75
    assert found.right == (True,) * 9 + (False,) * 3
    assert found.interval is not None
    assert found.interval[0] < 0.75 < found.interval[1]


def test_maps_of_features_are_compared_by_their_values() -> None:
    """The largest of thousands of features is no class."""
    shape = (1, SIDE, SIDE, 3)

    def shifted(by: float) -> bytes:
        tensors = [T("image", shape), T("by", (3,), data=np.full(3, by, np.float32)), T("features", shape)]
        return write(tensors, [Op("ADD", (0, 1), (2,))], inputs=(0,), outputs=(2,))

    found = score(shifted(0.01), examples(), MANIFEST, reference=shifted(0.0))
    assert found.metric == "fidelity"
    assert 0.9 < found.value < 1.0


def test_a_detector_is_scored_by_average_precision() -> None:
    pytest.importorskip("pycocotools", reason="pycocotools is of the extra [optimise]")
    right = [whole(number % 3) for number in range(12)]
    found = score(detector(), examples(boxes=right), SSD)
    assert (found.metric, found.count) == ("AP", 12)
    assert found.value == pytest.approx(1.0, abs=0.01)
    assert found.details["AP50"] == pytest.approx(1.0, abs=0.01)
    # A second object in every other picture, which is not found.
    twice = ObjectBoxes(np.zeros(2, np.int64), np.array([[0.1, 0.1, 0.9, 0.9], [0.0, 0.0, 0.1, 0.1]]))
    missed = [ObjectBoxes(one.classes.repeat(2), twice.boxes) if at % 2 else one for at, one in enumerate(right)]
    assert 0.3 < score(detector(), examples(boxes=missed), SSD).value < 0.9


def test_without_labels_a_model_is_compared_with_another() -> None:
    found = score(classifier("int8"), examples(), MANIFEST, reference=classifier("float32"))
    assert (found.metric, found.value) == ("agreement", 1.0)
    assert 0.0 < found.details["error"] < 0.1
    same = score(classifier("float32"), examples(), MANIFEST, reference=classifier("float32"))
    assert same.details["error"] == 0.0
    with pytest.raises(ModelError, match="reference"):
        score(classifier("int8"), examples(), MANIFEST)
    with pytest.raises(ModelError, match="outputs"):
        score(classifier("float32"), examples(), MANIFEST, reference=detector())


def test_examples_of_another_shape_are_refused() -> None:
    with pytest.raises(ModelError, match="input"):
        score(classifier("int8"), examples([0] * 12, side=9), MANIFEST)
    with pytest.raises(ModelError, match="class 3"):
        score(classifier("int8"), examples([3] * 12), MANIFEST)
    with pytest.raises(ModelError):
        score(classifier("int8")[:500], examples([0] * 12), MANIFEST)
    with pytest.raises(ModelError, match="no examples"):
        score(classifier("int8"), examples([0] * 12).take([]), MANIFEST)


def test_outputs_are_real_values() -> None:
    with open_content(classifier("int8"), MANIFEST) as session:
        (first, *_) = outputs_of(session, examples())
    assert first[0].dtype == np.float32
    assert first[0].sum() == pytest.approx(1.0, abs=0.02)


def test_files_are_timed_in_turns() -> None:
    found = time_ms([classifier("float32"), classifier("int8")], 2)
    assert len(found) == 2
    assert all(0.0 < one < 10.0 for one in found)


def test_memory_is_that_of_a_process() -> None:
    assert 5.0 < memory_mb(classifier("int8")) < 500.0


@given(st.integers(1, 500).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_wilsons_interval_holds_the_share(case: tuple[int, int]) -> None:
    right, count = case
    low, high = wilson(right, count)
    assert 0.0 <= low <= right / count + 1e-9
    assert right / count - 1e-9 <= high <= 1.0
    assert high - low < 2 * 1.96 / math.sqrt(count)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=8, max_size=200))
def test_a_change_is_judged_by_the_examples_that_differ(pairs: list[tuple[bool, bool]]) -> None:
    one, other = (
        Score("top-1", sum(side) / len(pairs), len(pairs), right=tuple(side)) for side in zip(*pairs, strict=True)
    )
    found = change(one, other)
    assert found.value == pytest.approx(other.value - one.value)
    assert found.interval is not None
    assert found.interval[0] < found.value < found.interval[1]
    differ = sum(a != b for a, b in pairs)
    assert found.interval[1] - found.interval[0] <= 2 * 1.97 * math.sqrt(max(1, differ)) / len(pairs)
    assert change(replace(one, right=()), other).interval is None


def test_the_model_of_a_path_is_scored_as_its_file(tmp_path: Path) -> None:
    content = classifier("uint8")
    model = Model(content, "", MANIFEST, str(tmp_path / "a.tflite"))
    assert score(model.content, examples([0, 1, 2] * 4), model.manifest).value == 1.0
