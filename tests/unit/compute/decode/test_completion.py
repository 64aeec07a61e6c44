from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from agent.compute.decode.completion import complete, facts_of
from agent.compute.manifest import AudioManifest, Completed
from agent.compute.tflite.read import read_modelfile
from agent.errors import ModelError
from tests.support import tflite_builder as build
from tests.support.metadata_builder import metadata, with_files
from tests.support.picture_models import COLOURS, Ending, Numbers, classifier, detector

METADATA = "from the metadata in the model file"


def completed(content: bytes, **stated: Any) -> Completed:
    return complete(stated, facts_of(content, read_modelfile(content)), "m")


def test_what_the_manifest_says_comes_before_metadata_and_that_before_guesses_and_defaults() -> None:
    found = completed(classifier(), input={"order": "bgr"}, output={"labels": ["r", "g", "b"]})
    manifest, sources = found.manifest, found.sources
    assert (manifest.input.order, manifest.output.labels) == ("bgr", ("r", "g", "b"))
    assert manifest.input.mean == manifest.input.std == (127.5, 127.5, 127.5)
    assert (manifest.output.decoder, manifest.output.score_threshold) == ("classify", 0.4)
    assert sources["input", "mean"] == sources["input", "std"] == METADATA
    assert sources["output", "decoder"].startswith("guessed: ")
    assert not {("input", "order"), ("output", "labels"), ("output", "score_threshold")} & sources.keys()


def test_each_key_is_completed_by_itself() -> None:
    found = completed(classifier(), input={"mean": [0.0, 0.0, 0.0]})
    assert (found.manifest.input.mean, found.manifest.input.std) == ((0.0,) * 3, (127.5,) * 3)


@pytest.mark.parametrize(("numbers", "mean"), [("int8", 128.0), ("uint8", 128.0)])
def test_without_metadata_a_quantised_input_takes_pixels_as_they_are(numbers: Numbers, mean: float) -> None:
    found = completed(classifier(numbers, described=False), output={"decoder": "classify", "labels": COLOURS})
    assert found.manifest.input.mean == (mean,) * 3
    assert found.manifest.input.std == pytest.approx((127.5,) * 3)


def test_a_float_input_of_unknown_range_is_asked_for_or_doubted() -> None:
    with pytest.raises(ModelError, match=r"its manifest must have .*mean and std"):
        completed(classifier("float32", described=False))
    (doubt,) = completed(classifier("float32", described=False), output={"decoder": "classify"}).doubts
    assert "mean and std are left out" in doubt


def test_a_manifest_against_the_model_is_doubted() -> None:
    (saturated,) = completed(classifier(), input={"mean": [0, 0, 0], "std": [127.5, 127.5, 127.5]}).doubts
    assert "50% of the pixel values lie outside its range" in saturated
    assert completed(classifier(), input={"mean": [127.5] * 3}).doubts == ()


@pytest.mark.parametrize("numbers", ["float32", "int8", "uint8"])
@pytest.mark.parametrize(("ending", "logits"), [("SOFTMAX", False), ("LOGISTIC", False), ("", True)])
def test_logits_are_told_from_probabilities(numbers: Numbers, ending: Ending, logits: bool) -> None:
    found = completed(classifier(numbers, ending))
    assert found.manifest.output.options == {"logits": logits}
    assert found.sources["output", "options", "logits"].startswith("guessed: ")


def test_what_the_manifest_says_of_logits_counts() -> None:
    stated = {"decoder": "classify", "options": {"logits": "sigmoid"}}
    assert completed(classifier(ending=""), output=stated).manifest.output.options == {"logits": "sigmoid"}
    stated = {"decoder": "classify", "options": {"logits": False}}
    found = completed(classifier(ending=""), output=stated)
    assert found.manifest.output.options == {"logits": False}


@pytest.mark.parametrize(
    ("scale", "zero", "logits"),
    [(1 / 256, -128, False), (1 / 255, -128, False), (1 / 16, 0, True), (1 / 256, 0, True), (1 / 32, -128, True)],
)
def test_an_unknown_ending_is_judged_by_its_range(scale: float, zero: int, logits: bool) -> None:
    tensors = [
        build.T("image", (1, 1, 1, 3), "int8", scale=(1.0,), zero_point=-128),
        build.T("shape", (2,), "int32", np.array((1, 3), np.int32)),
        build.T("scores", (1, 3), "int8", scale=(scale,), zero_point=zero),
    ]
    content = build.write(tensors, [build.Op("RESHAPE", (0, 1), (2,))], (0,), (2,))
    assert completed(content).manifest.output.options == {"logits": logits}


def test_a_wake_word_of_logits_gets_a_sigmoid() -> None:
    tensors = [
        build.T("x", (1, 4), "int8", scale=(0.1,)),
        build.T("w", (1, 4), "int8", np.ones((1, 4), np.int8), (0.1,)),
        build.T("word", (1, 1), "int8", scale=(1 / 16,)),
    ]
    content = build.write(tensors, [build.Op("FULLY_CONNECTED", (0, 1, -1), (2,), 4)], (0,), (2,))
    stated = {"audio": {"rate_hz": 16000, "frontend": "raw"}, "output": {"decoder": "keyword"}}
    assert completed(content, **stated).manifest.output.options == {"logits": "sigmoid"}


