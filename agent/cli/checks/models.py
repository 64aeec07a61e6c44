"""Report the measured backends of each model, and verify that the bundled models compute correctly.

The self-test runs the bundled models on golden inputs, each in a process of its own, and compares the answers
with those that `scripts/build_models/golden_answers` has recorded. Inputs are made from integers alone, so that
they are the same on every processor and with every version of numpy. XNNPACK gives the same INT8 answers on every
processor but for a step in two kinds of operations (see `scripts/arm_check`); the runtime's own kernels do not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from agent.board.proc import ADVICE, cpu_info_unreadable, read_memory
from agent.cli.checks import Finding
from agent.compute.infer import unprivileged
from agent.compute.infer.benchmark import Measurement, Selection
from agent.compute.infer.delegates import DelegateProbe
from agent.compute.infer.session import AUTO, BackendSpec, SessionOptions
from agent.compute.infer.unprivileged import without_root
from agent.compute.infer.worker import WorkerSession
from agent.compute.manifest import FEATURES, Model
from agent.compute.tflite.model import TensorSpec
from agent.compute.tflite.read import only_signature
from agent.config import Config
from agent.daemon.measurements import StoredMeasurement, StoredMeasurements
from agent.errors import ModelError, StorageError, VedetteError
from agent.models.files import ZOO, bundled
from agent.models.library import open_manifest, open_model_without_root, open_whole_model
from agent.storage.state import MeasurementFiles, folder_of
from agent.structs import from_json
from agent.text import local_time, without_login
from agent.types import Array

_BUSY = 0.25
"""Share of the processor used by other programs above which a measurement is unreliable."""
_FRESH = "vedette doctor --fresh measures it now"
_AGAIN = "measure again while nothing else runs on the board: sudo systemctl stop vedette; vedette doctor --fresh"

_MEASURE_S = 3600.0
"""Time limit for measuring one model, s: an accelerator may take minutes to open it."""


def check_models(
    config: Config | None, root: Path, *, fresh: bool, progress: Callable[[str], None] = lambda _: None
) -> Iterator[Finding]:
    """Report each model whose backend is chosen automatically, and the figures of each candidate.

    Args:
        config: its streams name the models; without streams the bundled models are reported.
        root: root of the file system.
        fresh: measure now, and store the result.
        progress: called with what is measured next.
    """
    wanted = config or Config()
    try:
        state = folder_of(wanted.storage, root)
    except StorageError as error:
        yield Finding("state folder", str(error), "warning", str(error))
        return
    measurements = StoredMeasurements(MeasurementFiles(state), wanted.selection)
    for name, variant in _models(config):
        try:
            model = open_model_without_root(name, variant)
        except VedetteError as error:
            if wanted.streams:
                yield Finding(without_login(name), "cannot be used: see the section of the configuration")
            else:
                yield Finding(name, str(error), "problem", f"{name} cannot be used: {error}")
            continue
        yield from _check_model(measurements, name, model, fresh, progress)
    if why := unprivileged.parsed_as_root:
        advice = "install Vedette where that user may read it, such as /opt"
        yield Finding("model files", f"are parsed as root, because {why}", "warning", advice)


def _check_model(
    measurements: StoredMeasurements, name: str, model: Model, fresh: bool, progress: Callable[[str], None]
) -> Iterator[Finding]:
    """Report one model's measurement, or why there is none."""

    def measure() -> StoredMeasurement:
        return measurements.measure(model, found, lambda what: progress(f"{name}, {what}"))

    try:
        found = measurements.delegates()
        if fresh:
            made: StoredMeasurement | None = without_root(measure, StoredMeasurement, _MEASURE_S)
        else:
            made = measurements.load(model, found)
        if made is None:
            yield Finding(name, f"not measured on this board, or something has changed since: {_FRESH}")
            return
        yield from check_survey(model, made, measurements.select(made, found), found)
        if fresh:
            measurements.store(model, made)
    except StorageError as error:
        if fresh:
            value = f"was measured, but cannot be stored: {error}"
            yield Finding(model.path, value, "warning", f"make the state folder writable: {error}")
        elif isinstance(error.__cause__, PermissionError):  # only the daemon may read it
            yield Finding(name, f"{error}; sudo vedette doctor may read it")
        else:
            yield Finding(name, str(error), "warning", _FRESH)
    except VedetteError as error:
        yield Finding(name, str(error), "problem", f"{name} cannot be used: {error}")


