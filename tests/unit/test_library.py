from __future__ import annotations

import gc
import hashlib
import weakref
from pathlib import Path

import numpy as np
import pytest

from agent.compute.infer.modelfile import read_modelfile
from agent.errors import ModelError
from agent.library import open_model
from agent.storage.models import ZOO
from tests.support.house import person_model
from tests.support.tflite_builder import constant_model


def test_streams_share_a_model(tmp_path: Path) -> None:
    path = str(person_model(tmp_path))
    assert open_model(path) is open_model(path)


def test_a_model_that_nobody_uses_is_forgotten(tmp_path: Path) -> None:
    path = str(person_model(tmp_path))
    model = weakref.ref(open_model(path))
    gc.collect()
    assert model() is None


def test_a_file_that_has_changed_is_another_model(tmp_path: Path) -> None:
    path = str(person_model(tmp_path))
    old = open_model(path)
    person_model(tmp_path, score=0.5)
    assert open_model(path).sha256 != old.sha256


def test_a_manifest_that_has_changed_is_read_anew(tmp_path: Path) -> None:
    path = person_model(tmp_path)
    old = open_model(str(path))
    path.write_text(path.read_text().replace("score_threshold = 0.4", "score_threshold = 0.123"))
    new = open_model(str(path))
    assert (new.manifest.output.score_threshold, new.sha256) == (0.123, old.sha256)
    assert open_model(str(path)) is new


def test_a_rung_is_that_rung_alone() -> None:
    model = open_model("nanodet", "256")
    assert [rung.name for rung in model.manifest.rungs] == ["256"]
    file = read_modelfile(model.content)
    assert [signature.name for signature in file.signatures] == [model.manifest.rungs[0].signature]
    assert len(file.subgraphs) == 1


def test_the_first_rung_is_the_default() -> None:
    assert open_model("nanodet") is open_model("nanodet", open_model("nanodet").manifest.rungs[0].name)


def test_the_hash_is_that_of_the_whole_file() -> None:
    assert open_model("nanodet").sha256 == hashlib.sha256((ZOO / "nanodet.tflite").read_bytes()).hexdigest()


def test_an_unknown_rung_names_those_there_are() -> None:
    with pytest.raises(ModelError, match=r"^nanodet: model nanodet has no rung '999'; it has: "):
        open_model("nanodet", "999")


def test_without_a_manifest_it_is_guessed(tmp_path: Path) -> None:
    path = tmp_path / "birds.tflite"
    path.write_bytes(constant_model({"scores": np.zeros((1, 4), np.float32)}))
    model = open_model(str(path))
    assert (model.manifest.name, model.manifest.output.decoder) == ("birds", "classify")


def test_what_cannot_be_guessed_is_named(tmp_path: Path) -> None:
    path = tmp_path / "odd.tflite"
    path.write_bytes(constant_model({"a": np.zeros((3, 2, 2, 7, 5), np.float32)}))
    with pytest.raises(ModelError, match=f"^{path}: "):
        open_model(str(path))
