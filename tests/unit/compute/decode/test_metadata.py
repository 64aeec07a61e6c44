from __future__ import annotations

import json
import logging
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.compute.decode.completion import ModelFacts, complete
from agent.compute.decode.metadata import Metadata, read_metadata
from agent.compute.manifest import Manifest
from agent.compute.tflite.model import TensorSpec
from agent.errors import ModelError
from tests.support.decoding import spec
from tests.support.examples import examples
from tests.support.metadata_builder import metadata, with_files
from tests.support.tflite_builder import Op, T, add_model, write

IMAGE = spec("image", 1, 8, 8, 3)
SCORES = spec("scores", 1, 3)
LABELS = b"robin\nwren\n\xc3\xa9ider\n\n"


def model(data: bytes, name: str = "TFLITE_METADATA") -> bytes:
    tensors = [T("image", (1, 8)), T("scores", (1, 8))]
    return write(tensors, [Op("LOGISTIC", (0,), (1,))], (0,), (1,), metadata={name: data})


def manifest_of(content: bytes, inputs: list[TensorSpec], outputs: list[TensorSpec], name: str) -> Manifest:
    """The manifest of a model that has none beside it."""
    facts = ModelFacts(read_metadata(content) or Metadata(), tuple(inputs), tuple(outputs))
    return complete({}, facts, name).manifest


def test_normalisation_labels_and_threshold_come_from_the_file() -> None:
    data = metadata(mean=(127.5,), std=(1, 2, 3), threshold=0.25, label_file="labels.txt")
    found = manifest_of(with_files(model(data), {"labels.txt": LABELS}), [IMAGE], [SCORES], "birds")
    assert found.name == "birds"
    assert found.output.decoder == "classify"
    assert found.output.labels == ("robin", "wren", "éider")
    assert found.output.score_threshold == 0.25
    assert found.input.mean == (127.5, 127.5, 127.5)
    assert found.input.std == (1.0, 2.0, 3.0)
    assert (found.description, found.licence) == ("Names birds.", "Apache-2.0")


def test_a_file_without_metadata_is_guessed() -> None:
    assert read_metadata(add_model()) is None
    assert read_metadata(model(b"1.5.0", "min_runtime_version")) is None
    assert read_metadata(b"no model") is None
    quantised = spec("image", 1, 8, 8, 3, dtype="uint8", scale=0.5)
    assert manifest_of(add_model(), [quantised], [SCORES], "m").input.std == (2.0, 2.0, 2.0)


def test_what_neither_file_nor_guess_says_is_asked_for() -> None:
    with pytest.raises(ModelError, match=r"its manifest must have .*mean and std"):
        manifest_of(add_model(), [IMAGE], [SCORES], "m")


@pytest.mark.parametrize("first", [b"???", b"background"])
def test_label_files_that_begin_with_the_background_shift_ssd(first: bytes) -> None:
    content = with_files(model(metadata(label_file="l.txt")), {"l.txt": first + b"\nperson\n\ncar\n"})
    outputs = [spec("b", 1, 5, 4), spec("c", 1, 5), spec("s", 1, 5), spec("n", 1)]
    found = manifest_of(content, [IMAGE], outputs, "m").output
    assert found.options == {"label_offset": 1}
    assert found.labels == (first.decode(), "person", "???", "car")


@pytest.mark.parametrize(
    ("mean", "std"), [((1, 2), (1,)), ((float("nan"),), (1,)), ((0,), (0,)), ((), (1,)), ((1, 2, 3, 4), (1,))]
)
def test_a_useless_normalisation_counts_as_none(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ModelError, match="mean and std"):
        manifest_of(model(metadata(mean=mean, std=std)), [IMAGE], [SCORES], "m")


@pytest.mark.parametrize("threshold", [-0.5, 7.0, float("nan")])
def test_a_useless_threshold_counts_as_none(threshold: float) -> None:
    found = read_metadata(model(metadata(threshold=threshold)))
    assert found is not None
    assert found.score_threshold is None


@pytest.mark.parametrize("files", [None, {"other.txt": b"x"}, {"../../etc/passwd": b"x"}])
def test_a_label_file_that_is_not_there_is_said_and_left_out(
    files: dict[str, bytes] | None, caplog: pytest.LogCaptureFixture
) -> None:
    content = model(metadata(label_file="labels.txt"))
    content = content if files is None else with_files(content, files)
    with caplog.at_level(logging.WARNING):
        found = read_metadata(content)
    assert found is not None
    assert found.labels == ()
    assert "labels.txt" in caplog.text


def test_a_label_bomb_is_refused() -> None:
    content = with_files(model(metadata(label_file="l.txt")), {"l.txt": b"a" * 50_000_000})
    with pytest.raises(ModelError, match="larger than"):
        read_metadata(content)


def test_metadata_of_another_kind_or_place_is_refused() -> None:
    with pytest.raises(ModelError, match="unknown format"):
        read_metadata(model(metadata(identifier=b"X999")))


GOOD = with_files(model(metadata(mean=(1,), std=(2,), threshold=0.5, label_file="l.txt")), {"l.txt": LABELS})


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=8))
@settings(deadline=None, max_examples=examples(400))
def test_mutations_raise_nothing_but_model_errors(changes: list[tuple[int, int]]) -> None:
    content = bytearray(GOOD)
    for place, value in changes:
        content[place] = value
    with suppress(ModelError):
        read_metadata(bytes(content))


@given(st.integers(0, len(GOOD)))
@settings(deadline=None)
def test_cut_files_raise_nothing_but_model_errors(size: int) -> None:
    with suppress(ModelError):
        read_metadata(GOOD[:size])


def test_a_model_without_an_input_is_refused() -> None:
    with pytest.raises(ModelError, match="model odd: it has no input"):
        manifest_of(b"", [], [spec("scores", 1, 4)], "odd")


NAMED = {"description": "Finds birds.", "license": "AGPL-3.0", "task": "detect", "names": {0: "robin", 1: "wren"}}


def test_what_ultralytics_attaches_is_read() -> None:
    found = read_metadata(with_files(add_model(), {"metadata.json": json.dumps(NAMED).encode()}))
    assert found == Metadata("", "Finds birds.", "AGPL-3.0", ("robin", "wren"))


def test_labels_of_tflite_metadata_go_before_those_of_ultralytics() -> None:
    attached = {"metadata.json": json.dumps(NAMED).encode()}
    both = read_metadata(with_files(model(metadata(label_file="l.txt")), {"l.txt": b"owl\ncrow\n", **attached}))
    assert both is not None
    assert both.labels == ("owl", "crow")
    without = read_metadata(with_files(model(metadata(mean=(1.0,), std=(2.0,))), attached))
    assert without is not None
    assert (without.labels, without.mean) == (("robin", "wren"), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("names", [None, 3, {}, {"0": "robin", "2": "wren"}, {"0": 7}, ["robin", 2], "robin"])
def test_names_that_leave_a_class_out_are_left_out(names: object) -> None:
    found = read_metadata(with_files(add_model(), {"metadata.json": json.dumps({"names": names}).encode()}))
    assert found is not None
    assert found.labels == ()


@pytest.mark.parametrize("text", [b"{", b"[1]", b"\xff", b" " * 1024**2 + b"{}"])
def test_a_description_that_cannot_be_read_counts_as_none(text: bytes) -> None:
    assert read_metadata(with_files(add_model(), {"metadata.json": text})) is None
