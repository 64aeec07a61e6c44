"""Float models become integers: what the runtime computes is what the fake quantisation says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="quantising needs the extra [optimise]")
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from agent.compute.tflite.read import read_modelfile
from agent.optimise.graph.integers import (
    INT8_MAX,
    INT8_MIN,
    IntegerPlan,
    IntegerWeights,
    Scale,
    from_range,
    write,
)
from agent.optimise.graph.objects import dump, load
from agent.optimise.graph.torch_graph import TorchGraph
from tests.support.float_models import SIDE, classifier, float_file
from tests.support.graph_sketch import Sketch


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_a_range_is_covered_and_holds_zero(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    scale = from_range(low, high)
    assert INT8_MIN <= scale.zero_point <= INT8_MAX
    least, most = ((end - scale.zero_point) * scale.scale for end in (INT8_MIN, INT8_MAX))
    slack = scale.scale * 0.51
    assert least <= min(low, 0.0) + slack
    assert most >= max(high, 0.0) - slack


def nearest_plan(content: bytes, bits: int = 8) -> IntegerPlan:
    """A plan with plain rounding, and a range of -8 to 8 everywhere."""
    graph = TorchGraph(load(content))
    names = [graph.name(index) for one in graph.operations for index in one.outputs]
    scales = {name: from_range(-8.0, 8.0) for name in [graph.name(graph.inputs[0]), *names]}
    weights: dict[tuple[int, int], IntegerWeights] = {}
    top = 7 if bits == 4 else 127
    for layer in graph.layers:
        real = graph.weights(layer).detach().numpy()
        axes = tuple(axis for axis in range(real.ndim) if axis != layer.channel_axis)
        steps = np.abs(real).max(axes) / top
        sizes = [1] * real.ndim
        sizes[layer.channel_axis] = -1
        integers = np.round(real / steps.reshape(sizes)).astype(np.int8)
        own = 8 if layer.groups > 1 else bits
        bias = graph.bias(layer)
        assert bias is not None
        weights[layer.key] = IntegerWeights(
            integers, steps.astype(np.float32), own, bias.detach().numpy().astype(np.float64)
        )
    return IntegerPlan(scales, weights)


def written(content: bytes, plan: IntegerPlan, **options: Any) -> bytes:
    model = load(content)
    write(model, plan, **options)
    return dump(model)


def opened(content: bytes) -> Any:
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


@pytest.mark.parametrize(("ends", "kinds"), [("uint8", ("uint8", "int8")), ("int8", ("int8", "int8"))])
def test_ends_have_the_type_that_was_asked_for(ends: Any, kinds: tuple[str, str]) -> None:
    content = float_file(classifier())
    interpreter = opened(written(content, nearest_plan(content), ends=ends))
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (source["dtype"].__name__, result["dtype"].__name__) == kinds
    (signature,) = interpreter.get_signature_list().values()
    assert signature == {"inputs": ["image"], "outputs": ["logits"]}


def test_an_int8_model_is_one_delegate() -> None:
    content = float_file(classifier())
    interpreter = opened(written(content, nearest_plan(content), ends="int8"))
    names = [one["op_name"] for one in interpreter._get_ops_details()]
    assert names.count("DELEGATE") == 1
    plain = Interpreter(
        model_content=written(content, nearest_plan(content), ends="int8"),
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    plain.allocate_tensors()
    assert len(names) == len(plain._get_ops_details()) + 1


def test_weights_of_4_bits_are_stored_in_4_bits() -> None:
    content = float_file(classifier())
    file = read_modelfile(written(content, nearest_plan(content, bits=4)))
    (graph,) = file.subgraphs
    dtypes = [
        graph.tensors[one.inputs[1]].dtype
        for one in graph.operations
        if one.name in ("CONV_2D", "FULLY_CONNECTED")
    ]
    assert set(dtypes) == {"int4"}


def test_float_activations_keep_float_ends() -> None:
    content = float_file(classifier())
    plan = nearest_plan(content)._replace(activations={})
    interpreter = opened(written(content, plan))
    x = np.random.default_rng(0).normal(size=(1, SIDE, SIDE, 3)).astype(np.float32)
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    with torch.inference_mode():
        (wanted,) = TorchGraph(load(content))(torch.from_numpy(x))
    np.testing.assert_allclose(found, wanted.numpy(), atol=0.05)


def test_an_operation_without_an_int8_kernel_stays_float() -> None:
    sketch = Sketch()
    x = sketch.tensor((1, 8))
    doubled = sketch.same("MUL", [x, sketch.constant([2.0])], "MulOptions")
    y = sketch.same("EXP", [doubled])
    content = sketch.file([x], [y])
    scales = {f"t{number}": Scale(0.05, 0) for number in (x, doubled, y)}
    interpreter = opened(written(content, IntegerPlan(scales, {}), ends="int8"))
    integers = np.arange(-12, 12, 3, dtype=np.int8)[None]
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], integers)
    interpreter.invoke()
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"]) * 0.05
    np.testing.assert_allclose(found, np.exp(2 * integers * 0.05), atol=0.15)


def test_a_layer_without_weights_in_the_plan_stays_float() -> None:
    content = float_file(classifier())
    plan = nearest_plan(content)
    first = next(iter(plan.weights))
    kept = {key: one for key, one in plan.weights.items() if key != first}
    file = read_modelfile(written(content, plan._replace(weights=kept)))
    (graph,) = file.subgraphs
    dtypes = [graph.tensors[one.inputs[1]].dtype for one in graph.operations if "CONV" in one.name]
    assert dtypes[0] == "float32"
    assert set(dtypes[1:]) == {"int8"}
    opened(written(content, plan._replace(weights=kept)))
