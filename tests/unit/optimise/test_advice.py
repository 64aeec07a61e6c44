"""Each rule of advice, on the smallest graph that it fits."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from agent.compute.tflite.model import Operation, Quantisation, Subgraph, TensorInfo
from agent.optimise.advice import OperatorContext, advice

KERNEL = "a kernel"
INNER = (1, 8, 8, 32)


def case(
    name: str,
    given: str,
    weights: str = "",
    *,
    kernel: str = "",
    pace: float = 0.0,
    shape: Sequence[int] = INNER,
    filters: Sequence[int] = (32, 3, 3, 32),
    made: str = "",
    out: Sequence[int] = INNER,
    end: bool = False,
) -> OperatorContext:
    """An operation in the middle of a graph, or at its start."""
    tensors = (
        TensorInfo("given", tuple(shape), given, 0, 0, Quantisation()),
        TensorInfo("weights", tuple(filters), weights or "int8", 1, 100, Quantisation()),
        TensorInfo("made", tuple(out), made or given, 0, 0, Quantisation()),
    )
    operation = Operation(name, "", 1, (0, 1) if weights else (0,), (2,))
    return OperatorContext(Subgraph("", tensors, (0,) if end else (), (), (operation,)), operation, kernel, pace)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (case("CUSTOM", "int8"), "a custom operation"),
        (case("CONV_2D", "int8", "int4", filters=(32, 1, 1, 32)), "FULLY_CONNECTED"),
        (case("CONV_2D", "int8", "int4"), "keep this layer INT8"),
        (case("DEPTHWISE_CONV_2D", "int8", "int4"), "keep this layer INT8"),
        (case("ADD", "int8", shape=(-1, 8, 8, 32)), "only known at run time"),
        (case("FULLY_CONNECTED", "float32", "int8", kernel=KERNEL), "dynamic range"),
        (case("CONV_2D", "float32", "int8"), "dynamic range"),
        (case("DEQUANTIZE", "int8", made="float32"), "on its other side"),
        (case("QUANTIZE", "uint8", made="int8", end=True), "at an end of the model"),
        (case("QUANTIZE", "float32", made="int8", end=True), "an end of the model is float"),
        (case("SOFTMAX", "int8"), "end the model in logits"),
        (case("TRANSPOSE", "int8"), "breaks the graph into pieces: leave it out"),
        (case("RESIZE_BILINEAR", "int8"), "breaks the graph into pieces: leave it out"),
        (case("CONV_2D", "int8", "int8"), "XNNPACK wants INT8"),
        (case("TOPK_V2", "float32"), "a type that XNNPACK takes"),
        (case("CONV_2D", "float32", "float32", kernel=KERNEL), "computes in float"),
        (case("DEPTHWISE_CONV_2D", "int8", "int8", kernel=KERNEL, pace=0.1), "depthwise"),
        (case("CONV_2D", "int8", "int8", kernel=KERNEL, shape=(1, 8, 8, 3)), "few input channels"),
        (case("CONV_2D", "int8", "int8", kernel=KERNEL, pace=0.1, out=(1, 8, 8, 30)), "multiples of 16"),
        (case("CONV_2D", "int8", "int8", kernel=KERNEL, pace=0.1), "an earlier stride"),
        (case("CONV_2D", "int8", "int8", kernel=KERNEL, pace=0.9), "bound by arithmetic"),
        (case("PAD", "int8", kernel=KERNEL), "padding SAME"),
        (case("RESIZE_BILINEAR", "int8", kernel=KERNEL), "resize fewer channels"),
        (case("CONCATENATION", "int8", kernel=KERNEL), "only moves data"),
        (case("MAX_POOL_2D", "int8", kernel=KERNEL), "a stride in the convolution"),
        (case("LEAKY_RELU", "int8", kernel=KERNEL), "element by element"),
        (case("CUMSUM", "int8", kernel=KERNEL), "nothing is known"),
    ],
    ids=lambda value: value.name if isinstance(value, OperatorContext) else value,
)
def test_the_first_rule_that_fits(given: OperatorContext, wanted: str) -> None:
    assert wanted in advice(given)
    assert "\n" not in advice(given)


def test_a_kernel_without_an_operation() -> None:
    graph = Subgraph("", (), (), (), ())
    assert "is unknown" in advice(OperatorContext(graph, None, "Convert (NC, F32, QD8)"))


def test_an_operation_without_inputs_or_outputs_breaks_no_rule() -> None:
    operation = Operation("CALL_ONCE", "", 1, (), ())
    for kernel in ("", KERNEL):
        assert advice(OperatorContext(Subgraph("", (), (), (), (operation,)), operation, kernel))


@pytest.mark.parametrize(
    ("scale", "wanted"), [(1 / 64, "pixels as they are"), (1 / 32, "at an end of the model")]
)
def test_pixels_that_become_int8_of_the_same_scale_are_no_fault(scale: float, wanted: str) -> None:
    known = case("QUANTIZE", "uint8", made="int8", end=True)
    given, weights, made = known.graph.tensors
    tensors = (
        replace(given, quantisation=Quantisation("tensor", 1, 1, 1 / 64, 128)),
        weights,
        replace(made, quantisation=Quantisation("tensor", 1, 1, scale, 0)),
    )
    assert wanted in advice(known._replace(graph=replace(known.graph, tensors=tensors)))
