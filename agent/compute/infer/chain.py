"""Runs and times a whole model: all exits in a row, from the input to the deepest answer.

Timed inferences have pauses between them, as those of a stream do. Back to back they are faster: threads that are
still awake start at no cost. On some machines a second thread then saves a third of the time, and costs a fifth
more in a stream.
"""

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
    """Runs the exits of a model in a row; for a model without exits, its first variant.

    Attributes:
        session: that it runs. The deepest variant stays selected.
        first, last: names of the shallowest and of the deepest variant.
        inputs, outputs: tensors of the first, and of the last variant.
    """

    def __init__(self, session: Session, manifest: Manifest) -> None:
        """Select every variant once. Raises ModelError if one is missing or gives no hidden state."""
        self.session = session
        self._variants = [variant.name for variant in manifest.chain("")]
        self._hidden = []
        self.first, self.last = self._variants[0], self._variants[-1]
        session.select(self.first)
        self.inputs = session.inputs
        for variant in self._variants[:-1]:
            session.select(variant)
            names = [spec.name for spec in session.outputs]
            if HIDDEN not in names:
                raise ModelError(f"model {manifest.name}: variant {variant!r} has no output called {HIDDEN!r}")
            self._hidden.append(names.index(HIDDEN))
        session.select(self.last)
        self.outputs = session.outputs

    def run_cases(self, cases: list[list[Array]]) -> list[list[Array]]:
        """Return the dequantised outputs for each case, which has one array per input."""
        session, found = self.session, []
        for case in cases:
            self.set_input(case)
            self.invoke()
            found.append([np.array(spec.real(session.output(n))) for n, spec in enumerate(self.outputs)])
        return found

    def set_input(self, case: Sequence[Array]) -> None:
        """Write the inputs, one array each."""
        self.session.select(self.first)
        for index, array in enumerate(case):
            np.copyto(self.session.input(index), array)

    def invoke(self) -> None:
        """Run all variants on what the input holds. Raises BackendError if an inference fails."""
        session = self.session
        session.select(self.first)
        session.invoke()
        for variant, hidden in zip(self._variants[1:], self._hidden, strict=True):
            state = session.output(hidden)
            session.select(variant)
            np.copyto(session.input(0), state)
            del state
            session.invoke()


PAUSE_S = 0.01
"""Pause between timed inferences that are to take as long as in a stream, s."""
_RUNS_MAX = 20_000
"""Most inferences that one turn times: their times must fit into a message."""


class TimingRun(Struct, frozen=True, tag=True):
    """Wall time of each of a series of inferences, and CPU time of all together, ms."""

    ms: tuple[float, ...]
    cpu_ms: float


def time_runs(
    invoke: Callable[[], None], seconds: float, cpu_s: Callable[[], float], pause_s: float = 0.0
) -> TimingRun:
    """Time inferences on what the inputs hold, after one that does not count.

    Args:
        invoke: runs an inference.
        seconds: for how long, s. At least one inference is timed; the last one may end later.
        cpu_s: returns the CPU time used so far by the thread or process that runs the model, s.
        pause_s: pause between inferences, s; 0: none, so that a short turn can pass without another process on
            the core.
    """
    invoke()  # what ran before has left the caches cold
    ms: list[float] = []
    used, now = cpu_s(), time.perf_counter()
    until = now + seconds
    while not ms or (now < until and len(ms) < _RUNS_MAX):
        if pause_s:
            time.sleep(pause_s)
        began = time.perf_counter()
        invoke()
        now = time.perf_counter()
        ms.append((now - began) * 1e3)
    return TimingRun(tuple(ms), (cpu_s() - used) * 1e3)
