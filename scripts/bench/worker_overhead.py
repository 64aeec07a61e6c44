"""A session in a worker process against the same session in this process, on the CPU: what the distance costs.

They take turns on the same pictures in one run. What is measured is what a stream does: write the input in
place, run, read the outputs.

Waking another process, and moving tensors to another core's caches, costs what the machine asks for it. So
there is a
third that pays for this and nothing else: the same session in a process that reads a byte, copies the tensors,
    runs and writes a byte (`bare`). The target is what the worker's protocol, deadlines and checks add to that.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import common
import numpy as np

from agent.compute.infer.backends import open_session
from agent.compute.infer.session import BackendSpec, Session, SessionOptions
from agent.compute.infer.worker import WorkerSession
from agent.compute.tflite.model import TensorSpec
from agent.models.library import open_model
from agent.types import Array

MODELS = (("small-speech", "3"), ("nanodet", "256"), ("nanodet", "416"))


def main() -> None:
    args = common.arguments(__doc__ or "").parse_args()
    figures: dict[str, float] = {}
    meets = True
    for name, variant in MODELS:
        model = open_model(name, variant)
        here, there = (
            open_session(model, "cpu", SessionOptions(threads=1)),
            WorkerSession(model, BackendSpec(threads=1), SessionOptions()),
        )
        bare = Bare(name, variant, here)
        near, far, least = compared(here, (there, bare), 3.0 if args.quick else 12.0)
        for session in (here, there, bare):
            session.close()
        ours, allowed = far - least, 0.1 + 0.02 * near
        meets = meets and ours <= allowed
        key = f"{name}_{variant}"
        figures |= {
            f"{key}_here_ms": near,
            f"{key}_worker_ms": far,
            f"{key}_added_ms": far - near,
            f"{key}_bare_added_ms": least - near,
            f"{key}_ours_ms": ours,
        }
        print(
            f"{name} {variant}: {near:.3f} ms here, {far:.3f} there, {least:.3f} in a bare process: "
            f"{ours:+.3f} ms are ours (at most {allowed:.3f})"
        )
    targets = {"ours_ms": "<= 0.1 + 2 % of the inference more than the bare process"}
    common.conclude("worker_overhead", figures, targets, meets)


class Runner(Protocol):
    """Interface of the three runners."""

    def input(self, index: int) -> Array:
        """An input's own memory."""

    def invoke(self) -> None:
        """Run once."""

    def output(self, index: int) -> Array:
        """An output's own memory."""

    def close(self) -> None:
        """Free everything."""


class Bare:
    """A session in another process, over a byte in a pipe and tensors in shared memory."""

    def __init__(self, name: str, variant: str, like: Session) -> None:
        specs = (*like.inputs, *like.outputs)
        self._memory = os.memfd_create("tensors")
        os.ftruncate(self._memory, sum(_size_of(spec) for spec in specs))
        arrays = mapped(self._memory, specs)
        self._inputs, self._outputs = arrays[: len(like.inputs)], arrays[len(like.inputs) :]
        ours, its, answers, to_us = (*os.pipe(), *os.pipe())
        self._asks, self._answers = its, answers
        program = f"import worker_overhead as w; w.serve({name!r}, {variant!r}, {ours}, {to_us}, {self._memory})"
        env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), str(common.ROOT)))}
        self._process = subprocess.Popen(
            [sys.executable, "-c", program], pass_fds=(ours, to_us, self._memory), env=env
        )
        os.close(ours)
        os.close(to_us)
        os.read(answers, 1)

    def input(self, index: int) -> Array:
        """Input in the shared memory."""
        return self._inputs[index]

    def invoke(self) -> None:
        """Run it there."""
        os.write(self._asks, b"r")
        os.read(self._answers, 1)

    def output(self, index: int) -> Array:
        """Output in the shared memory."""
        return self._outputs[index]

    def close(self) -> None:
        """End the process."""
        os.close(self._asks)
        self._process.wait()


def serve(name: str, variant: str, asked: int, answers: int, memory: int) -> None:
    """Serve inferences in the bare process."""
    session = open_session(open_model(name, variant), "cpu", SessionOptions(threads=1))
    arrays = mapped(memory, (*session.inputs, *session.outputs))
    inputs, outputs = arrays[: len(session.inputs)], arrays[len(session.inputs) :]
    os.write(answers, b"o")
    while os.read(asked, 1):
        for index, given in enumerate(inputs):
            np.copyto(session.input(index), given)
        session.invoke()
        for index, taken in enumerate(outputs):
            np.copyto(taken, session.output(index))
        os.write(answers, b"d")


def mapped(memory: int, specs: Sequence[TensorSpec]) -> list[Array]:
    """Arrays one after the other in shared memory."""
    whole, arrays, at = mmap.mmap(memory, 0), [], 0
    for spec in specs:
        count = int(np.prod(spec.shape))
        arrays.append(np.frombuffer(whole, spec.dtype, count, at).reshape(spec.shape))
        at += _size_of(spec)
    return arrays


def _size_of(spec: TensorSpec) -> int:
    size = int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
    return -(-size // 64) * 64


def compared(first: Session, others: Sequence[Runner], seconds: float) -> tuple[float, ...]:
    """Median of each, ms."""
    random = np.random.default_rng(1)
    given = [random.integers(0, 127, spec.shape).astype(spec.dtype) for spec in first.inputs]
    times: tuple[list[float], ...] = ([], [], [])
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for session, spent in zip((first, *others), times, strict=True):
            for turn in range(8):
                began = time.perf_counter()
                for index, array in enumerate(given):
                    np.copyto(session.input(index), array)
                session.invoke()
                for index in range(len(first.outputs)):
                    session.output(index).ravel()[0]
                if turn > 1:  # the other one's turn has left the caches cold
                    spent.append(time.perf_counter() - began)
    return tuple(float(np.median(spent)) * 1e3 for spent in times)


if __name__ == "__main__":
    main()
