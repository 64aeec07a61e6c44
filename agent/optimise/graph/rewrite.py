"""Rewrites of a `.tflite` graph that keep its answers: fewer operations, and operations with fast kernels.

Rewrites whose answers are compared with the model's own before anything is kept.

Compares two versions of a model: their answers to random inputs, and the time of an inference, in turns.

Both run in worker processes, one thread each. A version may take or give integers where the other takes or gives
floats: values are compared as real numbers.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from msgspec import Struct

from agent.compute.infer.backends import open_for_command
from agent.compute.infer.session import CPU, Session, SessionOptions
from agent.compute.manifest import ONLY_VARIANT, Manifest, Model, Variant
from agent.compute.tflite.expand import expand_int4
from agent.compute.tflite.model import TensorSpec
from agent.compute.tflite.read import read_modelfile
from agent.errors import ModelError
from agent.models.library import installed_runtime
from agent.optimise.evaluation.timing import least_ms, time_turns
from agent.optimise.graph.fixed_shapes import fix_shapes
from agent.optimise.graph.fusion import fuse_activations, fuse_batch_norm, remove_identities
from agent.optimise.graph.objects import DAMAGE, Graph, compact, dump, graphs, load
from agent.optimise.graph.padding import fuse_padding
from agent.optimise.graph.transposes import cancel_transposes
from agent.types import Array

_OPERATORS = schema.BuiltinOperator
_INTEGERS = (schema.TensorType.INT8, schema.TensorType.UINT8, schema.TensorType.INT16)
_FULLY_CONNECTED_INT4 = 12
"""Version of FULLY_CONNECTED with INT4 weights of one scale per channel."""


def connect_points(graph: Graph) -> int:
    """Turn 1×1 convolutions with INT4 weights into FULLY_CONNECTED, which has fast INT4 kernels.

    The number of input channels has to be even, as these kernels need.
    """
    points = [one for one in graph.operators if graph.kind(one) == _OPERATORS.CONV_2D and _is_point(graph, one)]
    for operator in points:
        shape = graph.shape(operator.inputs[1])
        flat = np.array([shape[0], shape[3]], np.int32)
        operator.inputs[1] = graph.add_tensor(operator.inputs[1], shape=flat, shapeSignature=None)
        connected = schema.FullyConnectedOptionsT()
        connected.keepNumDims = True
        connected.fusedActivationFunction = operator.builtinOptions.fusedActivationFunction
        operator.opcodeIndex = graph.code(_OPERATORS.FULLY_CONNECTED, _FULLY_CONNECTED_INT4)
        operator.builtinOptions = connected
        operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    return len(points)


def _is_point(graph: Graph, operator: Any) -> bool:
    weights, options = operator.inputs[1], operator.builtinOptions
    shape, source = graph.shape(weights), graph.shape(operator.inputs[0])
    is_small = graph.tensor(weights).type == schema.TensorType.INT4 and shape[1:3] == (1, 1) and shape[3] % 2 == 0
    return is_small and options.strideW == options.strideH == 1 and source[-1:] == shape[3:]


def use_integer_ends(graph: Graph) -> int:
    """Take integers where a float input is quantised at once; give them where an output is dequantised last."""
    if graph.is_called():
        return 0
    return sum(_open_end(graph, one) or _close(graph, one) for one in list(graph.operators))


def _open_end(graph: Graph, operator: Any) -> bool:
    if graph.kind(operator) != _OPERATORS.QUANTIZE:
        return False
    source, result = operator.inputs[0], operator.outputs[0]
    is_alone = source in graph.inputs and source not in graph.outputs and len(graph.readers(source)) == 1
    if not is_alone or graph.is_end(result) or graph.tensor(source).type != schema.TensorType.FLOAT32:
        return False
    graph.replace_end(source, result)
    graph.remove(operator, result)
    return True


def _close(graph: Graph, operator: Any) -> bool:
    if graph.kind(operator) != _OPERATORS.DEQUANTIZE:
        return False
    source, result = operator.inputs[0], operator.outputs[0]
    is_last = result in graph.outputs and not graph.readers(result) and not graph.is_end(source)
    if not is_last or graph.tensor(source).type not in _INTEGERS or graph.producer(source) is None:
        return False
    graph.replace_end(result, source)
    graph.remove(operator, source)
    return True


REWRITES: Mapping[str, Callable[[Graph], int]] = {
    "identities": remove_identities,
    "transposes": cancel_transposes,
    "batch-norm": fuse_batch_norm,
    "activations": fuse_activations,
    "padding": fuse_padding,
    "integer-ends": use_integer_ends,
    "points": connect_points,
}
"""By name, in the order in which they are applied."""


def rewrite(content: bytes, names: Iterable[str] = tuple(REWRITES)) -> tuple[bytes, dict[str, int]]:
    """Rewrite all graphs of a model until nothing changes any more.

    Args:
        content: of a `.tflite` file.
        names: of `REWRITES`.

    Returns:
        The new file, or the same bytes if nothing applied; and how often each rewrite did.

    Raises:
        ModelError: the file is damaged, or has custom operations or shapes that may change at run time.
    """
    check(content)
    try:
        with np.errstate(all="ignore"):  # weights may overflow: then the answers differ, and are compared
            return _rewrite(content, names)
    except DAMAGE as error:
        raise ModelError(f"cannot be rewritten, since its parts do not fit together: {error}") from error


def _rewrite(content: bytes, names: Iterable[str]) -> tuple[bytes, dict[str, int]]:
    model, counts = load(content), dict.fromkeys(names, 0)
    while found := {name: sum(map(REWRITES[name], graphs(model))) for name in counts}:
        if not any(found.values()):
            break
        counts = {name: counts[name] + found[name] for name in counts}
    if not any(counts.values()):
        return content, counts
    compact(model)
    return dump(model), counts


def check(content: bytes, done: str = "rewritten") -> None:
    """Check that a model can be rewritten.

    Args:
        content: of a `.tflite` file.
        done: what is to be done with it, for messages.

    Raises:
        ModelError: the file is damaged, or has custom operations or shapes that may change at run time.
    """
    check_known(content, done)
    for graph in read_modelfile(content).subgraphs:
        for index in (*graph.inputs, *graph.outputs):
            if graph.tensors[index].open:
                name = graph.tensors[index].name
                raise ModelError(f"{name!r} has a shape that may change: convert the model with fixed shapes")


def check_known(content: bytes, done: str) -> None:
    """Check that the meaning of each operation is known; args, and what is raised, as of `check`."""
    if custom := sorted(
        {operation.custom for _, operation in read_modelfile(content).steps() if operation.custom}
    ):
        raise ModelError(
            f"has custom operations ({', '.join(custom)}), whose meaning is not known: nothing can be {done}"
        )


_SEED = 1
_REACHES = (1.0, 0.1, 10.0, 127.0)
"""Standard deviations of random floats, in turns: a model may take values of -1..1 as well as of 0..255."""
_PATIENCE_S = 10.0
"""After which no more inferences are begun to compare them, s; but at least one for each reach."""
_LARGEST_INDEX = 2
"""Largest random value of a wide integer, which may be an index into something short."""


class Comparison(Struct, frozen=True):
    """Result of `compare`.

    Attributes:
        last_bits: largest difference of a quantised output, in steps of its scale.
        relative: largest difference of a float output, as a share of the largest value of that output.
        before_ms, after_ms: time of an inference, all signatures together, see `least_ms`.
    """

    last_bits: float
    relative: float
    before_ms: float
    after_ms: float


def compare(
    before: bytes,
    after: bytes,
    path: str,
    inputs: int = 20,
    rounds: int = 10,
    progress: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Compare two versions of a model.

    Args:
        before: a `.tflite` file.
        after: one with inputs and outputs of the same names and shapes.
        path: of the model, for messages.
        inputs: number of random inputs of each signature; fewer if they take long.
        rounds: of the times, see `time_turns`.
        progress: is told what is done next.

    Raises:
        ModelError, BackendError: one of them cannot be opened or run.
    """
    random, differences, times = np.random.default_rng(_SEED), [(0.0, 0.0)], np.zeros(2)
    with ExitStack() as opened:
        first, second = (opened.enter_context(closing(_open(content, path))) for content in (before, after))
        for variant in _manifest(before).variants:
            first.select(variant.name)
            second.select(variant.name)
            _check_ends(first, second, path)
            progress(f"signature {variant.signature or variant.name}: answers")
            differences += _compare_answers(first, second, random, inputs)
            progress(f"signature {variant.signature or variant.name}: times")
            times += [least_ms(one) for one in time_turns((first, second), rounds)]
    bits, shares = (max(values) for values in zip(*differences, strict=True))
    return Comparison(bits, shares, float(times[0]), float(times[1]))


