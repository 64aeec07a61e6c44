"""Compares two versions of a model: their answers to random inputs, and the time of an inference, in turns.

Both run in worker processes, one thread each. A version may take or give integers where the other takes or gives
floats: values are compared as real numbers.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import ExitStack, closing

import numpy as np
from msgspec import Struct

from agent.compute.infer.session import CPU, Session, SessionOptions, open_for_command
from agent.compute.manifest import ONLY_VARIANT, Manifest, Model, Variant
from agent.compute.tflite.expand import expand_int4
from agent.compute.tflite.model import TensorSpec
from agent.compute.tflite.read import read_modelfile
from agent.errors import ModelError
from agent.models.library import installed_runtime
from agent.optimise.evaluation.timing import busy_remark, least_ms, time_turns
from agent.types import Array

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
        busy: remark if other work has disturbed these times.
    """

    last_bits: float
    relative: float
    before_ms: float
    after_ms: float
    busy: str = ""


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
    random, differences, times, busy = np.random.default_rng(_SEED), [(0.0, 0.0)], np.zeros(2), ""
    with ExitStack() as opened:
        first, second = (opened.enter_context(closing(_open(content, path))) for content in (before, after))
        for variant in _manifest(before).variants:
            first.select(variant.name)
            second.select(variant.name)
            _check_ends(first, second, path)
            progress(f"signature {variant.signature or variant.name}: answers")
            differences += _compare_answers(first, second, random, inputs)
            progress(f"signature {variant.signature or variant.name}: times")
            turns = time_turns((first, second), rounds)
            times += [least_ms(one) for one in turns]
            busy = busy_remark(turns) or busy
    bits, shares = (max(values) for values in zip(*differences, strict=True))
    return Comparison(bits, shares, float(times[0]), float(times[1]), busy)


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
