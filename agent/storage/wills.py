"""Wills on their way to the disk: what the next process is to say if this one dies before it says so itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from agent.messages import Will


class LeftWill(NamedTuple):
    """A will on its way to the disk or there: the key of `Will`, topic and body of the event; None: withdrawn."""

    key: str
    topic: str
    body: bytes | None


class Wills:
    """Those that the disk does not know yet. Its owner does the locking.

    They do not go with their events: one may be acknowledged before the disk can be written, and what it does to
    a will stays to be done.
    """

    def __init__(self) -> None:
        self._due: dict[str, LeftWill] = {}
        self._open: set[str] = set()
        self._on_disk: set[str] = set()

    def __len__(self) -> int:
        return len(self._due)

    @property
    def any_open(self) -> bool:
        """Whether this process has made a will and not withdrawn it."""
        return bool(self._open)

    def is_open(self, key: str) -> bool:
        """Whether this process has made a will of that key and not withdrawn it."""
        return key in self._open

    @property
    def are_overtaken(self) -> bool:
        """Whether there are some on the disk, and all of them are to be withdrawn there."""
        due = (self._due.get(key) for key in self._on_disk)
        return bool(self._on_disk) and all(will is not None and will.body is None for will in due)

    def inherit(self, will: LeftWill) -> None:
        """Withdraw one that the last process has left on the disk."""
        self._on_disk.add(will.key)
        self.set(will.topic, Will(will.key, None))

    def set(self, topic: str, will: Will) -> None:
        """Make a will, or withdraw it."""
        self._due[will.key] = LeftWill(will.key, topic, will.body)
        (self._open.discard if will.body is None else self._open.add)(will.key)

    def all(self) -> list[LeftWill]:
        """What is to be written."""
        return list(self._due.values())

    def written(self, wills: Iterable[LeftWill]) -> None:
        """The disk knows these; what has been set since stays."""
        for will in wills:
            (self._on_disk.discard if will.body is None else self._on_disk.add)(will.key)
            if self._due.get(will.key) is will:
                del self._due[will.key]
