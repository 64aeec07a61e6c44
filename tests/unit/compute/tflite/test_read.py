from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.compute.infer.litert import load_runtime
from agent.compute.tflite.read import diagnose, incompatibilities, read_modelfile
from agent.errors import ModelError
from tests.support import tflite_builder as builder
from tests.support.examples import examples
from tests.support.picture_models import classifier, detector
from tests.support.tflite_builder import Op, Signature, T, write


def test_a_file_tells_its_graph() -> None:
    model = read_modelfile(builder.add_model((1, 4), dtype="int8", scale=0.5, zero_point=-3, signature="serve"))
    (graph,) = model.subgraphs
    assert (model.version, model.description) == (3, "test")
    assert [t.name for t in graph.tensors] == ["image", "scores", "one"]
    assert (graph.inputs, graph.outputs) == ((0,), (1,))
    assert graph.tensors[0].shape == (1, 4)
    assert graph.tensors[0].quantisation.kind == "tensor"
    assert graph.tensors[0].quantisation.zero_point == -3
    assert [(op.name, op.version) for op in graph.operations] == [("ADD", 2)]
    assert model.weights == {"int8": 4}
    (signature,) = model.signatures
    assert (signature.name, signature.inputs, signature.outputs) == ("serve", {"image": 0}, {"scores": 1})


def test_ends_are_what_a_backend_would_show() -> None:
    model = read_modelfile(builder.add_model((1, 4), dtype="int8", scale=0.5, zero_point=-3, signature="serve"))
    for signature in ("", "serve"):
        (source,), (end,) = model.ends(signature)
        assert str(source) == "image int8[1,4] (scale 0.5, zero point -3)"
        assert end.name == "scores"
    with pytest.raises(ModelError, match="no signature 'x'; it has: serve"):
        model.ends("x")


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (T("w", (2, 4), "int8", np.ones((2, 4), np.int8), (0.5, 0.25), (0, 0), 0), "channel"),
        (T("w", (2, 64), "int4", bytes(64), block=32), "block"),
        (T("w", (2, 4), "int8", np.ones((2, 4), np.int8), 0.5), "tensor"),
        (T("w", (2, 4), "float32", np.ones((2, 4), np.float32)), "none"),
    ],
)
def test_kinds_of_quantisation(tensor: T, kind: str) -> None:
    content = write(
        [T("x", (1, 4)), tensor, T("y", (1, 2))], [Op("FULLY_CONNECTED", (0, 1, -1), (2,))], (0,), (2,)
    )
    model = read_modelfile(content)
    found = model.subgraphs[0].tensors[1].quantisation
    assert found.kind == kind
    assert found.block == (32 if kind == "block" else 0)
    assert model.int4 is (kind == "block")
    assert model.dynamic_range is (kind != "none")
    assert incompatibilities(model, "litert") == []
    assert bool(incompatibilities(model, "tflite-runtime")) is (kind != "none")


@pytest.mark.parametrize(("kind", "inputs"), [("SLICE", (0,)), ("CONV_2D", (0, -1, 2)), ("ADD", (0, -1))])
def test_an_operation_that_lacks_an_input_is_refused_because_the_runtime_would_read_another(
    kind: str, inputs: tuple[int, ...]
) -> None:
    tensors = [T("x", (1, 4)), T("y", (1, 4)), T("bias", (4,), data=bytes(16))]
    (reason,) = incompatibilities(read_modelfile(write(tensors, [Op(kind, inputs, (1,))], (0,), (1,))), "litert")
    assert f"{kind} lacks an input" in reason


def test_an_operation_may_lack_a_bias() -> None:
    tensors = [T("x", (1, 4)), T("y", (1, 4)), T("weights", (4, 4), data=bytes(64))]
    model = write(tensors, [Op("FULLY_CONNECTED", (0, 2, -1), (1,))], (0,), (1,))
    assert incompatibilities(read_modelfile(model), "litert") == []


