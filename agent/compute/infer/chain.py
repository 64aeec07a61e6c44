"""A model from its input to its deepest answer: depths in a row, each goes on from the hidden state before it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from msgspec import Struct

from agent.compute.infer.session import Session
from agent.compute.manifest import HIDDEN, Manifest
from agent.errors import ModelError
from agent.types import Array


class ModelChain:
    """Runs a session so. Of sizes, and of a model without variants, it is the first variant alone.

    Attributes:
        session: that it runs; it stays on the deepest variant.
        first, last: the shallowest variant and the deepest.
        inputs: tensors of the first. outputs: of the last.
    """

    def __init__(self, session: Session, manifest: Manifest) -> None:
        """Look at every variant.

        Raises:
            ModelError: a variant is missing in the file, or gives no hidden state for the next.
        """
        self.session = session
        self._variants = [variant.name for variant in manifest.chain("")]
        self._hidden = []
        self.first, self.last = self._variants[0], self._variants[-1]
        session.use(self.first)
        self.inputs = session.inputs
        for variant in self._variants[:-1]:
            session.use(variant)
            names = [spec.name for spec in session.outputs]
            if HIDDEN not in names:
                raise ModelError(f"model {manifest.name}: variant {variant!r} has no output called {HIDDEN!r}")
            self._hidden.append(names.index(HIDDEN))
        session.use(self.last)
        self.outputs = session.outputs

    def run_cases(self, cases: list[list[Array]]) -> list[list[Array]]:
        """What it answers to each case, in reals.

        Args:
            cases: for each an array for every input.

        Raises:
            BackendError: an inference failed.
        """
        session, found = self.session, []
        for case in cases:
            self.set_input(case)
            self.invoke()
            found.append([np.array(spec.real(session.output(n))) for n, spec in enumerate(self.outputs)])
        return found

    def set_input(self, case: Sequence[Array]) -> None:
        """Write an input.

        Args:
            case: an array for every input.
        """
        self.session.use(self.first)
        for index, array in enumerate(case):
            np.copyto(self.session.input(index), array)

    def invoke(self) -> None:
        """Run it on what its input holds.

        Raises:
            BackendError: an inference failed.
        """
        session = self.session
        session.use(self.first)
        session.invoke()
        for variant, hidden in zip(self._variants[1:], self._hidden, strict=True):
            state = session.output(hidden)
            session.use(variant)
            np.copyto(session.input(0), state)
            del state
            session.invoke()


# One turn of a measurement: inferences apart from each other, as those of a stream are.
#
# Back to back they say something else: threads that were awake a moment ago are woken at no cost, and share the
# cores in another way. There are machines where a second thread then saves a third of the time, and in a stream
# costs a fifth more.

_PAUSE_S = 0.01


class TimingRun(Struct, frozen=True, tag=True):
    """What was measured.

    Attributes:
        ms: of each inference that counts.
        cpu_ms: CPU time of all of these.
    """

    ms: tuple[float, ...]
    cpu_ms: float


def time_inference(whole: ModelChain, seconds: float, cpu_s: Callable[[], float]) -> TimingRun:
    """Run the model for so long on what its input holds, after one inference that does not count.

    Args:
        whole: the model.
        seconds: for how long, s; the last inference may end later, and there is one in any case.
        cpu_s: tells the CPU time that what runs it has used so far, s.

    Raises:
        BackendError: an inference failed.
    """
    whole.invoke()  # the turn of another has left the caches cold
    ms: list[float] = []
    used, now = cpu_s(), time.perf_counter()
    until = now + seconds
    while not ms or now < until:
        time.sleep(_PAUSE_S)
        began = time.perf_counter()
        whole.invoke()
        now = time.perf_counter()
        ms.append((now - began) * 1e3)
    return TimingRun(tuple(ms), (cpu_s() - used) * 1e3)


# Runs a variant before it is needed: the first inference is slow, and one that is interrupted is slower still.

_RUNS = 3


def warm_latency_ns(session: Session, variant: str) -> int:
    """How long an inference takes once it is warm: the shortest of a few, ns. The session uses this variant then.

    Raises:
        BackendError: it failed.
    """
    session.use(variant)
    session.invoke()
    times = []
    for _ in range(_RUNS):
        began = time.monotonic_ns()
        session.invoke()
        times.append(time.monotonic_ns() - began)
    return min(times)
