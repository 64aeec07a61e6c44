"""Supervises a source: opens it, watches it, and reopens it after failures and stalls.

A source has stalled when it delivers nothing for `stall_s`; `SourceSupervisor` measures that here.
"""

from __future__ import annotations

import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, Literal, Protocol, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from agent.backoff import Backoff
from agent.config import CaptureConfig
from agent.config.source_uri import SourceUri, is_local, mask
from agent.errors import SourceError

CaptureState = Literal["starting", "running", "lost", "ended"]


class SourceState:
    """State of one source. Contains rules only: the time is passed in.

    Attributes:
        state: starting, until its first picture or first failure; running; lost; ended.
        detail: why it is lost, what it waits for, or size and rate, for people.
    """

    def __init__(self) -> None:
        self.state: CaptureState = "starting"
        self.detail = ""
        self._lost_s = 0.0

    def mark_lost(self, now_s: float, reason: str) -> bool:
        """Mark the source as lost, for a reason for people. Return True if the outage begins.

        `now_s` is of any monotonic clock, s.
        """
        self.detail = reason
        is_news = self.state != "lost"
        if is_news:
            self.state, self._lost_s = "lost", now_s
        return is_news

    def mark_waiting(self, what: str) -> bool:
        """Say what a source that is starting waits for. Return True if that is news."""
        is_news = self.state == "starting" and self.detail != what
        if is_news:
            self.detail = what
        return is_news

    def mark_running(self, now_s: float, description: str) -> str | None:
        """Mark the source as running. Return a message if it had been lost."""
        news = f"back after {now_s - self._lost_s:.0f} s" if self.state == "lost" else None
        self.state, self.detail = "running", description
        return news

    def mark_ended(self) -> None:
        self.state, self.detail = "ended", ""


class Opened(Protocol):
    """An open source of pictures or sound; `description` says what it gives, for people."""

    description: str

    def close(self) -> None:
        """Free the device or file. May be called twice."""
        ...


S = TypeVar("S", bound=Opened)


class SourceThread(ABC, Generic[S]):
    """Opens and reads a source in a thread, so that no other thread waits for a device.

    Attributes:
        delivered: number of deliveries.
        goes_on: whether the source has given more than one picture; always true for audio.
        description: what the source gives, once it is open.
        decoding: what is decoded now, see `Source`.
        decoded: number of pictures that the source has given, also those that `max_fps` leaves out.
        undecoded: number of pictures that it has left encoded.
        inter_coded: number of pictures that are no key frames, see `Source`.
        has_sound: whether an open source of pictures has a track of sound, too; None: not known yet.
        waits_for: why no picture can come yet although the source sends, see `Source`.
        error: why it ended; None: at its end, or not yet.
        over: whether it will deliver nothing more.
    """

    def __init__(self, uri: str, woken: threading.Event, name: str) -> None:
        """Prepare the thread.

        Args:
            uri: of the source, for messages.
            woken: set at the first delivery, when `goes_on` becomes true, and at the end.
            name: of the thread.
        """
        self._uri, self._woken = uri, woken
        self._abandoned = threading.Event()
        self._asked_ns = time.monotonic_ns()
        self.delivered, self.description, self.finished, self.goes_on = 0, "", False, True
        self.decoding, self.decoded, self.undecoded, self.inter_coded = "", 0, 0, 0
        self.waits_for = ""
        self.error: SourceError | None = None
        self.has_sound: bool | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._asked_ns = time.monotonic_ns()
        self._thread.start()

    @property
    def thread_id(self) -> int | None:
        """The kernel's id of the thread; None: it does not run."""
        return self._thread.native_id if self._thread.is_alive() else None

    def waiting_s(self) -> float:
        """Return for how long the source has not answered, s; 0 while this thread itself is busy."""
        asked_ns = self._asked_ns
        return (time.monotonic_ns() - asked_ns) / 1e9 if asked_ns else 0.0

    def abandon(self) -> None:
        """Close the source as soon as it answers, and deliver nothing more."""
        self._abandoned.set()

    def join(self, timeout_s: float) -> bool:
        """Return True if the thread ended in time with the source closed, or was never started."""
        if self._thread.ident is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @abstractmethod
    def _open(self) -> S:
        """Open the source.

        Raises:
            SourceError: it cannot be opened.
        """

    @abstractmethod
    def _read(self, source: S) -> None:
        """Read to the end or until abandoned. `_asked_ns` holds when the pending read began.

        Raises:
            SourceError: the source broke.
        """

    def _count(self) -> None:
        self.delivered += 1
        if self.delivered == 1:
            self._woken.set()

    def _describe_error(self, error: Exception) -> str:
        """Describe a library's error; for a network source without its text, which may quote the address."""
        if mask(self._uri) == self._uri:
            return f"{type(error).__name__}: {error}"
        return getattr(error, "strerror", None) or type(error).__name__

    def _run(self) -> None:
        source: S | None = None
        try:
            source = self._open()
            self.description = source.description
            self._read(source)
        except SourceError as error:
            self.error = error
        except Exception as error:  # map a library's error to SourceError
            self.error = SourceError(f"{mask(self._uri)}: {self._describe_error(error)}")
        self._asked_ns, self.finished = 0, True
        self._woken.set()
        # After the report: closing a camera that is gone takes as long as waiting for its frame.
        if source is not None:
            with contextlib.suppress(Exception):
                source.close()


