"""The grabber of one stream: keeps its source open, and hands its frames to whoever takes them."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from msgspec import Struct

from agent.capture.outage import BackOff, CaptureState, Outage
from agent.capture.pool import Pool
from agent.capture.reader import Reader, Stamp
from agent.capture.slot import Slot
from agent.capture.uri import parse
from agent.config import CaptureConfig
from agent.errors import SourceError
from agent.messages import ChannelOrder, Frame, Image

_FIRST_PAUSE_S = 0.5
_HANGING_MAX = 3
"""Readers that hang, at most: each holds a thread and a device, and a fourth would hang as well."""
_STOP_S = 0.3


class CaptureStats(Struct, frozen=True):
    """Running totals of one grabber.

    Attributes:
        frames: captured and handed on; those that `max_fps` left out do not count.
        dropped: of these, replaced by a newer one before anybody took them.
        reopened: times that the source came back after it was opened again.
        state, detail: see `agent.capture.outage.Outage`.
    """

    frames: int
    dropped: int
    reopened: int
    state: CaptureState
    detail: str


class Grabber:
    """Frames of one source, for one consumer.

    A live source, and a replay at realtime, hands on its newest frame only; a replay at `pace=fast` every one. A
    live source that fails or stalls is opened again until it comes back; a finite one fails for good.
    """

    def __init__(
        self, stream: str, uri: str, config: CaptureConfig, *, on_change: Callable[[str, str], None]
    ) -> None:
        """Prepare; nothing is opened yet.

        Args:
            stream: name of the stream, for frames and threads.
            uri: see `agent.capture.source`.
            config: of the stream.
            on_change: called with (`lost`, reason) once per outage and (`running`, `back after 12 s`) once after
                it, from the grabber's own thread. Logging it is the caller's.

        Raises:
            SourceError: the URI is wrong.
        """
        address = parse(uri)
        self._stream, self._uri, self._config, self._on_change = stream, uri, config, on_change
        self._shown, self._live = address.shown, address.live
        self._slot, self._pool = Slot(keeps_all=address.keeps_all), Pool()
        self._outage = Outage()
        self._back_off = BackOff(_FIRST_PAUSE_S, config.reopen_max_s)
        self._stopped, self._woken = threading.Event(), threading.Event()
        self._seq = self._dropped = self._reopened = self._opened = 0
        self._taken: set[int] = set()
        self._reader: Reader | None = None
        self._hanging: list[Reader] = []
        self._thread = threading.Thread(target=self._keep, name=f"capture-{stream}", daemon=True)

    def start(self) -> None:
        """Open the source and read it, in threads of their own."""
        self._thread.start()

    def take(self, timeout_s: float) -> Frame | None:
        """The next frame; None when none came in time.

        Raises:
            SourceError: a finite source failed; every frame before that was taken.
        """
        frame = self._slot.take(timeout_s)
        if frame is not None:
            self._taken.add(frame.seq)
        return frame

    def give_back(self, frame: Frame) -> None:
        """The frame's memory may be used again; giving it twice does no harm."""
        if frame.seq in self._taken:
            self._taken.discard(frame.seq)
            self._pool.give(frame.image)

    @property
    def ended(self) -> bool:
        """Whether a finite source is over and every frame was taken."""
        return self._slot.over

    @property
    def lost(self) -> bool:
        """Whether the source gives no frames now, although it should."""
        return self._outage.state == "lost"

    @property
    def stats(self) -> CaptureStats:
        """Totals and state as of now."""
        outage = self._outage
        return CaptureStats(self._seq, self._dropped, self._reopened, outage.state, outage.detail)

    def stop(self) -> None:
        """Close the source. Returns in 0.5 s even if it hangs: then it is closed when it answers."""
        self._stopped.set()
        self._woken.set()
        self._slot.close()
        reader = self._reader
        if reader is not None:
            reader.abandon()
            reader.join(_STOP_S)
        if self._thread.is_alive():
            self._thread.join(_STOP_S / 3)

    def _keep(self) -> None:
        """Open, watch, and open again, until told to stop or a finite source is over."""
        while not self._stopped.is_set():
            self._woken.clear()
            reader = self._reader = self._next_reader()
            began_s = time.monotonic()
            reader.start()
            reason = self._watch(reader)
            if self._stopped.is_set():
                reader.abandon()
                return
            if not self._live:
                self._finish(reader, reason)
                return
            self._lose(reason)
            if reader.frames and time.monotonic() - began_s > self._config.stall_s:
                self._back_off.reset()
            self._pause(reader)

    def _next_reader(self) -> Reader:
        self._opened += 1
        return Reader(
            self._uri,
            self._pool,
            self._deliver,
            self._woken,
            stall_s=self._config.stall_s,
            max_fps=self._config.max_fps,
            name=f"read-{self._stream}",
        )

    def _watch(self, reader: Reader) -> str:
        """Until the reader is over, or hangs and is abandoned: why, empty at a clean end."""
        stall_s, seen, first = self._config.stall_s, 0, True
        stalled = f"{self._shown}: no picture for {stall_s:g} s"
        while not self._stopped.is_set():
            over, waiting_s = reader.over, reader.waiting_s()
            if reader.frames > seen and waiting_s <= stall_s:
                self._run(reader, again=first and self._opened > 1)
                first = False
            seen = reader.frames
            if over:
                return str(reader.error or "")
            if waiting_s > stall_s:
                # A live source may still answer: its library's own limit is stall_s, too, and frees the thread.
                if not self._live or waiting_s > 1.5 * stall_s + 1.0:
                    reader.abandon()
                    return stalled
                self._lose(stalled)
            self._woken.wait(min(1.0, stall_s / 4))
            self._woken.clear()
        return ""

    def _run(self, reader: Reader, *, again: bool) -> None:
        self._reopened += again
        news = self._outage.run(time.monotonic(), reader.about)
        if news:
            self._on_change("running", news)

    def _lose(self, reason: str) -> None:
        if self._outage.lose(time.monotonic(), reason):
            self._on_change("lost", reason)

    def _finish(self, reader: Reader, reason: str) -> None:
        if reason:
            self._outage.lose(time.monotonic(), reason)
            self._slot.close(reader.error or SourceError(reason))
        else:
            self._outage.end()
            self._slot.close()

    def _pause(self, reader: Reader) -> None:
        """Before the next attempt; for as long as too many readers hang."""
        self._hanging = [hung for hung in (*self._hanging, reader) if not hung.join(0)]
        self._stopped.wait(self._back_off.next(random.random()))
        while len(self._hanging) >= _HANGING_MAX and not self._stopped.wait(1.0):
            self._hanging = [hung for hung in self._hanging if not hung.join(0)]

    def _deliver(self, reader: Reader, image: Image, stamp: Stamp, order: ChannelOrder) -> bool:
        """Hand a picture on, from a reader's thread; False when this reader is not wanted any more."""
        if reader is not self._reader:
            return False
        frame = Frame(image, self._stream, self._seq, stamp.captured_ns, stamp.captured_at, order, stamp.read_ns)
        self._seq += 1
        replaced = self._slot.put(frame)
        if replaced is not None:
            self._dropped += 1
            self._pool.give(replaced.image)
        return not self._stopped.is_set()
