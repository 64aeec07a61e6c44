"""Each rule of advice, on the smallest graph that it fits."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from agent.compute.tflite.model import Operation, Quantisation, Subgraph, TensorInfo
from agent.optimise.advice import OperatorContext, advice, context_of

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
    end: bool = False,
) -> OperatorContext:
    """An operation in the middle of a graph, or at its start."""
    tensors = (
        TensorInfo("given", tuple(shape), given, 0, 0, Quantisation()),
        TensorInfo("weights", tuple(filters), weights or "int8", 1, 100, Quantisation()),
        TensorInfo("made", INNER, made or given, 0, 0, Quantisation()),
    )
    operation = Operation(name, "", 1, (0, 1) if weights else (0,), (2,))
    return context_of(Subgraph("", tensors, (0,) if end else (), (), (operation,)), operation, kernel, pace)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (case("CUSTOM", "int8"), "a custom operation"),
        (case("CONV_2D", "int8", "int4", filters=(32, 1, 1, 32)), "FULLY_CONNECTED"),
        (case("DEPTHWISE_CONV_2D", "int8", "int4"), "keep it INT8"),
        (case("ADD", "int8", shape=(-1, 8, 8, 32)), "only known at run time"),
        (case("FULLY_CONNECTED", "float32", "int8", kernel=KERNEL), "dynamic range"),
        (case("CONV_2D", "float32", "int8"), "dynamic range"),
        (case("DEQUANTIZE", "int8", made="float32"), "on its other side"),
        (case("QUANTIZE", "uint8", made="int8", end=True), "pixels as they are"),
        (case("QUANTIZE", "float32", made="int8", end=True), "an end of the model is float"),
        (case("SOFTMAX", "int8"), "end the model in logits"),
        (case("TRANSPOSE", "int8"), "breaks the graph into pieces"),
        (case("RESIZE_BILINEAR", "int8"), "breaks the graph into pieces"),
        (case("CONV_2D", "int8", "int8"), "XNNPACK wants INT8"),
        (case("TOPK_V2", "float32"), "a type that XNNPACK takes"),
        (case("CONV_2D", "float32", "float32", kernel=KERNEL), "computes in float"),
        (case("DEPTHWISE_CONV_2D", "int8", "int8", kernel=KERNEL, pace=0.1), "an earlier stride"),
        (case("CONV_2D", "int8", "int8", kernel=KERNEL, pace=0.9), "bound by arithmetic"),
        (case("PAD", "int8", kernel=KERNEL), "padding SAME"),
        (case("CONCATENATION", "int8", kernel=KERNEL), "bound by memory"),
    ],
    ids=lambda value: value.name if isinstance(value, OperatorContext) else value,
)
def test_the_first_rule_that_fits(given: OperatorContext, wanted: str) -> None:
    assert wanted in advice(given)
    assert "\n" not in advice(given)


def test_a_kernel_without_an_operation() -> None:
    graph = Subgraph("", (), (), (), ())
    assert "is unknown" in advice(context_of(graph, None, "Convert (NC, F32, QD8)"))


def test_an_operation_without_inputs_or_outputs_breaks_no_rule() -> None:
    operation = Operation("CALL_ONCE", "", 1, (), ())
    for kernel in ("", KERNEL):
        assert advice(context_of(Subgraph("", (), (), (), (operation,)), operation, kernel))