def weighted(name: str, *, size: int = 4) -> bytes:
    """A float model of one output of weights, which nothing follows."""
    tensors = [
        build.T("image", (1, 1, 1, 3), "uint8", scale=(1 / 255,)),
        build.T("x", (1, 3)),
        build.T("w", (size, 3), data=np.ones((size, 3), np.float32)),
        build.T(name, (1, size)),
    ]
    return build.write(tensors, [build.Op("FULLY_CONNECTED", (1, 2, -1), (3,))], (0,), (3,))


def zeros(**shapes: tuple[int, ...]) -> bytes:
    """A model of pictures with outputs of these shapes."""
    return build.constant_model({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        (zeros(Identity=(1, 65), Identity_1=(1, 1), Identity_2=(1, 1), Identity_3=(1, 65)), ("left", "right")),
        (zeros(ld_3d=(1, 195), mask=(1, 8, 8, 1), heatmap=(1, 4, 4, 39)), ()),
        (weighted("conv2d_20", size=1404), ()),
    ],
    ids=["points", "pose", "coordinates"],
)
def test_landmarks_are_not_taken_for_classes(content: bytes, labels: tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match="cannot guess how to decode outputs"):
        completed(content, output={"labels": labels} if labels else {})


def test_classes_in_the_shape_of_landmarks_are_classes() -> None:
    content = zeros(ages=(1, 18), male=(1, 1))
    labels = [f"age {number}" for number in range(18)]
    assert completed(content, output={"labels": labels}).manifest.output.decoder == "classify"


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        (weighted("conv2d_20"), ("a", "b", "c", "d")),
        (weighted("logits"), ()),
        (zeros(embedding=(1, 16), out=(1, 4)), ("a", "b", "c", "d")),
        (classifier(described=False), ()),
    ],
    ids=["labels", "name", "embedding", "softmax"],
)
def test_labels_a_name_or_a_softmax_tell_a_classifier(content: bytes, labels: tuple[str, ...]) -> None:
    stated = {"output": {"labels": labels} if labels else {}}
    assert completed(content, **stated).manifest.output.decoder == "classify"


def test_sound_with_a_single_score_is_a_wake_word_that_wants_a_label() -> None:
    tensors = [build.T("x", (1, 3, 40), "int8", scale=(0.1,)), build.T("word", (1, 1), "uint8", scale=(1 / 256,))]
    content = build.write(tensors, [build.Op("LOGISTIC", (0,), (1,))], (0,), (1,))
    audio = {"rate_hz": 16000, "frontend": "micro"}
    found = completed(content, audio=audio)
    assert found.manifest.output.decoder == "keyword"
    (doubt,) = found.doubts
    assert doubt.startswith("[output] labels are left out: ")
    assert completed(content, audio=audio, output={"labels": ["alexa"]}).doubts == ()


@pytest.mark.parametrize("sigmoid", [True, False])
def test_an_ssd_is_known_by_its_operation(sigmoid: bool) -> None:
    found = completed(detector(sigmoid=sigmoid))
    options = found.manifest.output.options
    assert (found.manifest.output.decoder, options["label_offset"]) == ("ssd", 1)
    assert options["tensors"]["classes"] == "TFLite_Detection_PostProcess:1"
    assert options.get("logits") is not sigmoid
    assert found.manifest.input.mean == (127.5, 127.5, 127.5)


def test_a_batch_that_is_left_open_counts_as_the_runtime_takes_it() -> None:
    assert completed(classifier(batch=-1)).manifest == completed(classifier()).manifest


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        (127.5, 127.5, ""),
        (128.0, 127.0, ""),
        (0.0, 1.0, "99% of the pixel values lie outside its range"),
        (0.0, 127.5, "50% of the pixel values lie outside its range"),
        (0.0, 255.0, "pixels use 50% of its range"),
        (127.5, 255.0, "pixels use 50% of its range"),
        (0.0, 1e6, "pixels use 0% of its range"),
    ],
)
@pytest.mark.parametrize("numbers", ["int8", "uint8"])
def test_a_normalisation_that_saturates_or_flattens_is_doubted(
    numbers: Numbers, mean: float, std: float, words: str
) -> None:
    doubts = completed(classifier(numbers, described=False), input={"mean": [mean] * 3, "std": [std] * 3}).doubts
    assert [words in doubt and "fits mean = 128 and std = 127.5" in doubt for doubt in doubts] == [True] * bool(
        words
    )


@pytest.mark.parametrize(("mean", "std"), [(1e9, 1.0), (0.0, -1.0), (0.0, 1e-30)])
def test_metadata_beyond_reason_is_refused_and_can_be_overridden(mean: float, std: float) -> None:
    wild = metadata(mean=(mean,), std=(std,))
    content = build.write(
        [build.T("image", (1, 8, 8, 3)), build.T("scores", (1, 4))],
        [],
        (0,),
        (1,),
        metadata={"TFLITE_METADATA": wild},
    )
    with pytest.raises(ModelError, match="the model file has an unusable value"):
        completed(content)
    assert completed(content, input={"mean": [0.0] * 3, "std": [255.0] * 3}).manifest.input.std == (255.0,) * 3