def _compare_answers(
    first: Session, second: Session, random: np.random.Generator, inputs: int
) -> list[tuple[float, float]]:
    found, until = [], time.perf_counter() + _PATIENCE_S
    for turn in range(inputs):
        if turn >= len(_REACHES) and time.perf_counter() > until:
            break
        _write_inputs(first, second, random, _REACHES[turn % len(_REACHES)])
        first.invoke()
        second.invoke()
        found += _differences(first, second)
    return found


def _manifest(content: bytes) -> Manifest:
    """Return a manifest whose variants are the signatures of a file."""
    names = [signature.name for signature in read_modelfile(content).signatures]
    variants = tuple(Variant(name=name or ONLY_VARIANT, signature=name) for name in names or [""])
    return Manifest(variants=variants)


def _open(content: bytes, path: str) -> Session:
    """Open a model as a stream would, its INT4 weights expanded where they have no fast kernel."""
    content = expand_int4(content, installed_runtime())
    model = Model(content, hashlib.sha256(content).hexdigest(), _manifest(content), path)
    return open_for_command(model, CPU, SessionOptions(threads=1))


def _check_ends(first: Session, second: Session, path: str) -> None:
    for one, other in ((first.inputs, second.inputs), (first.outputs, second.outputs)):
        if [(spec.name, spec.shape) for spec in one] != [(spec.name, spec.shape) for spec in other]:
            raise ModelError(f"{path}: the versions have different inputs or outputs: {one} and {other}")


