"""Files in object form: written as they were read, aligned, without what nothing uses."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from agent.compute.infer.litert import load_runtime
from agent.compute.tflite.read import read_modelfile
from agent.errors import ModelError
from agent.models.files import load_file
from tests.support.picture_models import COLOURS, classifier
from tests.support.tflite_builder import Op, T, write

if load_runtime()[0] != "litert":
    pytest.skip("the object form needs LiteRT's schema", allow_module_level=True)

from ai_edge_litert import schema_py_generated as schema

from agent.compute.tflite.expand import unpack_int4
from agent.optimise.graph.objects import Graph, compact, dump, graphs, load, pack_int4

FACTOR = np.array([1, -2, 3, 4], np.float32)


def doubled() -> bytes:
    """`y = x * factor + factor`, whose two factors are stored twice."""
    tensors = [
        T("x", (1, 4)),
        T("a", (4,), data=FACTOR),
        T("b", (4,), data=FACTOR),
        T("z", (1, 4)),
        T("y", (1, 4)),
    ]
    return write(tensors, [Op("MUL", (0, 1), (3,)), Op("ADD", (3, 2), (4,))], (0,), (4,))


def answer(content: bytes, key: str | None = None) -> np.ndarray:
    interpreter: Any = load_runtime()[1].Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    (entry,) = interpreter.get_input_details()
    random = np.random.default_rng(3).uniform(0, 127, entry["shape"]).astype(entry["dtype"])
    interpreter.set_tensor(entry["index"], random)
    interpreter.invoke()
    found: np.ndarray = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return found


@pytest.mark.parametrize("name", ["nanodet", "small-speech"])
def test_a_written_file_says_what_the_read_one_said(name: str) -> None:
    content, _ = load_file(name)
    written = dump(load(content))
    assert read_modelfile(written).subgraphs == read_modelfile(content).subgraphs
    assert read_modelfile(written).signatures == read_modelfile(content).signatures
    assert np.array_equal(answer(written), answer(content))
    assert dump(load(written)) == written


def test_constants_begin_at_multiples_of_16_bytes() -> None:
    content = dump(load(load_file("small-speech")[0]))
    model = schema.Model.GetRootAs(content, 0)
    buffers = [model.Buffers(number) for number in range(model.BuffersLength())]
    starts = [one._tab.Vector(one._tab.Offset(4)) for one in buffers if not one.DataIsNone()]
    assert starts
    assert {start % 16 for start in starts} == {0}


def test_compacting_keeps_the_answers_and_stores_equal_constants_once() -> None:
    content = load_file("small-speech")[0]
    model = load(content)
    for graph in graphs(model):
        graph.add_tensor(0, name="unused")
        graph.code(schema.BuiltinOperator.ATAN2, 1)
    compact(model)
    assert len(dump(model)) <= len(dump(load(content)))
    assert np.array_equal(answer(dump(model)), answer(content))
    model = load(doubled())
    compact(model)
    assert len(model.buffers) == 2
    assert np.array_equal(answer(dump(model)), answer(doubled()))


def test_a_graph_answers_questions() -> None:
    (graph,) = graphs(load(doubled()))
    product, total = graph.operators
    assert (graph.inputs, graph.outputs, graph.number) == ([0], [4], 0)
    assert graph.producer(3) is product
    assert graph.producer(0) is graph.producer(1) is None
    assert graph.readers(3) == [total]
    assert graph.is_inner(3)
    assert not graph.is_inner(0)
    assert graph.name(4) == "y"
    assert np.array_equal(graph.constant(1), FACTOR)  # type: ignore[arg-type]
    assert graph.constant(0) is graph.constant(-1) is None


def test_a_replaced_output_keeps_its_name() -> None:
    model = load(doubled())
    graph = Graph(model, model.subgraphs[0])
    graph.replace_end(4, 3)
    graph.operators.pop()
    compact(model)
    (result,) = read_modelfile(dump(model)).ends()[1]
    assert result.name == "y"
    assert graph.constant(1) is not None
    assert not graph.is_called()


@pytest.mark.parametrize("cut", [0, 7, 100, -200])
def test_a_damaged_file_is_an_error_of_the_model(cut: int) -> None:
    with pytest.raises(ModelError):
        load(doubled()[:cut])


@given(arrays(np.int8, st.integers(0, 9), elements=st.integers(-8, 7)))
def test_int4_values_are_packed_as_they_are_unpacked(values: np.ndarray) -> None:
    assert np.array_equal(unpack_int4(pack_int4(values).tobytes(), values.size), values)


def test_attached_files_stay_with_the_model() -> None:
    content = classifier("float32", "SOFTMAX")
    written = dump(load(content))
    with zipfile.ZipFile(io.BytesIO(written)) as archive:
        assert archive.read("labels.txt").decode().split() == list(COLOURS)
    assert dump(load(written)) == written
