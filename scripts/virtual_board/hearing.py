"""Events of the board that a subscriber has received, and gaps in their numbers."""

from __future__ import annotations

from collections import defaultdict

import msgspec
from msgspec import Struct

from tests.support.mosquitto import Mosquitto


class _Event(Struct, frozen=True):
    """Fields of `agent.comms.messages.EventMessage` that are checked."""

    id: str
    seq: int
    stream: str


class Account(Struct, frozen=True):
    """Account of the events since a moment.

    Attributes:
        events: distinct ids.
        lost: numbers between the first and the last that never came, though the board had given them out.
        forgotten: numbers under which two events came: the board had told one, and did not know it any more.
        streams: whose events came.
        last: the highest number.
    """

    events: int
    lost: int
    forgotten: int
    streams: frozenset[str]
    last: int


_decoder = msgspec.json.Decoder(_Event)


class Hearing:
    """Receives the events of one board from a real broker."""

    def __init__(self, broker: Mosquitto, device: str) -> None:
        self._messages = broker.subscribe(f"vedette/{device}/+/events")

    @property
    def now(self) -> int:
        """Number of received messages."""
        return len(self._messages)

    def since(self, mark: int, known: int = 0) -> Account:
        """Return the account since a moment.

        Args:
            mark: `now` of that moment.
            known: the highest number that had been heard then; 0: the account begins with what comes first.
        """
        events = [_decoder.decode(message.payload) for message in list(self._messages)[mark:]]
        ids = defaultdict(set)
        for event in events:
            ids[event.seq].add(event.id)
        numbers = sorted(ids)
        first = min(known + 1, numbers[0]) if known and numbers else (numbers or [1])[0]
        missing = [seq for seq in range(first, (numbers or [0])[-1] + 1) if seq not in ids]
        return Account(
            events=len({event.id for event in events}),
            lost=len(missing),
            forgotten=sum(len(found) > 1 for found in ids.values()),
            streams=frozenset(event.stream for event in events),
            last=max(numbers, default=0),
        )
