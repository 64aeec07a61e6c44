"""A float model is quantised on examples; the file computes what was found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="quantising needs the extra [optimise]")

from ai_edge_litert import schema_py_generated as schema
from torch import nn

from agent.compute.tflite.expand import expand_int4
from agent.compute.tflite.read import read_modelfile
from agent.errors import ConfigError, ModelError
from agent.models.library import open_whole_model
from agent.optimise.data import Examples, read_examples
from agent.optimise.evaluate import open_content, outputs_of, score
from agent.optimise.graph.objects import dump, load
from agent.optimise.graph.torch_graph import TorchGraph
from agent.optimise.qat import FakeQuantised, train_quantised
from agent.optimise.quantisation.allocation import fits_int4
from agent.optimise.quantise import QuantisedModel, fixed_bits, quantise, read_layers
from agent.optimise.recipe import LayerRule, QatRecipe, QuantiseRecipe, parse_recipe
from agent.optimise.recipe.budget import Budget
from agent.optimise.source import open_source
from tests.support.float_models import SIDE, classifier, float_file, write_examples, write_model
from tests.support.graph_sketch import TYPES, Sketch

torch.set_num_threads(1)
FEW = QuantiseRecipe(examples=32)


@pytest.fixture(scope="module")
def content() -> bytes:
    return float_file(classifier())


@pytest.fixture(scope="module")
def examples(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    folder = tmp_path_factory.mktemp("examples")
    model = open_whole_model(str(write_model(folder, content)))
    return read_examples(write_examples(folder / "examples.npz"), model)


def quantised(content: bytes, examples: Examples, method: Any, **options: Any) -> QuantisedModel:
    return quantise(content, [examples], QuantiseRecipe(method=method, examples=32), **options)


def stored(content: bytes) -> dict[str, str]:
    """dtype of the weights by layer."""
    (graph,) = read_modelfile(content).subgraphs
    kinds = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    return {
        graph.tensors[one.outputs[0]].name: str(graph.tensors[one.inputs[1]].dtype)
        for one in graph.operations
        if one.name in kinds
    }


def differences(content: bytes, model: QuantisedModel, examples: Examples) -> np.ndarray:
    """Differences of the file from the graph that was quantised, in last bits of the output."""
    quantiser = model.quantiser
    fake = FakeQuantised(TorchGraph(load(quantiser.content)), model.scales, model.rounded)
    with torch.inference_mode():
        (wanted,) = fake(torch.from_numpy(examples.batch(range(len(examples)))))
    with open_content(expand_int4(content, "litert"), open_manifest_of(examples)) as session:
        found = np.concatenate([one for (one,) in outputs_of(session, examples)])
        scale = session.outputs[0].scale
    bits: np.ndarray = np.abs(found - wanted.numpy()) / scale
    return bits


def open_manifest_of(examples: Examples) -> Any:
    from agent.compute.manifest import Manifest

    return Manifest(input=examples._preparation)


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_a_file_computes_within_a_bit_of_what_was_quantised(
    content: bytes, examples: Examples, method: str
) -> None:
    found = quantised(content, examples, method)
    bits = differences(found.content, found, examples)
    assert bits.max() <= 2.01  # layers round half bits differently, which hardly ever adds up
    assert (bits > 1.01).mean() < 0.02
    assert (bits > 0.5).mean() < 0.4


def test_int8_answers_as_the_float_model(content: bytes, examples: Examples) -> None:
    found = quantised(content, examples, "int8")
    with torch.inference_mode():
        (wanted,) = TorchGraph(load(content))(torch.from_numpy(examples.batch(range(len(examples)))))
    with open_content(found.content, open_manifest_of(examples)) as session:
        outputs = np.concatenate([one for (one,) in outputs_of(session, examples)])
    error = np.square(outputs - wanted.numpy()).mean() / wanted.numpy().var()
    assert error < 0.01


def test_pixels_are_taken_as_they_are(content: bytes, examples: Examples) -> None:
    (source,), _ = read_modelfile(quantised(content, examples, "int8").content).ends("serving_default")
    assert (source.dtype, source.zero_point) == ("uint8", 128)
    assert source.scale == pytest.approx(1 / 64, rel=1e-3)


@pytest.mark.parametrize("name", [None, b"x"])
def test_tensors_without_names_of_their_own_are_told_apart(
    content: bytes, examples: Examples, name: bytes | None
) -> None:
    nameless = load(content)
    nameless.signatureDefs = None
    for tensor in nameless.subgraphs[0].tensors:
        tensor.name = name
    named, found = (quantised(one, examples, "int4") for one in (content, dump(nameless)))
    assert [one.bits for one in found.layers] == [one.bits for one in named.layers]
    assert len({one.name for one in found.layers}) == len(found.layers)
    assert differences(found.content, found, examples).max() <= 1.01
    fixed = quantised(dump(nameless), examples, "int8", layer_bits=lambda names: {names[-2]: 4})
    assert [one.bits for one in fixed.layers] == [8, 8, 8, 4, 8]


def test_int4_leaves_out_the_ends_and_depthwise_layers(content: bytes, examples: Examples) -> None:
    dtypes = list(stored(quantised(content, examples, "int4").content).values())
    assert dtypes[0] == dtypes[-1] == "int8"
    assert dtypes.count("int4") == 2


def test_dynamic_keeps_activations_float(content: bytes, examples: Examples) -> None:
    found = quantised(content, examples, "dynamic")
    (source,), (result,) = read_modelfile(found.content).ends("serving_default")
    assert (source.dtype, result.dtype) == ("float32", "float32")
    assert set(stored(found.content).values()) == {"int8"}


def test_a_size_is_met_with_the_least_sensitive_layers(content: bytes, examples: Examples) -> None:
    whole = len(quantised(content, examples, "int8").content)
    found = quantised(content, examples, "mixed", budget=Budget(size=whole - 2000))
    assert len(found.content) < whole - 2000
    low = [layer for layer in found.layers if layer.bits == 4]
    assert low
    assert all(layer.sensitivity is not None for layer in low)


@pytest.mark.parametrize("share", [0.001, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0])
def test_a_size_that_can_be_met_is_met(content: bytes, examples: Examples, share: float) -> None:
    whole, least = (len(all_layers(content, examples, bits)) for bits in (8, 4))
    limit = round(whole - share * (whole - least))
    budget = Budget(size=limit)
    assert len(quantised(content, examples, "mixed", budget=budget).content) <= limit


def test_a_size_that_cannot_be_met_says_how_near_it_came(content: bytes, examples: Examples) -> None:
    least = len(all_layers(content, examples, 4))
    with pytest.raises(ModelError) as error:
        quantised(content, examples, "mixed", budget=Budget(size=least - 1))
    assert f"size < {(least - 1) / 1e3} kB cannot be met" in str(error.value)
    assert f"give {least / 1e3} kB: prune channels" in str(error.value)


def all_layers(content: bytes, examples: Examples, bits: int) -> bytes:
    """The file with these bits in each layer that takes 4."""

    def fixed(names: Sequence[str]) -> dict[str, int]:
        layers = read_layers(content).values()
        return {layer.name: bits for layer in layers if layer.name in names and fits_int4(layer)}

    return quantised(content, examples, "int8", layer_bits=fixed).content


def test_a_latency_alone_needs_no_layer_of_4_bits(content: bytes, examples: Examples) -> None:
    found = quantised(content, examples, "mixed", budget=Budget(latency_ms=11.0))
    assert {layer.bits for layer in found.layers} == {8}


def test_a_loss_is_met_by_giving_4_bits_to_fewer_layers(content: bytes, examples: Examples) -> None:
    tried: list[float] = []

    def loss(found: bytes) -> float:
        tried.append(sum(dtype == "int4" for dtype in stored(found).values()) * 0.002)
        return tried[-1]

    found = quantised(content, examples, "mixed", budget=Budget(loss=0.005), loss=loss)
    assert sum(dtype == "int4" for dtype in stored(found.content).values()) * 0.002 < 0.005
    assert max(tried) > 0


def test_fixed_bits_are_kept(content: bytes, examples: Examples) -> None:
    names = list(stored(quantised(content, examples, "int8").content))
    recipe = parse_recipe(f'[quantise]\nlayers = [{{match = "{names[0]}", bits = 32}}]\n', "r.toml")
    found = quantise(content, [examples], FEW, layer_bits=recipe.layer_bits, budget=Budget(size=1e9))
    assert next(iter(stored(found.content).values())) == "float32"
    assert LayerRule(names[0], 32) in recipe.recipe.quantise.layers


def test_a_pattern_that_matches_no_layer_is_an_error(content: bytes, examples: Examples) -> None:
    recipe = parse_recipe('[quantise]\nlayers = [{match = "nothing*", bits = 4}]\n', "r.toml")
    with pytest.raises(ConfigError, match=r"r.toml:2: .*nothing\*"):
        quantise(content, [examples], FEW, layer_bits=recipe.layer_bits)


def test_a_depthwise_layer_cannot_have_4_bits(content: bytes, examples: Examples) -> None:
    with pytest.raises(ModelError, match="no INT4 kernel"):
        quantise(content, [examples], FEW, layer_bits=lambda names: dict.fromkeys(names, 4))


def test_a_constant_that_is_joined_to_activations_has_their_scale(tmp_path: Path) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(5, 4, 3)
            self.register_buffer("plane", torch.full((1, 1, SIDE, SIDE), 7.0))

        def forward(self, x: Any) -> Any:
            return self.head(torch.cat([self.body(x), self.plane.expand(len(x), -1, -1, -1)], 1)).mean((2, 3))

    content = float_file(Joined().eval())
    model = open_whole_model(str(write_model(tmp_path, content)))
    found = quantised(content, read_examples(write_examples(tmp_path / "x.npz"), model), "int8")
    with open_content(found.content, model.manifest) as session:
        session.invoke()


def test_an_output_that_was_never_positive_can_become_so(tmp_path: Path) -> None:
    module = classifier()
    module.head.bias.data.sub_(50.0)
    content = float_file(module)
    model = open_whole_model(str(write_model(tmp_path, content)))
    found = quantised(content, read_examples(write_examples(tmp_path / "x.npz"), model), "int8")
    _, (logits,) = read_modelfile(found.content).ends("serving_default")
    assert logits.scale * (127 - logits.zero_point) == pytest.approx(4.0, abs=0.3)


def test_sparse_weights_are_refused(content: bytes, examples: Examples) -> None:
    model = load(content)
    tensor = next(one for one in model.subgraphs[0].tensors if one.buffer and len(one.shape) == 4)
    tensor.sparsity = schema.SparsityParametersT()
    with pytest.raises(ModelError, match="stored sparsely"):
        quantised(dump(model), examples, "int8")


def test_without_a_budget_mixed_loses_little_more_than_int8(content: bytes, examples: Examples) -> None:
    def loss(found: bytes) -> float:
        return 0.1 + sum(dtype == "int4" for dtype in stored(found).values()) * 0.004

    found = quantised(content, examples, "mixed", loss=loss)
    assert sum(dtype == "int4" for dtype in stored(found.content).values()) == 1


def test_a_quantised_model_is_refused(content: bytes, examples: Examples) -> None:
    with pytest.raises(ModelError, match="quantised already"):
        quantised(quantised(content, examples, "int8").content, examples, "int8")


def test_examples_of_another_shape_are_refused(content: bytes, examples: Examples) -> None:
    from agent.optimise.graph.from_torch import float_tflite

    other = float_tflite(classifier(), (16, 16, 3))
    with pytest.raises(ModelError, match="no examples for input 'image'"):
        quantised(other, examples, "int8")


def test_a_trained_file_computes_within_a_bit_of_the_training_graph(content: bytes, examples: Examples) -> None:
    found = quantised(content, examples, "int4")
    trained = train_quantised(found, examples, QatRecipe(steps=5, batch=16))
    bits = differences(trained.content, trained, examples)
    assert bits.max() <= 1.01


def test_pictures_come_from_a_folder_beside(tmp_path: Path) -> None:
    """The command's way: model, examples and recipe from files."""
    from agent.optimise.quantisation.request import QuantiseRequest, quantise_file

    model = write_model(tmp_path, float_file(classifier()))
    write_examples(tmp_path / "examples.npz")
    (tmp_path / "recipe.toml").write_text('[data]\npath = "examples.npz"\n[quantise]\nmethod = "int8"\n')
    lines: list[str] = []
    request = QuantiseRequest(str(model), recipe=tmp_path / "recipe.toml")
    found = quantise_file(request, lambda _: None, lines.append)
    assert "64 examples" in lines[0]
    assert [step.name for step in found.report.steps] == ["float", "quantise"]
    assert found.report.steps[1].size == len(found.content)
    assert len(found.report.layers) == 5


