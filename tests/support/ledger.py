"""The account that a subscriber keeps of a device's events, and what it says of the delivery. No I/O."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from agent.comms.messages import EventMessage


class Verdict(NamedTuple):
    """Counts of faults in a delivery; all but the first two are 0 after a faultless one.

    Attributes:
        events: distinct ids.
        repeated: deliveries more than that, known by their id: QoS 1 allows them, and subscribers drop them.
        lost: numbers that never came, from 1 to the highest.
        duplicates: events that came again under another id: with a number, or a `new` or `end`, that there was.
        disordered: events that came first after one of their stream with a higher number.
        orphans: `update` or `end` of a track that was not announced or had ended.
        unended: tracks that have not ended.
    """

    events: int
    repeated: int
    lost: int
    duplicates: int
    disordered: int
    orphans: int
    unended: int

    @property
    def is_faultless(self) -> bool:
        """True if every event came exactly once after dropping repeated ids, in order, and every track ended."""
        return not any(self[2:])


class Ledger:
    """Takes events of one device in the order of their arrival."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._numbers: Counter[int] = Counter()
        self._highest: dict[str, int] = {}
        self._open: set[str] = set()
        self._closed: set[str] = set()
        self._repeated = self._disordered = self._again = self._orphans = 0

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, event: EventMessage) -> None:
        """Enter one delivery."""
        if event.id in self._ids:
            self._repeated += 1
            return
        self._ids.add(event.id)
        self._numbers[event.seq] += 1
        self._disordered += event.seq < self._highest.get(event.stream, 0)
        self._highest[event.stream] = max(event.seq, self._highest.get(event.stream, 0))
        if event.kind != "keyword":  # a word is told once, and does not end
            self._follow(event.kind, event.track.id)

    def _follow(self, kind: str, track: str) -> None:
        known = track in self._open or track in self._closed
        if kind == "new":
            self._again += known
            self._open.add(track)
        elif track in self._open:
            if kind == "end":
                self._open.remove(track)
                self._closed.add(track)
        elif kind == "end" and known:
            self._again += 1
        else:
            self._orphans += 1

    def missing(self) -> list[int]:
        """Numbers that never came, from 1 to the highest."""
        return [seq for seq in range(1, max(self._numbers, default=0) + 1) if seq not in self._numbers]

    def verdict(self) -> Verdict:
        """Return the counts so far."""
        twice = sum(count - 1 for count in self._numbers.values())
        return Verdict(
            len(self._ids),
            self._repeated,
            len(self.missing()),
            twice + self._again,
            self._disordered,
            self._orphans,
            len(self._open),
        )
