from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from agent.cli.models import models
from agent.errors import ModelError
from tests.support.tflite_builder import add_model, bad_dimension_model, constant_model, fully_connected_model

MANIFEST = """
name = "birds"
licence = "MIT"
[output]
decoder = "classify"
labels = ["robin", "wren", "owl", "crow"]
"""


def call(*args: str) -> Result:
    result = CliRunner().invoke(models, args)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    path = tmp_path / "birds.tflite"
    path.write_bytes(constant_model({"scores": np.zeros((1, 4), np.float32)}, signature="serve"))
    path.with_suffix(".toml").write_text(MANIFEST, "utf-8")
    return path


def test_inspecting_shows_what_is_inside(birds: Path) -> None:
    result = call("inspect", str(birds))
    assert result.exit_code == 0
    for words in ("2 RESHAPE", "signature serve", "scores float32[1,4]", "classify with 4 labels (manifest)"):
        assert words in result.output
    assert "litert: nothing known against it" in result.output


def test_inspecting_as_json(birds: Path) -> None:
    found = json.loads(call("inspect", str(birds), "--json").output)
    assert found["operations"] == {"RESHAPE": 2}
    assert found["manifest"]["name"] == "birds"
    assert found["guessed"] is False
    assert found["refusals"] == {"litert": [], "tflite-runtime": []}


def test_a_model_without_a_manifest_is_guessed(birds: Path) -> None:
    birds.with_suffix(".toml").unlink()
    result = call("inspect", str(birds))
    assert result.exit_code == 0
    assert "classify with 0 labels (guessed)" in result.output


def test_a_model_that_cannot_be_guessed_exits_with_1(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(add_model((1, 4)))
    result = call("inspect", str(path))
    assert result.exit_code == 1
    assert "write a manifest beside it (m.toml)" in result.output.replace("\n", "")


def test_a_manifest_that_does_not_fit_exits_with_1(birds: Path) -> None:
    birds.with_suffix(".toml").write_text(MANIFEST.replace('"classify"', '"yolo"'), "utf-8")
    result = call("inspect", str(birds))
    assert result.exit_code == 1
    assert "these tensors would fit decoder 'classify'" in result.output.replace("\n", "")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (bad_dimension_model(), "quantised dimension"),
        (fully_connected_model(hybrid=True), "tflite-runtime refuses: dynamic-range"),
    ],
)
def test_refusals_exit_with_1(birds: Path, content: bytes, words: str) -> None:
    birds.write_bytes(content)
    result = call("inspect", str(birds))
    assert result.exit_code == 1
    assert words in result.output


def test_names_in_a_file_are_no_markup(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(add_model((1, 4), output_name="[red]\x1b[2Jevil"))
    output = call("inspect", str(path)).output
    assert "[red]\\x1b[2Jevil" in output
    assert "\x1b" not in output


def test_what_is_no_model_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(b"<html>")
    with pytest.raises(ModelError, match=r"m\.tflite: the model file is a web page"):
        call("inspect", str(path))
    with pytest.raises(ModelError, match="no such file"):
        call("inspect", str(tmp_path / "gone.tflite"))


def test_the_list_has_every_bundled_model_and_the_files(birds: Path) -> None:
    result = call("list", str(birds), "--json")
    assert result.exit_code == 0
    *_, last = json.loads(result.output)
    assert last["decoder"] == "classify"
    assert (last["labels"], last["rungs"], last["licence"]) == (4, ["full"], "MIT")
    assert "classify" in call("list", str(birds)).output


def test_a_model_of_depths_is_listed_with_what_it_takes_itself() -> None:
    speech = next(row for row in json.loads(call("list", "--json").output) if row["name"] == "small-speech")
    assert speech["input"].startswith("8000 Hz, logmel → features int8[1,98,40,1]")
    assert "8000 Hz, logmel" in call("inspect", "small-speech").output


def test_a_broken_file_in_the_list_exits_with_1(birds: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(b"PK\x03\x04")
    result = call("list", str(birds), str(bad))
    assert result.exit_code == 1
    assert result.stderr.startswith(f"vedette: {bad}: the model file is a zip archive")
    assert "MIT" in result.stdout
    assert "zip archive" not in result.stdout
