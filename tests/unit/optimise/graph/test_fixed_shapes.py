"""Free sizes become fixed ones, and what is computed from them a constant."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("flatbuffers", reason="graphs need the extra [optimise]")

from ai_edge_litert.interpreter import Interpreter

from agent.compute.tflite.read import read_modelfile
from agent.errors import ModelError
from agent.optimise.graph.fixed_shapes import fix_shapes
from tests.support.graph_sketch import TYPES, Sketch


def flattened(*free: int) -> bytes:
    """[batch, 4, 6] → [batch, 24], by the shape at run time, as Keras writes it; these axes are free."""
    sketch = Sketch()
    x = sketch.tensor((1, 4, 6))
    shape = sketch.apply("SHAPE", [x], sketch.tensor((3,), TYPES.INT32), "ShapeOptions", outType=TYPES.INT32)
    ends = [sketch.constant(one, np.int32) for one in ([0], [1], [1])]
    batch = sketch.tensor((), TYPES.INT32)
    sketch.apply("STRIDED_SLICE", [shape, *ends], batch, "StridedSliceOptions", shrinkAxisMask=1)
    sizes = sketch.tensor((2,), TYPES.INT32)
    sketch.apply("PACK", [batch, sketch.constant(24, np.int32)], sizes, "PackOptions", valuesCount=2)
    y = sketch.apply("RESHAPE", [x, sizes], sketch.tensor((1, 24)), "ReshapeOptions")
    sketch.graph.tensors[x].shapeSignature = np.array(
        [-1 if axis in free else size for axis, size in enumerate((1, 4, 6))], np.int32
    )
    return sketch.file([x], [y])


def kinds(content: bytes) -> list[str]:
    return [one.name for one in read_modelfile(content).subgraphs[0].operations]


def test_a_free_batch_is_one_and_what_it_gives_a_constant() -> None:
    found = fix_shapes(flattened(0))
    assert kinds(found) == ["RESHAPE"]
    assert not any(one.open for one in read_modelfile(found).subgraphs[0].tensors)
    runner = Interpreter(model_content=found)
    runner.allocate_tensors()
    x = np.arange(24, dtype=np.float32).reshape(1, 4, 6)
    runner.set_tensor(runner.get_input_details()[0]["index"], x)
    runner.invoke()
    np.testing.assert_array_equal(runner.get_tensor(runner.get_output_details()[0]["index"]), x.reshape(1, 24))


def test_what_is_fixed_already_stays_to_the_byte() -> None:
    sketch = Sketch()
    x = sketch.tensor((1, 4))
    content = sketch.file([x], [sketch.same("FLOOR", [x])])
    assert fix_shapes(content) == content


def test_other_free_sizes_have_to_be_given() -> None:
    with pytest.raises(ModelError, match=r"'t0' has the shape \[1, \?, 6\]: convert the model with fixed sizes"):
        fix_shapes(flattened(1))
    assert read_modelfile(fix_shapes(flattened(1), [(1, 4, 6)])).subgraphs[0].tensors[0].shape == (1, 4, 6)


def test_sizes_that_do_not_fit_are_told() -> None:
    with pytest.raises(ModelError, match=r"cannot run it with inputs \[\[1, 5, 6\]\]"):
        fix_shapes(flattened(1), [(1, 5, 6)])