_FIRST_PAUSE_S = 0.5
_HANGING_MAX = 3
"""Most openings that may hang: each holds a thread and a device, and a fourth would hang as well."""
_STOP_S = 0.3
_LIBRARY_S = 0.5
"""Time after `stall_s` in which a library may still give a picture that came before, s."""
_REOPEN_MAX_S, _REOPEN_LOCAL_MAX_S = 30.0, 5.0
"""Longest pauses between two attempts to reopen, s, where the configuration does not say: a camera elsewhere; one
of the local network, and a device of this machine."""
OnChange = Callable[[str, str], None]
"""Called with (`starting`, what it waits for) if its first picture cannot come yet, with (`lost`, reason) once
per outage and (`running`, `back after 12 s`) once after it, from the supervisor's thread."""


def longest_pause_s(address: SourceUri, config: CaptureConfig) -> float:
    """Return the longest pause between two attempts to open a source, s."""
    if config.reopen_max_s is not None:
        return config.reopen_max_s
    return _REOPEN_LOCAL_MAX_S if not address.on_network or is_local(address.host) else _REOPEN_MAX_S


class CaptureStats(Struct, frozen=True):
    """Running totals of one source.

    Attributes:
        frames: captured and handed on: pictures, or for audio its samples. Pictures that `max_fps` left out do
            not count.
        dropped: pictures that a newer one replaced, or samples that were lost.
        reopened: times that the source came back after it was opened again.
        state, detail: see `SourceState`.
        decoding: what of an encoded source is decoded now, see `agent.capture.source.Source`.
        decoded: pictures that the source has given since it was opened, or since a stream shares it.
        undecoded: pictures that came since then and were left encoded.
        inter_coded: pictures that came since then and are no key frames.
    """

    frames: int
    dropped: int
    reopened: int
    state: CaptureState
    detail: str
    decoding: str = ""
    decoded: int = 0
    undecoded: int = 0
    inter_coded: int = 0


