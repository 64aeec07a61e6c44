"""How a broker that is there turns us away: it says no to our CONNECT, or it says nothing."""

from __future__ import annotations

from agent.comms import reasons
from agent.errors import BrokerError


class RefusedError(BrokerError):
    """The broker answered, and does not want us.

    Attributes:
        code: MQTT 5 reason code.
    """

    def __init__(self, code: int, words: str = "", *, text: str = "") -> None:
        """Say why.

        Args:
            code: MQTT 5 reason code.
            words: that the broker says of its own accord.
            text: of the error; empty: the code's.
        """
        self.code = code
        super().__init__(text or reasons.with_said(reasons.in_words(code), words))


class UnansweredError(BrokerError):
    """The broker took the connection and did not answer our CONNECT.

    Attributes:
        silent: it let us wait; else it ended the connection.
    """

    def __init__(self, text: str, *, silent: bool) -> None:
        self.silent = silent
        super().__init__(text)