def _write_inputs(first: Session, second: Session, random: np.random.Generator, reach: float) -> None:
    for index, (one, other) in enumerate(zip(first.inputs, second.inputs, strict=True)):
        stored = _random(other, random, reach)
        second.input(index)[...] = stored
        first.input(index)[...] = stored if one.dtype == other.dtype else other.real(stored)


def _random(spec: TensorSpec, random: np.random.Generator, reach: float) -> Array:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return random.normal(scale=reach, size=spec.shape).astype(dtype)
    if dtype.kind == "b" or dtype.itemsize > 2:
        return random.integers(0, _LARGEST_INDEX + 1, spec.shape).astype(dtype)
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max, spec.shape, dtype=dtype, endpoint=True)


def _differences(first: Session, second: Session) -> list[tuple[float, float]]:
    """Return for each output the difference in last bits, and as a share; one of them is 0."""
    found = []
    for index, (one, other) in enumerate(zip(first.outputs, second.outputs, strict=True)):
        reals = [spec.real(np.asarray(run.output(index))) for run, spec in ((first, one), (second, other))]
        before, after = (values.astype(np.float64) for values in reals)
        different = before[before != after] - after[before != after]  # equal infinities have no difference
        largest = float(np.max(np.abs(different[~np.isnan(different)]), initial=0.0))
        if not np.array_equal(np.isnan(before), np.isnan(after)):
            largest = np.inf
        if scale := one.scale or other.scale:
            found.append((largest / scale, 0.0))
        else:
            finite = np.abs(before[np.isfinite(before)])
            found.append((0.0, largest / max(float(np.max(finite, initial=0.0)), 1e-9)))
    return found


LAST_BITS, RELATIVE = 1.0, 5e-4
"""Largest differences of answers before and after a rewrite: of quantised outputs in last bits, of float ones as
a share of the largest value. A product that is folded is rounded elsewhere."""
_SLACK = 1.01
"""Differences of real values are rounded, too."""


class RewrittenModel(Struct, frozen=True):
    """Result of `rewrite_verified`.

    Attributes:
        content: the new file; the old bytes if nothing applied.
        counts: how often each rewrite applied.
        comparison: of both files; None if nothing applied.
    """

    content: bytes
    counts: dict[str, int]
    comparison: Comparison | None = None


def rewrite_verified(
    content: bytes,
    path: str,
    names: Sequence[str] = tuple(REWRITES),
    progress: Callable[[str], None] = lambda _: None,
) -> RewrittenModel:
    """Rewrite a model, and compare its answers to random inputs with those of the model as it was.

    Args:
        content: of a `.tflite` file.
        path: of the model, for messages.
        names: of `REWRITES`.
        progress: is told what is done next.

    Raises:
        ModelError: the file cannot be rewritten, see `rewrite`, or a rewrite changes the answers.
        BackendError: the runtime cannot run it.
    """
    progress("rewriting")
    try:
        check_known(content, "rewritten")
        content = fix_shapes(content)
        changed, counts = rewrite(content, names)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    if changed == content:
        return RewrittenModel(content, counts)
    found = compare(content, changed, path, progress=progress)
    if found.last_bits > LAST_BITS * _SLACK or found.relative > RELATIVE:
        raise ModelError(
            f"{path}: the rewritten model answers differently ({found.last_bits:.3g} last bits, "
            f"{found.relative:.2g} of the largest value): nothing is written; --skip leaves out one of those "
            f"that were done: {', '.join(name for name in names if counts[name])}"
        )
    return RewrittenModel(changed, counts, found)