def check_survey(
    model: Model, made: StoredMeasurement, verdict: Selection, found: Sequence[DelegateProbe]
) -> Iterator[Finding]:
    """Report the chosen backend, when it was measured, and the cost or refusal of the others."""
    plan = verdict.chosen
    best = next(one for one in verdict.measured if (one.name, one.threads) == (plan.backend, plan.threads))
    value = f"{_way(best)}, {_cost(best)}; measured {local_time(made.at)}, others used {made.busy:.0%}"
    if made.busy > _BUSY:
        yield Finding(model.path, f"{value} of the processor", "warning", _AGAIN)
    else:
        yield Finding(model.path, f"{value} of the processor")
    here = {one.name for one in found if one.plan is not None}
    for one in verdict.measured:
        if one is not best and (one.name == verdict.cpu.backend or one.name in here):
            yield Finding(f"  {_way(one)}", one.refused or _cost(one))


def _is_run(name: str) -> bool:
    """Return False for a backbone of pictures, which no stream can run."""
    manifest = open_manifest(name)
    return manifest.is_embedding or manifest.output.decoder != FEATURES


def _models(config: Config | None) -> list[tuple[str, str]]:
    """Return each pair of name and variant once."""
    streams = config.streams.values() if config else ()
    wanted = [(one.model, one.variant) for one in streams if one.enabled and one.backend == AUTO]
    return list(dict.fromkeys(wanted)) or ([] if streams else [(name, "") for name in bundled() if _is_run(name)])


def _way(one: Measurement) -> str:
    return f"{one.name}, {one.threads} thread{'s' * (one.threads != 1)}" if one.threads else one.name


def _cost(one: Measurement) -> str:
    return f"{one.p50_ms:.2f} ms and {one.cpu_ms:.2f} ms of CPU time"


RECORD = ZOO / "answers.json"
_BLOCK = 8
"""Pixels of an edge of the shapes."""
_PRIME = 31
_MULTIPLIER, _MASK = 2654435761, 0xFFFFFFFF
"""Knuth's multiplicative hash, The Art of Computer Programming, vol. 3, 6.4."""


class Golden(Struct, frozen=True):
    """A variant's answer to its golden input.

    Attributes:
        model, variant: names.
        sha256: hash of the model's file.
        at: indices into each flattened output, by the output's name.
        values: the integers at these indices.
    """

    model: str
    variant: str
    sha256: str
    at: dict[str, list[int]]
    values: dict[str, list[int]]


def recorded(path: Path = RECORD) -> list[Golden]:
    """Read the recorded answers."""
    return from_json(path.read_bytes(), list[Golden])


def open_alone(name: str, variant: str) -> Model:
    """Open a bundled model with one variant only; a state that another variant would hand on becomes an input.

    Raises:
        ModelError: there is no such model or variant, or it is damaged.
    """
    model = open_whole_model(name)
    one = model.manifest.variant(variant)
    content = only_signature(model.content, one.signature)
    return replace(model, content=content, manifest=replace(model.manifest, variants=(one,)))


def golden_input(spec: TensorSpec) -> Array:
    """Return blocks with noise over them, over the whole range of a quantised input's integer type."""
    axes = np.indices(spec.shape, np.uint64)
    blocks = np.zeros(spec.shape, np.uint64)
    for axis in axes:
        blocks = blocks * np.uint64(_PRIME) + axis // np.uint64(_BLOCK)
    places = np.arange(blocks.size, dtype=np.uint64).reshape(spec.shape)
    mixed = (_hashed(blocks) * np.uint64(3) + _hashed(places)) // np.uint64(4)
    return (mixed.astype(np.int64) + np.iinfo(spec.dtype).min).astype(spec.dtype)


def _hashed(numbers: Array) -> Array:
    return (numbers * np.uint64(_MULTIPLIER) & np.uint64(_MASK)) >> np.uint64(24)


_STEPS, _STEPS_WITHOUT = 2, 32
"""Largest difference from the record with XNNPACK and without it, in steps of the last bit."""
_PATIENCE_S = 30.0
"""Time limits for opening and for an inference, s: without XNNPACK one takes seconds on a small board."""
_EACH_MB = 150
"""Memory for one process, MB: LiteRT, numpy, a model, and a reserve for the daemon."""
_REINSTALL = (
    "install the runtime anew (pip install --force-reinstall ai-edge-litert); if it stays, the board is broken"
)


