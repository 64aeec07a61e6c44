"""Golden answers of models: computed when a bundle is built, compared on the board."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from agent.compute.infer.benchmark import describe_error, golden_inputs, output_error, tolerance
from agent.compute.infer.chain import ModelChain
from agent.compute.infer.session import BackendSpec, SessionOptions
from agent.compute.infer.worker import PATIENCE_S, WorkerSession
from agent.compute.manifest import Manifest, Model
from agent.compute.tflite.model import TensorSpec
from agent.errors import GoldenError, VedetteError
from agent.models.library import open_whole_model, prefixed_errors
from agent.types import Array

_LARGEST = 512 << 20
"""Bytes of all arrays together."""


def make(content: bytes, manifest: Manifest) -> bytes:
    """Compute the answers of the CPU to a seeded input.

    Args:
        content: the `.tflite` file.
        manifest: of the model.

    Returns:
        an `.npz` file, reproducible: inputs `in0` … in the model's types, answers `out0` … float32, dequantised.

    Raises:
        ModelError: the CPU does not run it. GoldenError: an answer is not finite.
    """
    with prefixed_errors(manifest.name):
        inputs, outputs, specs = _answered(content, manifest, None)
        for spec, output in zip(specs, outputs, strict=True):
            if not np.isfinite(output).all():
                raise GoldenError(
                    f"model {manifest.name}: output {spec.name} is not finite, so it cannot be compared"
                )
    arrays = {f"in{n}": array for n, array in enumerate(inputs)}
    arrays |= {f"out{n}": array.astype(np.float32) for n, array in enumerate(outputs)}
    with io.BytesIO() as file:
        np.savez(file, allow_pickle=False, **arrays)
        return file.getvalue()


def compare(content: bytes, manifest: Manifest, golden: bytes) -> None:
    """Compare the answers of a model with the golden ones.

    Args:
        content: the `.tflite` file.
        manifest: of the model, with `golden.tolerance`.
        golden: from `make`.

    Raises:
        GoldenError: the answers differ, or the golden answers are of another model; names the output.
        ModelError: the CPU does not run it.
    """
    arrays = _loaded(manifest.name, golden)
    with prefixed_errors(manifest.name):
        inputs, outputs, specs = _answered(content, manifest, arrays)
    allowed = tolerance(manifest, specs)
    for number, (given, spec) in enumerate(zip(outputs, specs, strict=True)):
        name = f"model {manifest.name}: output {number} ({spec.name})"
        wanted = arrays.get(f"out{number}")
        if wanted is None or wanted.shape != given.shape or wanted.dtype != np.float32:
            raise GoldenError(f"{name}: its golden answers have another shape, of another model; build it again")
        if not np.isfinite(wanted).all():
            raise GoldenError(f"{name}: its golden answers are not finite; build it again")
        if what := describe_error(output_error([[wanted]], [[given]], [spec]), allowed):
            raise GoldenError(f"{name}: {what}, compared with the golden answer of the bundle")
    if len(arrays) != len(inputs) + len(outputs):
        raise GoldenError(
            f"model {manifest.name}: more golden answers than outputs, so they are of another model"
        )


def _answered(
    content: bytes, manifest: Manifest, arrays: dict[str, Array] | None
) -> tuple[list[Array], list[Array], tuple[TensorSpec, ...]]:
    """Return inputs, dequantised answers and output specs, from a worker process that the model may crash."""
    model = Model(content, hashlib.sha256(content).hexdigest(), manifest, manifest.name)
    session = WorkerSession(model, BackendSpec(threads=1), SessionOptions(threads=1), deadline_s=PATIENCE_S)
    try:
        whole = ModelChain(session, manifest)
        case = golden_inputs(whole.inputs, 1)[0]
        if arrays is not None:
            case = [_checked(arrays.get(f"in{n}"), like, n, manifest) for n, like in enumerate(case)]
        return case, whole.run_cases([case])[0], tuple(whole.outputs)
    finally:
        session.close()


def _checked(array: Array | None, like: Array, number: int, manifest: Manifest) -> Array:
    if array is None or array.shape != like.shape or array.dtype != like.dtype:
        raise GoldenError(
            f"model {manifest.name}: input {number}: golden input of another shape or dtype; build it again"
        )
    return array


def _loaded(name: str, golden: bytes) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(io.BytesIO(golden)) as file:
            stored = all(info.compress_type == zipfile.ZIP_STORED for info in file.infolist())
            if not stored or sum(info.file_size for info in file.infolist()) > _LARGEST:
                raise GoldenError(f"model {name}: the golden answers are compressed or too large: build it again")
        with np.load(io.BytesIO(golden), allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise GoldenError(f"model {name}: the golden answers cannot be read: {error}; build it again") from error


def selftest(models: Path) -> Iterator[str]:
    """Compare every model of a set with its golden answers, and yield a line of text for each.

    Args:
        models: the folder of the set.

    Raises:
        GoldenError: a model gives other answers, or cannot be run.
    """
    for golden in sorted(models.glob("*.npz")):
        if not golden.with_suffix(".tflite").is_file():  # it verifies the words of a model
            continue
        path = golden.with_suffix(".toml")
        try:
            model = open_whole_model(str(path))
        except VedetteError as error:
            raise GoldenError(f"model {golden.stem}: {error}") from error
        compare(model.content, model.manifest, golden.read_bytes())
        yield f"model {golden.stem} gives the golden answers"
