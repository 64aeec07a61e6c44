"""A look at what the broker retains: asked for over one connection, gathered as it comes."""

from __future__ import annotations

from agent.comms.subscriptions import Received, Subscriptions


class Look:
    """A subscription for as long as the look lasts. For the thread that turns the connection."""

    def __init__(self, subscriptions: Subscriptions, pattern: str) -> None:
        """Ask.

        Args:
            subscriptions: of the connection.
            pattern: of the topics.
        """
        self._subscriptions, self._pattern = subscriptions, pattern
        self._answered = False
        self._found: list[Received] = []
        subscriptions.add(pattern, self._take, self._on_answer, qos=0)

    def found(self) -> list[Received] | None:
        """What has come since the last time; None as long as the broker has not answered."""
        if not self._answered:
            return None
        found, self._found = self._found, []
        return found

    def end(self) -> None:
        """No more of it."""
        self._subscriptions.remove(self._pattern)

    def _on_answer(self, code: int) -> None:
        self._answered = True

    def _take(self, received: Received) -> None:
        if received.retained:  # else it is our own, on its way past
            self._found.append(received)
