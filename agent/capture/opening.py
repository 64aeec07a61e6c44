"""One opening of a source: the thread that opens it, reads it to its end or failure, and closes it."""

from __future__ import annotations

import contextlib
import threading
import time
from abc import ABC, abstractmethod
from typing import Generic, Protocol, TypeVar

from agent.capture.uri import mask
from agent.errors import SourceError


class Opened(Protocol):
    """A source that is open.

    Attributes:
        about: what it gives, for people.
    """

    about: str

    def close(self) -> None:
        """Free the device or file."""
        ...


S = TypeVar("S", bound=Opened)


class Opening(ABC, Generic[S]):
    """Reads in a thread of its own, so that whoever started it never waits for a device.

    Attributes:
        delivered: how often it has handed something on.
        goes_on: the source has shown that it gives more than one picture; of sound it is always true.
        about: what the source gives, once it is open.
        error: what it ended with.
        over: it will deliver nothing more.
    """

    def __init__(self, uri: str, woken: threading.Event, name: str) -> None:
        """Prepare.

        Args:
            uri: of the source, for messages.
            woken: set at the first delivery, when `goes_on` becomes true, and at the end.
            name: of the thread.
        """
        self._uri, self._woken = uri, woken
        self._abandoned = threading.Event()
        self._asked_ns = time.monotonic_ns()
        self.delivered, self.about, self.over, self.goes_on = 0, "", False, True
        self.error: SourceError | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Open and read."""
        self._asked_ns = time.monotonic_ns()
        self._thread.start()

    def waiting_s(self) -> float:
        """For how long the source has owed us an answer, s; 0 while we are the ones who are busy."""
        asked_ns = self._asked_ns
        return (time.monotonic_ns() - asked_ns) / 1e9 if asked_ns else 0.0

    def abandon(self) -> None:
        """Not wanted any more: it closes its source as soon as the source answers."""
        self._abandoned.set()

    def join(self, timeout_s: float) -> bool:
        """Whether its thread has come to its end in time, with the source closed; or was never started."""
        if self._thread.ident is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @abstractmethod
    def _open(self) -> S:
        """The source, open.

        Raises:
            SourceError: it cannot be opened.
        """

    @abstractmethod
    def _read(self, source: S) -> None:
        """Read to the end, or until it is abandoned; `_asked_ns` tells since when the source has been waited for.

        Raises:
            SourceError: it broke.
        """

    def _count(self) -> None:
        """Something was handed on."""
        self.delivered += 1
        if self.delivered == 1:
            self._woken.set()

    def _said(self, error: Exception) -> str:
        """Describe a library's error; for a network source without its text, which may quote the address."""
        if mask(self._uri) == self._uri:
            return f"{type(error).__name__}: {error}"
        return getattr(error, "strerror", None) or type(error).__name__

    def _run(self) -> None:
        source: S | None = None
        try:
            source = self._open()
            self.about = source.about
            self._read(source)
        except SourceError as error:
            self.error = error
        except Exception as error:  # a library's own: this is where it becomes ours
            self.error = SourceError(f"{mask(self._uri)}: {self._said(error)}")
        self._asked_ns, self.over = 0, True
        self._woken.set()
        # After the news: saying goodbye to a camera that is gone takes as long as waiting for its picture.
        if source is not None:
            with contextlib.suppress(Exception):
                source.close()
