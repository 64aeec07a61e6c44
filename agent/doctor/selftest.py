"""Runs bundled models on golden inputs: a runtime or a processor that computes wrongly is found before it tells.

Each runs in a process of its own, which may crash. On every processor XNNPACK gives the same INT8 answers but for
a step in two kinds of operations, see `scripts/arm_check`; the runtime's own kernels give others.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from msgspec import Struct

from agent.compute.infer.backend import Options, Plan
from agent.compute.infer.worker import WorkerSession
from agent.doctor.golden import Golden, golden_input, open_alone, recorded
from agent.doctor.report import Finding
from agent.errors import ModelError
from agent.health.memory import read_memory
from agent.health.processors import ADVICE, unreadable

SECTION = "self-test"
_STEPS, _STEPS_WITHOUT = 2, 32
"""Largest difference from the record with XNNPACK and without it, in steps of the last bit."""
_PATIENCE_S = 30.0
"""For opening a model, and for an inference: without XNNPACK one takes seconds on a small board."""
_EACH_MB = 150
"""Of memory for a process: LiteRT, numpy and a model, and something left for the daemon."""
_REINSTALL = (
    "install the runtime anew (pip install --force-reinstall ai-edge-litert); if it stays, the board is broken"
)


class Tried(Struct, frozen=True):
    """A rung, run.

    Attributes:
        name: of the model and the rung.
        error: why there is no answer; empty: there is one.
        off: largest difference from the record, in steps of the last bit.
        nodes: operations. delegated: of those, XNNPACK's; -1: not known.
        ms: of the second inference.
        litert: whether it ran in LiteRT, and not in tflite-runtime.
    """

    name: str
    error: str = ""
    off: int = 0
    nodes: int = 0
    delegated: int = -1
    ms: float = 0.0
    litert: bool = True


def run_all() -> list[Tried]:
    """Run everything that is recorded, as much at the same time as the board has cores and memory for."""
    at_once = min(len(os.sched_getaffinity(0)), read_memory().available_mb // _EACH_MB)
    with ThreadPoolExecutor(max(1, at_once), thread_name_prefix="self-test") as pool:
        return list(pool.map(run, recorded()))


def run(golden: Golden) -> Tried:
    """Run a rung and compare; whatever goes wrong is an error of the result."""
    name = f"{golden.model} {golden.rung}"
    try:
        model = open_alone(golden.model, golden.rung)
        if model.sha256 != golden.sha256:
            return Tried(name, error="the file is not the one that the answers were recorded of")
        session = WorkerSession(model, Plan(), Options(threads=1), deadline_s=_PATIENCE_S, patience_s=_PATIENCE_S)
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


def findings(tried: Sequence[Tried], root: Path) -> Iterator[Finding]:
    """Whether the answers are right, and whether XNNPACK gave them.

    Args:
        tried: see `run_all`.
        root: of the file system.
    """
    for one in tried:
        yield of_answer(one)
    yield from of_xnnpack(tried, unreadable(root))


def of_answer(one: Tried) -> Finding:
    """Whether a rung answered rightly."""
    if one.error:
        return Finding(SECTION, one.name, one.error, "problem", _REINSTALL)
    allowed = _STEPS if one.delegated > 0 else _STEPS_WITHOUT
    value = f"answers are up to {one.off} steps off the record; {allowed} are allowed"
    if one.off > allowed:
        return Finding(SECTION, one.name, value, "problem", _REINSTALL)
    return Finding(
        SECTION, one.name, f"{value if one.off else 'answers as recorded'}; {one.ms:.1f} ms on one core"
    )


def of_xnnpack(tried: Sequence[Tried], hidden: Sequence[str]) -> Iterator[Finding]:
    """Whether XNNPACK runs the models; without it they are many times slower, and nothing says so.

    Args:
        tried: what was run.
        hidden: see `agent.health.processors.unreadable`.
    """
    known = [one for one in tried if not one.error and one.delegated >= 0]
    nodes, taken = sum(one.nodes for one in known), sum(one.delegated for one in known)
    value = f"runs {taken} of {nodes} operations"
    if hidden:
        value += f"; {' and '.join(hidden)} cannot be read"
    if known and not taken and not any(one.litert for one in known):
        yield Finding(SECTION, "XNNPACK", f"{value}: tflite-runtime has its own kernels for INT8")
    elif known and not taken:
        advice = ADVICE if hidden else _REINSTALL
        yield Finding(
            SECTION, "XNNPACK", f"is off: {value}", "problem", f"{advice}; models are many times slower so"
        )
    elif hidden:
        yield Finding(SECTION, "XNNPACK", value, "warning" if known else "problem", ADVICE)
    elif known:
        yield Finding(SECTION, "XNNPACK", value)
