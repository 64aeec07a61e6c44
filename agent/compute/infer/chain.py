"""A model from its input to its deepest answer: depths in a row, each goes on from the hidden state before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agent.compute.infer.backend import Session
from agent.errors import ModelError
from agent.manifest import HIDDEN, Manifest
from agent.messages import Array


class Whole:
    """Runs a session so. Of sizes, and of a model without rungs, it is the first rung alone.

    Attributes:
        session: that it runs; it stays on the deepest rung.
        first, last: the shallowest rung and the deepest.
        inputs: tensors of the first. outputs: of the last.
    """

    def __init__(self, session: Session, manifest: Manifest) -> None:
        """Look at every rung.

        Raises:
            ModelError: a rung is missing in the file, or gives no hidden state for the next.
        """
        self.session = session
        self._rungs = [rung.name for rung in manifest.chain("")]
        self._hidden = []
        self.first, self.last = self._rungs[0], self._rungs[-1]
        session.use(self.first)
        self.inputs = session.inputs
        for rung in self._rungs[:-1]:
            session.use(rung)
            names = [spec.name for spec in session.outputs]
            if HIDDEN not in names:
                raise ModelError(f"model {manifest.name}: rung {rung!r} has no output called {HIDDEN!r}")
            self._hidden.append(names.index(HIDDEN))
        session.use(self.last)
        self.outputs = session.outputs

    def answers(self, cases: list[list[Array]]) -> list[list[Array]]:
        """What it answers to each case, in reals.

        Args:
            cases: for each an array for every input.

        Raises:
            BackendError: an inference failed.
        """
        session, found = self.session, []
        for case in cases:
            self.give(case)
            self.invoke()
            found.append([np.array(spec.real(session.output(n))) for n, spec in enumerate(self.outputs)])
        return found

    def give(self, case: Sequence[Array]) -> None:
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
        for rung, hidden in zip(self._rungs[1:], self._hidden, strict=True):
            state = session.output(hidden)
            session.use(rung)
            np.copyto(session.input(0), state)
            del state
            session.invoke()