def test_static_int8_is_no_dynamic_range() -> None:
    tensors = [
        T("x", (1, 4), "int8", scale=(1.0,)),
        T("w", (2, 4), "int8", np.ones((2, 4), np.int8), (1.0,)),
        T("y", (1, 2), "int8", scale=(1.0,)),
    ]
    model = read_modelfile(write(tensors, [Op("FULLY_CONNECTED", (0, 1, -1), (2,), 4)], (0,), (2,)))
    assert not model.dynamic_range
    assert incompatibilities(model, "tflite-runtime") == []
    integers = [T("x", (1, 4), "int8", np.ones((1, 4), np.int8), (1.0,)), T("y", (1, 4))]
    assert not read_modelfile(write(integers, [Op("DEQUANTIZE", (0,), (1,))], (), (1,))).dynamic_range


def reshaped(*operations: Op) -> bytes:
    """Return a model that reshapes x to the sizes in tensor 2, which `operations` compute."""
    constant = None if operations else np.array([4], np.int32)
    tensors = [T("x", (1, 4)), T("ints", (2,), "int32"), T("sizes", (2,), "int32", constant)]
    return write([*tensors, T("y", (4,))], [*operations, Op("RESHAPE", (0, 2), (3,))], (0,), (3,))


def padded() -> bytes:
    """Return a model that pads x by as many zeros as it says, in 16 bits."""
    tensors = [T("x", (1, 4)), T("pads", (2, 2), "int16"), T("y", (1, 8))]
    return write(tensors, [Op("CAST", (0,), (1,)), Op("PAD", (0, 1), (2,))], (0,), (2,))


def suppressing() -> bytes:
    """Return a model whose suppression of boxes takes longer the more scores exceed a threshold."""
    tensors = [T("scores", (4,)), T("boxes", (4, 4), data=np.zeros((4, 4), np.float32)), T("kept", (4,), "int32")]
    return write(tensors, [Op("NON_MAX_SUPPRESSION_V4", (1, 0), (2,))], (0,), (2,))


@pytest.mark.parametrize(
    ("content", "is_fixed"),
    [
        (builder.add_model(), True),
        (reshaped(), True),
        (reshaped(Op("SHAPE", (0,), (1,)), Op("MUL", (1, 1), (2,))), True),
        (reshaped(Op("CAST", (0,), (2,))), False),
        (reshaped(Op("CAST", (0,), (1,)), Op("SHAPE", (1,), (2,))), True),
        (reshaped(Op("RANGE", (0, 0, 0), (2,))), False),
        (padded(), False),
        (suppressing(), False),
        (builder.looping_model(), False),
        (builder.filling_model(), False),
    ],
)
def test_the_cost_is_fixed_unless_the_input_decides_on_a_size_or_a_loop(content: bytes, is_fixed: bool) -> None:
    assert read_modelfile(content).has_fixed_cost is is_fixed


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (builder.custom_model("edgetpu-custom-op"), "Edge TPU"),
        (builder.custom_model("FlexErf"), "FlexErf needs TensorFlow"),
        (builder.custom_model("Nonsense"), "custom operation Nonsense is unknown"),
        (builder.custom_model(""), "(no name)"),
        (builder.bad_dimension_model(5), "quantised dimension must be in 0..1, is 5"),
        (builder.bad_dimension_model(-1), "is -1"),
        (builder.bad_dimension_model(1), "2 scales for 4 channels"),
    ],
)
def test_both_runtimes_refuse(content: bytes, words: str) -> None:
    model = read_modelfile(content)
    for runtime in ("litert", "tflite-runtime"):
        (reason,) = incompatibilities(model, runtime)
        assert words in reason


def test_scales_and_zero_points_must_be_as_many() -> None:
    broken = T("w", (2, 4), "int8", bytes(8), 0.5, (), 0)
    (reason,) = incompatibilities(read_modelfile(write([broken], [], (), ())), "litert")
    assert "1 scales, but 0 zero points" in reason


def multiplying(*scales: float, points: Sequence[int] = (0,), dimension: int = 0) -> bytes:
    weights = T("w", (2, 4), "int8", np.ones((2, 4), np.int8), scales, points, dimension)
    tensors = [T("x", (1, 4), "int8", scale=(1.0,)), weights, T("y", (1, 2), "int8", scale=(1.0,))]
    return write(tensors, [Op("FULLY_CONNECTED", (0, 1, -1), (2,), 4)], (0,), (2,))