class Tried(Struct, frozen=True):
    """Result of running a variant on its golden input.

    Attributes:
        name: model and variant.
        error: why there is no answer; empty: there is one.
        off: largest difference from the record, in steps of the last bit.
        nodes: number of operations. delegated: number that XNNPACK runs; -1: not known.
        ms: time of the second inference.
        litert: it ran in LiteRT, not in tflite-runtime.
    """

    name: str
    error: str = ""
    off: int = 0
    nodes: int = 0
    delegated: int = -1
    ms: float = 0.0
    litert: bool = True


def run_all() -> list[Tried]:
    """Run all recorded inputs, in parallel as cores and memory permit."""
    at_once = min(len(os.sched_getaffinity(0)), read_memory().available_mb // _EACH_MB)
    with ThreadPoolExecutor(max(1, at_once), thread_name_prefix="self-test") as pool:
        return list(pool.map(run, recorded()))


def run(golden: Golden) -> Tried:
    """Run a variant and compare its answer; failures become the result's error."""
    name = f"{golden.model} {golden.variant}"
    try:
        model = open_alone(golden.model, golden.variant)
        if model.sha256 != golden.sha256:
            return Tried(name, error="the file is not the one whose answers were recorded")
        session = WorkerSession(
            model, BackendSpec(), SessionOptions(threads=1), deadline_s=_PATIENCE_S, patience_s=_PATIENCE_S
        )
    except (ModelError, OSError) as error:  # an OSError: no memory for another process
        return Tried(name, error=str(error))
    try:
        return _compared(session, golden, name)
    except ModelError as error:
        return Tried(name, error=str(error))
    finally:
        session.close()


def _compared(session: WorkerSession, golden: Golden, name: str) -> Tried:
    for index, spec in enumerate(session.inputs):
        np.copyto(session.input(index), golden_input(spec))
    session.invoke()
    began = time.monotonic()
    session.invoke()
    ms = (time.monotonic() - began) * 1e3
    off = 0
    for index, spec in enumerate(session.outputs):
        found = session.output(index).ravel()[golden.at[spec.name]].astype(np.int64)
        off = max(off, int(np.abs(found - golden.values[spec.name]).max(initial=0)))
    opened = session.opened
    litert = "litert" in opened.runtime
    return Tried(name, "", off, opened.nodes, opened.delegated, ms, litert)


def check_self_test(tried: list[Tried], root: Path) -> Iterator[Finding]:
    """Run the self-test into `tried`; report whether each answer is right, and whether XNNPACK computed it."""
    tried += run_all()
    for one in tried:
        yield check_answer(one)
    yield from check_xnnpack(tried, cpu_info_unreadable(root))


def check_answer(one: Tried) -> Finding:
    """Report whether a variant answered as recorded."""
    if one.error:
        return Finding(one.name, one.error, "problem", _REINSTALL)
    allowed = _STEPS if one.delegated > 0 else _STEPS_WITHOUT
    value = f"answers are up to {one.off} steps off the record; {allowed} are allowed"
    if one.off > allowed:
        return Finding(one.name, value, "problem", _REINSTALL)
    return Finding(one.name, f"{value if one.off else 'answers as recorded'}; {one.ms:.1f} ms on one core")


def check_xnnpack(tried: Sequence[Tried], hidden: Sequence[str]) -> Iterator[Finding]:
    """Report whether XNNPACK runs the models; without it they are many times slower, with no other sign of it.

    Args:
        tried: results.
        hidden: files about the processor that cannot be read, see `agent.board.proc.cpu_info_unreadable`.
    """
    known = [one for one in tried if not one.error and one.delegated >= 0]
    nodes, taken = sum(one.nodes for one in known), sum(one.delegated for one in known)
    value = f"runs {taken} of {nodes} operations"
    if hidden:
        value += f"; {' and '.join(hidden)} cannot be read"
    if known and not taken and not any(one.litert for one in known):
        yield Finding("XNNPACK", f"{value}: tflite-runtime has its own kernels for INT8")
    elif known and not taken:
        advice = ADVICE if hidden else _REINSTALL
        yield Finding(
            "XNNPACK",
            f"is off: {value}",
            "problem",
            f"{advice}; without XNNPACK models are many times slower",
        )
    elif hidden:
        yield Finding("XNNPACK", value, "warning" if known else "problem", ADVICE)
    elif known:
        yield Finding("XNNPACK", value)
