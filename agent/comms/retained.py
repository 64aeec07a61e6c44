"""A look at what the broker retains: asked for over one connection, gathered as it comes."""

from __future__ import annotations

from agent.comms.subscriptions import Received, Subscriptions

_MOST = 1024 * 1024
"""Bytes of topics and payloads that come for one look: no more lies there, whatever a broker says."""

_REFUSAL = 0x80


class Look:
    """A subscription for as long as the look lasts. For the thread that turns the connection.

    Attributes:
        refused: whether the broker does not let us look.
    """

    def __init__(self, subscriptions: Subscriptions, pattern: str) -> None:
        """Ask.

        Args:
            subscriptions: of the connection.
            pattern: of the topics.
        """
        self._subscriptions, self._pattern = subscriptions, pattern
        self._answered, self._bytes, self.refused = False, 0, False
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
        self._subscriptions.remove(self._pattern, self._take)

    def _on_answer(self, code: int) -> None:
        self._answered, self.refused = True, code >= _REFUSAL

    def _take(self, received: Received) -> None:
        self._bytes += len(received.topic) + len(received.payload)
        if self._bytes > _MOST:
            self.end()  # from now on it counts as what nobody asked for
        elif received.retained:  # else it is our own, on its way past
            self._found.append(received)
