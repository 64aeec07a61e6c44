"""An inquiry: what does the broker retain under one topic? Asked anew on each connection until it is answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from agent.comms.connection import Connection
from agent.comms.retained import Look

Answer = Callable[[bytes], None]

_NOTHING_S = 3.0
"""The broker sends what it retains at once after its answer; a slow line takes a little longer."""


class _Question:
    """One topic, and who wants to know."""

    def __init__(self, topic: str, answer: Answer, clock: Callable[[], float]) -> None:
        self._topic, self._answer, self._clock = topic, answer, clock
        self._look: Look | None = None
        self._until = 0.0

    def begin(self, connection: Connection) -> None:
        self._until, self._look = 0.0, connection.look(self._topic)

    def is_answered(self) -> bool:
        """Look at what has come, and pass it on."""
        if self._look is None or (found := self._look.found()) is None:
            return False
        now = self._clock()
        self._until = self._until or now + _NOTHING_S
        if not found and now < self._until:
            return False
        self._look.end()
        self._answer(found[-1].payload if found else b"")
        return True


class Inquiry:
    """Questions that wait for their answers. `ask` is for any thread, the rest for that of the line."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._new: list[_Question] = []
        self._asked: list[_Question] = []

    def ask(self, topic: str, answer: Answer) -> None:
        """Ask what is retained under a topic without wildcards.

        Args:
            topic: that nobody else listens to.
            answer: gets the payload, in the thread of the line; empty: nothing is retained, or we may not know.
        """
        with self._lock:
            self._new.append(_Question(topic, answer, self._clock))

    def begin(self, connection: Connection) -> None:
        """Ask again on a new connection what has not been answered."""
        with self._lock:
            self._new, self._asked = [*self._asked, *self._new], []

    def go_on(self, connection: Connection) -> None:
        """Ask what is new, and look at what has come."""
        with self._lock:
            new, self._new = self._new, []
        for question in new:
            question.begin(connection)
        self._asked = [question for question in (*self._asked, *new) if not question.is_answered()]
