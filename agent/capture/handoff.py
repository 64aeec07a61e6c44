"""The hand-over from the thread that reads to the one that uses: what frames and sound have in common."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from typing import Generic, TypeVar

from agent.errors import SourceError

T = TypeVar("T")


class HandOver(ABC, Generic[T]):
    """Things on their way from one thread to another, in their order, with one end."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._closed = False
        self._error: SourceError | None = None

    @abstractmethod
    def _next(self) -> T:
        """Take from `_items`, which is not empty; called with the lock held."""

    def take(self, timeout_s: float) -> T | None:
        """The next; None when none came in time, or none will come any more.

        Raises:
            SourceError: the one that this was closed with, after the last.
        """
        with self._changed:
            if not self._items and not self._closed:
                self._changed.wait(timeout_s)
            if self._items:
                return self._next()
            if self._error is not None:
                raise self._error
            return None

    def close(self, error: SourceError | None = None) -> None:
        """No more are put. Those that wait can still be taken."""
        with self._changed:
            self._closed, self._error = True, error
            self._changed.notify_all()

    def forget(self) -> None:
        """Nobody takes any more: free what waits."""
        with self._changed:
            self._items.clear()

    @property
    def over(self) -> bool:
        """Whether it was closed without an error and everything was taken."""
        with self._changed:
            return self._closed and not self._items and self._error is None
