"""Inferences that hang for as long as a test wants: those of the CPU, whose thread nobody can end."""

from __future__ import annotations

import threading

import pytest

from agent.compute.infer.litert import CpuSession
from tests.support.publishing import wait_for


class Inferences:
    """Let every inference of the CPU hang from `hang` to `answer`.

    Attributes:
        hanging: how many hang now.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hanging = 0
        self._answers, self._lock = threading.Event(), threading.Lock()
        self._answers.set()
        real = CpuSession.invoke

        def invoke(session: CpuSession) -> None:
            if not self._answers.is_set():
                self._count(1)
                self._answers.wait(100.0)
                self._count(-1)
            real(session)

        monkeypatch.setattr(CpuSession, "invoke", invoke)

    def hang(self, count: int = 1) -> None:
        """Have them hang from now on, and wait until so many do."""
        self._answers.clear()
        wait_for(lambda: self.hanging >= count)

    def answer(self) -> None:
        """Have those that hang, and all others, answer."""
        self._answers.set()

    def _count(self, more: int) -> None:
        with self._lock:
            self.hanging += more
