from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from agent.cli.main import vedette
from agent.errors import ModelError
from tests.support import tflite_builder as build
from tests.support.delegates import COMPILER, NO_COMPILER, compiled, identity_model


def call(*args: object) -> Result:
    return CliRunner().invoke(vedette, ["bench", *map(str, args)])


@pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)
def test_a_table_and_why_one_is_refused(tmp_path: Path) -> None:
    library, model = compiled(tmp_path), identity_model(tmp_path)
    fast, refused = (f"external:{library}?mode={mode}" for mode in ("fast", "refuse"))
    done = call(model, "--backend", fast, "--backend", refused, "--backend", "teflon")
    assert done.exit_code == 0, done.output
    assert any(line.startswith("→  external:") for line in done.output.splitlines())
    text = " ".join(done.output.split())
    assert "cannot be loaded: the device is busy" in text
    assert "teflon: no " in text
    found = json.loads(call(model, "--backend", fast, "--json").stdout)
    assert found["chosen"]["settings"] == {"mode": "fast"}
    assert [one["name"] for one in found["measured"]][-1] == fast


def test_what_is_not_here_is_one_line() -> None:
    done = call("small-speech", "--variant", "3", "--by", "energy", "--backend", "tpu")
    assert done.exit_code == 1
    assert "did you mean 'edgetpu'?" in str(done.exception)
    done = call("nobody")
    assert "no bundled model is called 'nobody'" in str(done.exception)


def test_the_cpu_alone_can_be_asked_for() -> None:
    done = call("small-speech", "--variant", "3", "--backend", "cpu", "--json")
    assert done.exit_code == 0, done.exception
    found = json.loads(done.stdout)
    assert {one["name"] for one in found["measured"]} == {"cpu"}
    assert found["chosen"]["backend"] == "cpu"


def one_addition(folder: Path, *shape: int) -> Path:
    """A model that adds one to an input of this shape."""
    ones = np.ones(1, np.float32)
    tensors = [build.T("x", shape), build.T("one", (1,), "float32", ones), build.T("y", shape)]
    path = folder / "huge.tflite"
    path.write_bytes(build.write(tensors, [build.Op("ADD", (0, 1), (2,))], (0,), (2,)))
    (folder / "huge.toml").write_text('name = "huge"\n[output]\ndecoder = "classify"\nlabels = ["one"]\n')
    return folder / "huge.toml"


def test_a_model_with_an_input_of_gigabytes_is_refused_in_one_line(tmp_path: Path) -> None:
    model = one_addition(tmp_path, 1, 30000, 30000)
    done = call(model)
    assert isinstance(done.exception, ModelError)
    text = str(done.exception)
    assert text.startswith(f"{model}: refused: its tensors need at least 6866 MB of memory; at most ")
    assert "\n" not in text


def test_a_model_compiled_for_the_edge_tpu_is_refused_in_one_line_without_one(tmp_path: Path) -> None:
    path = tmp_path / "bird_edgetpu.tflite"
    path.write_bytes(build.custom_model("edgetpu-custom-op"))
    manifest = tmp_path / "bird.toml"
    manifest.write_text(
        'name = "bird"\nfile = "bird_edgetpu.tflite"\n[output]\ndecoder = "classify"\nlabels = ["a"]\n'
    )
    for backends in ((), ("--backend", "edgetpu")):
        done = call(manifest, *backends)
        assert isinstance(done.exception, ModelError), done.output
        text = str(done.exception)
        assert text == (
            f"{manifest}: refused: compiled for the Edge TPU (custom operation edgetpu-custom-op): "
            "use the file it was compiled from"
        )


@pytest.mark.parametrize("patience", ["0", "-1", "nan", "inf", "1e9"])
def test_a_patience_that_nothing_can_keep_is_refused_as_that(patience: str) -> None:
    result = call("nanodet", "--patience", patience)
    assert result.exit_code == 2
    assert "--patience" in result.output