@pytest.mark.parametrize(
    ("content", "runs"),
    [
        (multiplying(1.0), True),
        (multiplying(1.0, 0.5, points=(0, 0)), True),
        (multiplying(1.0, points=()), False),
        (multiplying(1.0, 0.5), False),
        (multiplying(1.0, 0.5, points=(0, 0), dimension=1), False),
        (multiplying(1.0, 0.5, points=(0, 0), dimension=7), False),
        (builder.custom_model("Nonsense"), False),
        (builder.add_model((1, 4)), True),
        (detector(), True),
    ],
)
def test_the_reader_refuses_what_the_runtime_refuses_and_nothing_else(content: bytes, runs: bool) -> None:
    name, module = load_runtime()
    assert (incompatibilities(read_modelfile(content), name) == []) is runs
    with nullcontext() if runs else pytest.raises((ValueError, RuntimeError)):
        module.Interpreter(model_content=content).allocate_tensors()


def test_shapes_are_those_that_the_runtime_begins_with() -> None:
    image, _ = read_modelfile(classifier(batch=-1)).ends()
    assert image[0].shape == (1, 8, 8, 3)
    assert read_modelfile(classifier(batch=-1)).subgraphs[0].tensors[0].open
    _, found = read_modelfile(detector()).ends()
    assert [spec.shape for spec in found] == [(1, -1, 4), (1, -1), (1, -1), (1,)]


@pytest.mark.parametrize("code", ["TFLite_Detection_PostProcess", "Mfcc"])
def test_custom_operations_that_the_runtimes_bring_are_fine(code: str) -> None:
    model = read_modelfile(builder.custom_model(code))
    assert model.custom == (code,)
    assert incompatibilities(model, "litert") == incompatibilities(model, "tflite-runtime") == []


def test_an_operation_from_the_future_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(builder.CODES, "ADD", 120)
    content = builder.add_model()
    monkeypatch.setattr("agent.compute.tflite.read.OPERATORS", ("ADD",))
    (reason,) = incompatibilities(read_modelfile(content), "litert")
    assert "#120 is newer" in reason


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5\n", "git lfs pull"),
        (b"\n  <!DOCTYPE html><html>", "web page"),
        (b'{"error": 404}', "JSON"),
        (b"PK\x03\x04" + bytes(20), "zip"),
        (b"\x1f\x8b" + bytes(20), "gzip"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x1c\0\0\0TFL2" + bytes(20), "b'TFL2'"),
        (b"abc", "not a TFLite model"),
    ],
)
def test_what_is_no_model_is_named(content: bytes, words: str) -> None:
    assert words in str(diagnose(content))
    with pytest.raises(ModelError) as error:
        read_modelfile(content)
    assert words in str(error.value)


def test_a_model_is_no_foreign_file() -> None:
    assert diagnose(builder.add_model()) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"operations": [Op("ADD", (0, 9), (1,))]}, "tensor 9 of 2"),
        ({"operations": [Op("ADD", (0, 1), (-1,))]}, "tensor -1 of 2"),
        ({"inputs": (7,)}, "tensor 7 of 2"),
        ({"outputs": (-1,)}, "tensor -1 of 2"),
        ({"tensors": [T("x", (1,), raw_buffer=5), T("y", (1,))]}, "buffer 5 of 1"),
        ({"signatures": [Signature("s", {"x": 3}, {})]}, "tensor 3 of 2"),
        ({"signatures": [Signature("s", {}, {}, subgraph=1)]}, "graph 1 of 1"),
    ],
)
def test_numbers_that_lead_nowhere_are_damage(changes: dict[str, Any], words: str) -> None:
    whole = {
        "tensors": [T("x", (1,)), T("y", (1,))],
        "operations": [Op("ADD", (0, 0), (1,))],
        "inputs": (0,),
        "outputs": (1,),
    }
    with pytest.raises(ModelError, match="damaged") as error:
        read_modelfile(write(**{**whole, **changes}))
    assert words in str(error.value)


