"""A small net of the kind of MediaPipe's masks, as its maker publishes it, becomes one delegate in INT8."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="quantising needs the extra [optimise]")
from ai_edge_litert.interpreter import Interpreter

from agent.compute.manifest import Manifest, Model
from agent.compute.tflite.read import read_modelfile
from agent.models.library import open_whole_model
from agent.optimise.data import Examples, read_examples
from agent.optimise.evaluate import open_content, outputs_of
from agent.optimise.quantisation.lowering import TRANSPOSED
from agent.optimise.quantise import quantise
from agent.optimise.recipe import QuantiseRecipe
from tests.support.float_models import SIDE, pictures
from tests.support.graph_sketch import Sketch

torch.set_num_threads(1)
RANDOM = np.random.default_rng(4)
WIDTH = 8


def mask_net() -> bytes:
    """Convolution, HARD_SWISH, a gate by the average over the picture, a transposed convolution, LOGISTIC."""
    made = Sketch()
    image = made.tensor((1, SIDE, SIDE, 3))
    found = made.convolve(image, RANDOM.normal(size=(WIDTH, 3, 3, 3)))
    found = made.same("HARD_SWISH", (found,))
    settings = {"filterWidth": SIDE, "filterHeight": SIDE, "strideW": 1, "strideH": 1, "padding": 1}
    mean = made.apply("AVERAGE_POOL_2D", (found,), made.tensor((1, 1, 1, WIDTH)), "Pool2DOptions", **settings)
    gate = made.same("LOGISTIC", (made.convolve(mean, RANDOM.normal(size=(WIDTH, 1, 1, WIDTH))),))
    found = made.same("MUL", (found, gate), "MulOptions")
    operands = made.constant(RANDOM.normal(size=(1, 2, 2, WIDTH))), made.constant([0.0])
    larger = made.apply("CUSTOM", (found, *operands), made.tensor((1, 2 * SIDE, 2 * SIDE, 1)))
    made.model.operatorCodes[-1].customCode = TRANSPOSED.encode()
    made.graph.operators[-1].customOptions = np.frombuffer(struct.pack("<iii", 1, 2, 2), np.uint8)
    return made.file((image,), (made.same("LOGISTIC", (larger,)),))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("mask")
    (folder / "mask.tflite").write_bytes(mask_net())
    keys = "[input]\nmean = [128.0, 128.0, 128.0]\nstd = [64.0, 64.0, 64.0]\n"
    output = '[output]\ndecoder = "segment"\nlabels = ["person"]\n[output.options]\nlogits = false\n'
    (folder / "mask.toml").write_text(f'name = "mask"\nfile = "mask.tflite"\n{keys}{output}')
    return open_whole_model(str(folder / "mask.toml"))


@pytest.fixture(scope="module")
def examples(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    path: Path = tmp_path_factory.mktemp("examples") / "x.npz"
    np.savez(path, x=pictures(32))
    return read_examples(path, model)


@pytest.fixture(scope="module")
def made(model: Model, examples: Examples) -> bytes:
    return quantise(model.content, [examples], QuantiseRecipe(method="int8", examples=32)).content


def masks(content: bytes, manifest: Manifest, examples: Examples) -> Any:
    with open_content(content, manifest) as session:
        return np.concatenate([one for (one,) in outputs_of(session, examples)])


def test_the_masks_are_those_of_the_float_model(model: Model, examples: Examples, made: bytes) -> None:
    wanted, found = (masks(one, model.manifest, examples) for one in (model.content, made))
    assert np.abs(wanted - found).mean() < 0.02
    assert ((wanted >= 0.5) == (found >= 0.5)).mean() > 0.97


def test_no_operation_is_left_that_breaks_the_graph_into_pieces(made: bytes) -> None:
    names = {operation.name for _, operation in read_modelfile(made).steps()}
    assert not names & {"CUSTOM", "HARD_SWISH", "AVERAGE_POOL_2D", "DEQUANTIZE"}
    interpreter = Interpreter(model_content=made, num_threads=1)
    interpreter.allocate_tensors()
    assert [one["op_name"] for one in interpreter._get_ops_details()].count("DELEGATE") == 1


def test_dynamic_leaves_the_activations_as_they_are(model: Model, examples: Examples) -> None:
    found = quantise(model.content, [examples], QuantiseRecipe(method="dynamic", examples=32))
    names = {operation.name for _, operation in read_modelfile(found.content).steps()}
    assert {"HARD_SWISH", "AVERAGE_POOL_2D"} <= names