def test_a_fixed_layer_that_is_not_there_is_told_with_its_line() -> None:
    layers = read_layers(float_file(classifier()))
    file = parse_recipe('[quantise]\nlayers = [{match = "stm", bits = 8}]', "r.toml")
    with pytest.raises(ConfigError, match=r"r\.toml:2: .*'stm' matches no layer.*'stem'"):
        fixed_bits(layers, file.layer_bits)
    deep = parse_recipe('[quantise]\nlayers = [{match = "deep", bits = 4}]', "r.toml")
    with pytest.raises(ModelError, match="'deep' has no INT4 kernel"):
        fixed_bits(layers, deep.layer_bits)


def dense(sketch: Sketch, source: int, outputs: int, bias: int | None = None) -> int:
    """A fully connected layer of random weights; `bias`: a constant, which others may share."""
    random = np.random.default_rng(len(sketch.graph.tensors))
    weights = sketch.constant(random.normal(size=(outputs, sketch.shape(source)[-1])))
    inputs = [source, weights, sketch.constant(np.zeros(outputs)) if bias is None else bias]
    return sketch.apply("FULLY_CONNECTED", inputs, sketch.tensor((1, outputs)), "FullyConnectedOptions")


def values(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def fidelity(content: bytes, found: bytes, examples: Examples) -> float:
    return score(found, examples, open_manifest_of(examples), reference=content).details["error"]


def foreign(
    sketch: Sketch, inputs: Sequence[int], outputs: Sequence[int], folder: Path, **arrays: Any
) -> tuple[Any, ...]:
    content = sketch.file(inputs, outputs)
    (folder / "model.tflite").write_bytes(content)
    model = open_source(str(folder / "model.tflite"), lambda _: None)
    return content, read_examples(values(folder / "x.npz", **arrays), model)


@pytest.mark.parametrize("method", ["int8", "dynamic", "int4"])
def test_a_bias_that_layers_share_belongs_to_each(method: str, tmp_path: Path) -> None:
    sketch = Sketch()
    x, zeros = sketch.tensor((1, 32)), sketch.constant(np.zeros(32))
    first = dense(sketch, dense(sketch, x, 32, zeros), 32, zeros)
    x_values = np.random.default_rng(0).normal(size=(40, 32)).astype(np.float32)
    content, examples = foreign(sketch, [x], [dense(sketch, first, 32, zeros)], tmp_path, x=x_values)
    found = quantised(content, examples, method)
    assert fidelity(content, found.content, examples) < (0.2 if method == "int4" else 0.05)
    assert len({one.name for one in found.layers}) == 3


def test_two_inputs_are_taken_by_their_names(tmp_path: Path) -> None:
    sketch = Sketch()
    one, other = sketch.tensor((1, 16)), sketch.tensor((1, 8))
    joined = sketch.apply("ADD", [dense(sketch, one, 8), other], sketch.tensor((1, 8)), "AddOptions")
    random = np.random.default_rng(1)
    arrays = {"t0": random.normal(size=(60, 16)), "t1": random.normal(size=(60, 8)) * 3}
    content, examples = foreign(sketch, [one, other], [dense(sketch, joined, 4)], tmp_path, **arrays)
    assert fidelity(content, quantised(content, examples, "int8").content, examples) < 0.1


def test_whole_numbers_are_taken_as_they_are(tmp_path: Path) -> None:
    sketch = Sketch()
    x, table = sketch.tensor((1, 5), TYPES.INT32), sketch.constant(np.random.default_rng(2).normal(size=(50, 16)))
    words = sketch.apply("GATHER", [table, x], sketch.tensor((1, 5, 16)), "GatherOptions")
    mean = sketch.apply("MEAN", [words, sketch.constant([1], np.int32)], sketch.tensor((1, 16)), "ReducerOptions")
    given = np.random.default_rng(3).integers(0, 50, (60, 5)).astype(np.int32)
    content, examples = foreign(sketch, [x], [dense(sketch, mean, 4)], tmp_path, x=given)
    found = quantised(content, examples, "int8").content
    assert read_modelfile(found).ends()[0][0].dtype == "int32"
    assert fidelity(content, found, examples) < 0.2


def test_a_sigmoid_beside_other_values_cuts_none_of_them_off(tmp_path: Path) -> None:
    sketch = Sketch()
    x = sketch.tensor((1, 16))
    boxes, scores = dense(sketch, x, 8), sketch.same("LOGISTIC", [dense(sketch, x, 8)])
    both = sketch.apply("CONCATENATION", [boxes, scores], sketch.tensor((1, 16)), "ConcatenationOptions", axis=-1)
    x_values = np.random.default_rng(4).normal(size=(40, 16)).astype(np.float32)
    content, examples = foreign(sketch, [x], [both], tmp_path, x=x_values)
    assert fidelity(content, quantised(content, examples, "int8").content, examples) < 0.05


def test_an_operation_that_only_the_runtime_knows_stays_float_among_integers(tmp_path: Path) -> None:
    sketch = Sketch()
    x = sketch.tensor((1, 16))
    middle = sketch.same("ELU", [dense(sketch, x, 16)])
    x_values = np.random.default_rng(5).normal(size=(40, 16)).astype(np.float32)
    content, examples = foreign(sketch, [x], [dense(sketch, middle, 4)], tmp_path, x=x_values)
    found = quantised(content, examples, "int8")
    assert fidelity(content, found.content, examples) < 0.05
    assert [one.bits for one in found.layers] == [8, 8]


def test_a_free_batch_is_one(content: bytes, examples: Examples) -> None:
    opened = load(content)
    (graph,) = opened.subgraphs
    for index in (*graph.inputs, *graph.outputs):
        shape = graph.tensors[index].shape
        graph.tensors[index].shapeSignature = np.array([-1, *shape[1:]], np.int32)
    assert quantised(dump(opened), examples, "int8").content == quantised(content, examples, "int8").content


def test_weights_that_are_no_numbers_are_refused(content: bytes, examples: Examples) -> None:
    broken = load(content)
    buffer = max(broken.buffers, key=lambda one: 0 if one.data is None else len(one.data))
    data = np.array(buffer.data).view(np.float32).copy()
    data[3] = np.nan
    buffer.data = data.view(np.uint8)
    with pytest.raises(ModelError, match=r"holds weights that are no numbers \(NaN\)"):
        quantised(dump(broken), examples, "int8")