class SourceSupervisor:
    """Keeps one source open, in a thread of its own.

    A live source that fails or stalls is reopened until it comes back; a finite one fails for good.

    Attributes:
        current: the newest opening; deliveries of older ones are refused.
        woken: set by openings to wake the supervisor.
    """

    def __init__(
        self,
        name: str,
        address: SourceUri,
        config: CaptureConfig,
        *,
        open_next: Callable[[], SourceThread[Any]],
        finish: Callable[[SourceError | None], None],
        on_change: OnChange,
    ) -> None:
        """Prepare the supervisor; nothing is opened yet.

        Args:
            name: of the stream, for the thread.
            address: of the source.
            config: of the stream.
            open_next: makes an opening that has not been started.
            finish: called once, when a finite source is over, with its error if it failed.
            on_change: see `OnChange`.
        """
        self._address = address
        self._live, self._config = address.live, config
        self._missed = (
            f"{address.masked}: no {'picture' if address.gives_pictures else 'sound'} for {config.stall_s:g} s"
        )
        self._open_next, self._finish_with, self._on_change = open_next, finish, on_change
        self._state = SourceState()
        self._backoff = Backoff(_FIRST_PAUSE_S, longest_pause_s(address, config), jitter=0.5)
        self._stopped, self.woken = threading.Event(), threading.Event()
        self._reopened = self._opened = 0
        self.current: SourceThread[Any] | None = None
        self._hanging: list[SourceThread[Any]] = []
        self._thread = threading.Thread(target=self._supervise, name=f"capture-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, *, wait: bool = True) -> None:
        """Close the source. Return within 0.5 s, or at once; a source that hangs is closed when it answers."""
        self._stopped.set()
        self.woken.set()
        opening = self.current
        if opening is not None:
            opening.abandon()
        if wait and opening is not None:
            opening.join(_STOP_S)
        if wait and self._thread.is_alive():
            self._thread.join(_STOP_S / 3)

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    @property
    def lost(self) -> bool:
        return self._state.state == "lost"

    def stats(self, frames: int, dropped: int) -> CaptureStats:
        now = CaptureStats(frames, dropped, self._reopened, self._state.state, self._state.detail)
        if (opening := self.current) is None:
            return now
        return replace(
            now,
            decoding=opening.decoding,
            decoded=opening.decoded,
            undecoded=opening.undecoded,
            inter_coded=opening.inter_coded,
        )

    def _supervise(self) -> None:
        while not self._stopped.is_set():
            self.woken.clear()
            self._opened += 1
            opening = self.current = self._open_next()
            began_s = time.monotonic()
            opening.start()
            reason = self._watch(opening)
            if self._stopped.is_set():
                opening.abandon()
                return
            if not self._live:
                self._finish(opening, reason)
                return
            self._mark_lost(reason)
            if opening.delivered and time.monotonic() - began_s > self._config.stall_s:
                self._backoff.reset()
            self._pause(opening)

    def _watch(self, opening: SourceThread[Any]) -> str:
        """Wait until the opening is over, or abandon it if it hangs. Return why; empty at a clean end."""
        stall_s, seen, first = self._config.stall_s, 0, True
        while not self._stopped.is_set():
            over, waiting_s = opening.finished, opening.waiting_s()
            # One picture per opening does not end an outage.
            delivered = opening.delivered if opening.goes_on or not self.lost else 0
            if delivered > seen and waiting_s <= stall_s:
                self._mark_running(opening, again=first and self._opened > 1)
                first = False
            seen = delivered
            if (waits_for := opening.waits_for) and self._state.mark_waiting(waits_for):
                self._on_change("starting", waits_for)
            if over:
                return str(opening.error or "")
            if waiting_s > stall_s:
                # The library's own limit is stall_s too: give it time to end by itself, which frees the thread.
                if not self._live or waiting_s > 1.5 * stall_s + 1.0:
                    opening.abandon()
                    return self._missed
                is_over = waiting_s > stall_s + min(_LIBRARY_S, stall_s / 4)
                if opening.delivered and is_over:  # the reason why it cannot be opened is found out first
                    self._mark_lost(self._missed)
            self.woken.wait(min(1.0, stall_s / 4))
            self.woken.clear()
        return ""

    def _mark_running(self, opening: SourceThread[Any], *, again: bool) -> None:
        self._reopened += again
        news = self._state.mark_running(time.monotonic(), opening.description)
        if news:
            self._on_change("running", news)

    def _mark_lost(self, reason: str) -> None:
        if self._state.mark_lost(time.monotonic(), reason):
            self._on_change("lost", reason)

    def _finish(self, opening: SourceThread[Any], reason: str) -> None:
        if reason:
            self._state.mark_lost(time.monotonic(), reason)
            self._finish_with(opening.error or SourceError(reason))
        else:
            self._state.mark_ended()
            self._finish_with(None)

    def _pause(self, opening: SourceThread[Any]) -> None:
        """Wait before the next attempt: until the pause is over, and few openings hang."""
        self._hanging = [hung for hung in (*self._hanging, opening) if not hung.join(0)]
        self._stopped.wait(self._backoff.next_s())
        while len(self._hanging) >= _HANGING_MAX and not self._stopped.wait(1.0):
            self._hanging = [hung for hung in self._hanging if not hung.join(0)]