def sound(shape: tuple[int, ...], classes: int, ending: str = "SOFTMAX") -> bytes:
    """A model of an input of this shape and scores of classes."""
    tensors = [
        build.T("x", shape),
        build.T("w", (classes, 1), data=np.ones((classes, 1), np.float32)),
        build.T("dense", (1, classes)),
        build.T("scores", (1, classes)),
    ]
    operations = [build.Op("FULLY_CONNECTED", (0, 1, -1), (2,)), build.Op(ending, (2,), (3,))]
    return build.write(tensors, operations[: 2 if ending else 1], (0,), (3 if ending else 2,))


@pytest.mark.parametrize(("classes", "logits"), [(521, "sigmoid"), (12, True)])
def test_logits_of_many_sounds_are_independent(classes: int, logits: bool | str) -> None:
    labels = [f"bird {number}" for number in range(classes)]
    found = completed(sound((1, 16_000), classes, ""), output={"labels": labels}).manifest
    assert (found.output.decoder, found.output.options) == ("classify", {"logits": logits})


def test_the_rate_of_the_metadata_is_that_of_the_sound() -> None:
    note = metadata(rate_hz=22_050, label_file="l.txt")
    tensors = [build.T("x", (1, 8000)), build.T("scores", (1, 2))]
    content = build.write(
        tensors, [build.Op("LOGISTIC", (0,), (1,))], (0,), (1,), metadata={"TFLITE_METADATA": note}
    )
    found = completed(with_files(content, {"l.txt": b"bark\nsiren"}))
    assert found.manifest.audio == AudioManifest(22_050, "raw", 0.181)
    assert found.sources["audio", "rate_hz"] == METADATA
    assert found.manifest.output.labels == ("bark", "siren")


def ended(name: str, shape: tuple[int, ...], image: tuple[int, ...] = (1, 16, 16, 3)) -> bytes:
    """A model of pictures that ends in an operation of that name after weights."""
    tensors = [
        build.T("image", image, "uint8", scale=(1 / 255,)),
        build.T("w", (1,), data=np.ones(1, np.float32)),
        build.T("map", shape),
        build.T("Logits/out", shape),
    ]
    return build.write(tensors, [build.Op("CONV_2D", (0, 1), (2,)), build.Op(name, (2,), (3,))], (0,), (3,))


@pytest.mark.parametrize("name", ["AVERAGE_POOL_2D", "MEAN", "L2_NORMALIZATION"])
def test_an_embedding_is_not_taken_for_classes_unless_it_has_labels(name: str) -> None:
    with pytest.raises(ModelError, match='an embedding is "raw"'):
        completed(ended(name, (1, 1, 1, 64)))
    labels = [f"class {number}" for number in range(64)]
    assert completed(ended(name, (1, 1, 1, 64)), output={"labels": labels}).manifest.output.decoder == "classify"


@pytest.mark.parametrize(
    ("name", "shape", "image"),
    [
        ("LOGISTIC", (1, 16, 16, 3), (1, 16, 16, 3)),
        ("TANH", (1, 64, 64, 3), (1, 16, 16, 3)),
        ("LOGISTIC", (1, 16, 16, 1), (1, 16, 16, 1)),
        ("RELU", (1, 16, 16, 1), (1, 16, 16, 3)),
        ("RELU", (1, 16, 16), (1, 16, 16, 3)),
    ],
    ids=["style", "super-resolution", "autoencoder", "depth", "depth without channel"],
)
def test_a_picture_is_not_taken_for_a_segmentation(
    name: str, shape: tuple[int, ...], image: tuple[int, ...]
) -> None:
    with pytest.raises(ModelError, match="cannot guess how to decode"):
        completed(ended(name, shape, image))


@pytest.mark.parametrize(
    ("name", "shape"), [("SOFTMAX", (1, 16, 16, 3)), ("LOGISTIC", (1, 16, 16, 1)), ("RELU", (1, 16, 16, 21))]
)
def test_masks_are_a_segmentation_without_labels(name: str, shape: tuple[int, ...]) -> None:
    found = completed(ended(name, shape)).manifest.output
    assert (found.decoder, found.options.get("background", 0)) == ("segment", 0)


@pytest.mark.parametrize(
    ("labels", "classes", "background"),
    [
        (["road", "sidewalk", "building", "car"], 4, -1),
        (["Background", "aeroplane", "bicycle", "bird"], 4, 0),
        (["???", "aeroplane", "bicycle", "bird"], 4, 0),
        ([], 21, 0),
    ],
)
def test_the_first_class_is_the_background_only_if_it_is_called_so(
    labels: list[str], classes: int, background: int
) -> None:
    found = completed(ended("RELU", (1, 16, 16, classes)), output={"labels": labels} if labels else {})
    assert found.manifest.output.options.get("background", 0) == background