def test_a_file_without_a_graph_is_refused() -> None:
    import flatbuffers

    empty = flatbuffers.Builder(16)
    empty.StartObject(8)
    empty.Finish(empty.EndObject(), b"TFL3")
    with pytest.raises(ModelError, match="no graph"):
        read_modelfile(bytes(empty.Output()))


def test_weights_behind_the_flatbuffer_must_be_there() -> None:
    import flatbuffers

    def model(size: int) -> bytes:
        writer = flatbuffers.Builder(64)
        writer.StartObject(3)
        writer.PrependUint64Slot(1, 16, 0)
        writer.PrependUint64Slot(2, size, 0)
        buffer = writer.EndObject()
        writer.StartObject(6)
        graph = writer.EndObject()
        vectors = []
        for table in (graph, buffer):
            writer.StartVector(4, 1, 4)
            writer.PrependUOffsetTRelative(table)
            vectors.append(writer.EndVector())
        writer.StartObject(8)
        writer.PrependUOffsetTRelativeSlot(2, vectors[0], 0)
        writer.PrependUOffsetTRelativeSlot(4, vectors[1], 0)
        writer.Finish(writer.EndObject(), b"TFL3")
        return bytes(writer.Output())

    assert read_modelfile(model(8)).subgraphs
    with pytest.raises(ModelError, match="truncated"):
        read_modelfile(model(10**9))


GOOD = write(
    [
        T("x", (1, 4), "int8", scale=(1.0,)),
        T("w", (2, 4), "int8", np.ones((2, 4), np.int8), (0.5, 0.25), (0, 0)),
        T("y", (1, 2), "int8", scale=(1.0,)),
    ],
    [Op("FULLY_CONNECTED", (0, 1, -1), (2,), 4), Op("Odd", (2,), (2,))],
    (0,),
    (2,),
    [Signature("s", {"x": 0}, {"y": 2})],
    {"note": b"hello"},
)


@given(
    st.lists(
        st.tuples(st.integers(8, len(GOOD) - 1), st.sampled_from([0, 1, 4, 127, 128, 255])),
        min_size=1,
        max_size=6,
    )
)
@settings(deadline=2000, max_examples=examples(800))
def test_mutations_raise_nothing_but_model_errors(changes: list[tuple[int, int]]) -> None:
    content = bytearray(GOOD)
    for place, value in changes:
        content[place] = value
    with suppress(ModelError):
        model = read_modelfile(bytes(content))
        for runtime in ("litert", "tflite-runtime"):
            incompatibilities(model, runtime)
        model.ends()


@pytest.mark.parametrize("size", range(8, len(GOOD) - 8, 7))
def test_every_cut_is_noticed(size: int) -> None:
    with pytest.raises(ModelError, match=r"truncated|damaged"):
        read_modelfile(GOOD[:size])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (builder.add_model(), [[2.0] * 4]),
        (builder.fully_connected_model(), [[6.0, 22.0]]),
        (builder.constant_model({"a": np.full((1, 2), 7, np.float32)}), [[7.0, 7.0]]),
    ],
)
def test_what_the_builder_writes_runs(content: bytes, expected: list[list[float]]) -> None:
    _, runtime = load_runtime()
    interpreter = runtime.Interpreter(model_content=content)
    interpreter.allocate_tensors()
    (source,) = interpreter.get_input_details()
    interpreter.set_tensor(source["index"], np.ones(source["shape"], source["dtype"]))
    interpreter.invoke()
    assert interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).tolist() == expected


def test_a_file_that_was_read_is_not_read_again_and_few_are_kept() -> None:
    files = [write([T("x", (1, size))], [], (0,), (0,)) for size in range(1, 8)]
    first = read_modelfile(files[0])
    assert read_modelfile(bytes(bytearray(files[0]))) is first
    for file in files[1:]:
        assert read_modelfile(file) is not first
    assert read_modelfile(files[0]) is not first
    assert read_modelfile(files[0]) == first
