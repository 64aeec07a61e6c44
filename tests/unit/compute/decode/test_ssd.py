from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from agent.config import DecodeConfig
from agent.errors import ModelError
from agent.types import Detection
from tests.support.decoding import decoder, picture, spec

pytestmark = pytest.mark.numerics

LABELS = ("???", "person", "bicycle", "car")
NAMED = (spec("boxes", 1, 3, 4), spec("classes", 1, 3), spec("scores", 1, 3), spec("count", 1))


def arrays(count: float = 3) -> dict[str, np.ndarray]:
    return {
        "boxes": np.array([[[0.1, 0.2, 0.5, 0.6], [0, 0, 1, 1], [-0.2, 0.4, 0.3, 1.7]]], np.float32),
        "classes": np.array([[0, 2, 1]], np.float32),
        "scores": np.array([[0.9, 0.8, 0.5]], np.float32),
        "count": np.array([count], np.float32),
    }


def test_corners_are_y_first_and_cut_to_the_picture() -> None:
    found = decoder("ssd", picture(320), NAMED, LABELS, label_offset=1)(list(arrays().values()))
    assert [d.label for d in found] == ["person", "car", "bicycle"]
    assert found[0].box == pytest.approx((0.2, 0.1, 0.6, 0.5))
    assert found[2].box == pytest.approx((0.4, 0, 1, 0.3))


@pytest.mark.parametrize("order", list(permutations(range(4))), ids=str)
def test_names_tell_the_order(order: tuple[int, ...]) -> None:
    values = list(arrays().values())
    decode = decoder("ssd", picture(320), [NAMED[i] for i in order], LABELS, label_offset=1)
    assert [d.label for d in decode([values[i] for i in order])] == ["person", "car", "bicycle"]


@pytest.mark.parametrize(
    "names",
    [
        ("TFLite_Detection_PostProcess", *(f"TFLite_Detection_PostProcess:{i}" for i in (1, 2, 3))),
        tuple(f"StatefulPartitionedCall:{i}" for i in (3, 2, 1, 0)),
        tuple(f"output_{i}" for i in (3, 2, 1, 0)),
    ],
)
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)], ids=str)
def test_numbered_names_tell_classes_from_scores(names: tuple[str, ...], order: tuple[int, ...]) -> None:
    specs = [spec(name, *old.shape) for name, old in zip(names, NAMED, strict=True)]
    values = list(arrays().values())
    decode = decoder("ssd", picture(320), [specs[i] for i in order], LABELS, label_offset=1)
    assert [d.label for d in decode([values[i] for i in order])] == ["person", "car", "bicycle"]


def test_the_manifest_may_insist_on_names() -> None:
    specs = [spec("a", 1, 3, 4), spec("b", 1, 3), spec("c", 1, 3), spec("d", 1)]
    given = arrays()
    decode = decoder("ssd", picture(320), specs, LABELS, label_offset=1, tensors={"scores": "b", "classes": "c"})
    found = decode([given["boxes"], given["scores"], given["classes"], given["count"]])
    assert [d.label for d in found] == ["person", "car", "bicycle"]


def decoded(config: DecodeConfig | None = None, **changes: np.ndarray) -> list[Detection]:
    given = {**arrays(), **changes}
    return decoder("ssd", picture(320), NAMED, LABELS, label_offset=1, config=config)(list(given.values()))


def test_only_counted_rows_above_the_threshold_and_wanted_labels_are_kept() -> None:
    assert len(decoded(count=np.array([1], np.float32))) == 1
    assert len(decoded(count=np.array([-1], np.float32))) == 3
    assert len(decoded(count=np.array([np.nan], np.float32))) == 3
    assert len(decoded(DecodeConfig(score_threshold=0.85))) == 1
    assert len(decoded(DecodeConfig(max_detections=2))) == 2
    assert [d.label for d in decoded(DecodeConfig(labels=("car",)))] == ["car"]


def test_holes_in_the_label_map_numbers_beyond_it_and_broken_rows() -> None:
    assert [d.label for d in decoded(classes=np.array([[-1, 2, 40]], np.float32))] == ["car", "class41"]
    assert len(decoded(classes=np.array([[np.nan, np.inf, 1]], np.float32))) == 1
    assert len(decoded(scores=np.array([[np.nan, np.inf, 0.5]], np.float32))) == 1
    boxes = arrays()["boxes"]
    boxes[0, 0] = (0.5, 0.5, 0.5, 0.9)
    boxes[0, 1, 3] = np.nan
    assert [d.label for d in decoded(boxes=boxes)] == ["bicycle"]


def test_boxes_and_scores_must_be_as_many() -> None:
    with pytest.raises(ModelError, match="as many boxes"):
        decoder("ssd", picture(320), [spec("boxes", 1, 9, 4), *NAMED[1:]], LABELS)


def test_logits_get_their_sigmoid() -> None:
    tensors = [spec("boxes", 1, 2, 4), spec("classes", 1, 2), spec("scores", 1, 2), spec("count", 1)]
    decode = decoder("ssd", picture(8), tensors, ("cat",), score=0.5, logits=True)
    boxes = np.array([[[0.1, 0.1, 0.5, 0.5]] * 2], np.float32)
    zeros, logits = np.zeros((1, 2), np.float32), np.array([[2.0, -2.0]], np.float32)
    (found,) = decode([boxes, zeros, logits, np.array([2], np.float32)])
    assert found.score == pytest.approx(0.8808, abs=1e-3)
