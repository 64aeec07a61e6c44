"""Which version of MQTT to speak: 5 where the broker does, else 3.1.1."""

from __future__ import annotations

from typing import Literal

from agent.comms.client import Protocol
from agent.comms.reasons import UNSUPPORTED_PROTOCOL
from agent.comms.refusal import RefusedError, UnansweredError

_PATIENCE = 2
"""An old broker may end the connection without an answer; but so does one that is just starting."""
_ANSWER_S, _FIRST_ANSWER_S = 10.0, 3.0
"""For an answer; the second while 3.1.1 is still to be tried: some old brokers, amqtt for one, keep silent."""


class ProtocolChoice:
    """The version to try next.

    Attributes:
        current: it.
    """

    def __init__(self, configured: Literal["auto", "5", "3.1.1"]) -> None:
        self.current: Protocol = "5" if configured == "auto" else configured
        self._is_open = configured == "auto"
        self._is_proven, self._unanswered = False, 0

    @property
    def patience_s(self) -> float:
        """How long to wait for the broker's answer, s."""
        is_guess = self._is_open and not self._is_proven and self.current == "5"
        return _FIRST_ANSWER_S if is_guess else _ANSWER_S

    def worked(self) -> None:
        """The broker speaks it. From now on only its explicit word changes that."""
        self._is_proven, self._unanswered = True, 0

    def failed(self, error: Exception) -> bool:
        """Learn from a failure; whether to try the other version at once."""
        if not self._is_open:
            return False
        if isinstance(error, RefusedError) and error.code == UNSUPPORTED_PROTOCOL:
            self._switch()
            return self.current == "3.1.1"
        if isinstance(error, UnansweredError) and not self._is_proven:
            self._unanswered += _PATIENCE if error.silent else 1
            if self._unanswered >= _PATIENCE:
                self._switch()
                return self.current == "3.1.1"
        return False

    def _switch(self) -> None:
        self.current = "3.1.1" if self.current == "5" else "5"
        self._is_proven, self._unanswered = False, 0
