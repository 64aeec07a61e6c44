"""The scout: looks, while a fallback is in use, whether a broker before it is back. Events go on meanwhile.

It knocks with our own client id, since a broker may let no other in, and its connection is the one that is
moved to.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from agent.comms.broker import Broker
from agent.comms.connection import Connection
from agent.comms.wake import Wake
from agent.errors import BrokerError, ConfigError

log = logging.getLogger(__name__)

_LOOK_S = 15.0
"""For each broker, at most."""


class Scout:
    """One look. For the thread that keeps the line; the looking is done in a thread of its own."""

    def __init__(self, brokers: Sequence[Broker]) -> None:
        """Begin to look whether one of these is there; the first that is counts."""
        self._brokers = brokers
        self._found: tuple[int, Connection] | None = None
        self._lock, self._is_given_up = threading.Lock(), False
        self._thread = threading.Thread(target=self._look, name="mqtt-scout", daemon=True)
        self._thread.start()

    @property
    def is_back(self) -> bool:
        """Whether it has looked."""
        return not self._thread.is_alive()

    def found(self, timeout_s: float) -> tuple[int, Connection] | None:
        """Number of the broker that has accepted us, if one has. What is found later, it gives back by itself.

        Args:
            timeout_s: for the look to end, at most.
        """
        self._thread.join(timeout_s)
        with self._lock:
            self._is_given_up = True
            return self._found

    def _look(self) -> None:
        for number, broker in enumerate(self._brokers):
            wake = Wake()
            try:
                connection = broker.open(wake, lambda: _LOOK_S)
                with self._lock:
                    if not self._is_given_up:
                        self._found = number, connection
                        return
                connection.farewell(1.0)
                return
            except (BrokerError, ConfigError):
                continue
            except Exception:
                log.exception("mqtt: a defect in Vedette; going on without a look at %s", broker.where)
            finally:
                wake.close()
