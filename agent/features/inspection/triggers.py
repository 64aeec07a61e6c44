"""Triggers, counters and open devices of an inspected stream.

A trigger comes from a pin's thread, from the daemon's thread for a command, or is seen in the pictures by the
stream's thread. From the trigger on the reject output expects a verdict: a part of which none comes in time is
rejected, even if the stream's thread hangs in a library.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
import uuid
from collections import deque
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from agent.comms.messages import PartVerdict
from agent.config.features import InspectionConfig
from agent.errors import CommandError, StorageError
from agent.features.inspection.rules import ClosedPart, Counters, counted
from agent.storage.part_pictures import PartPictures
from agent.storage.state import StateFile
from agent.structs import from_json
from agent.text import plural

log = logging.getLogger(__name__)
_WRITE_S = 60.0
"""Least time between two writes of the counters, s: SD cards wear out. A power cut loses no more than that."""
_WAITING_MAX = 1000
"""Most parts that wait for the stream's thread: more than a line brings until a stream that hangs is replaced."""


class CounterFile:
    """Counters of a stream, kept over restarts. For one thread; writing may be handed to another."""

    def __init__(self, folder: Path, stream: str) -> None:
        """Read the counters of an earlier run; a damaged file is set aside, and they begin anew."""
        self._file = StateFile(folder / f"inspection-{stream}.json")
        self.counters, self._written, self._tried_s = Counters(), Counters(), time.monotonic()
        try:
            content = self._file.read()
            if content is not None:
                self.counters = self._written = from_json(content, Counters)
        except (StorageError, msgspec.MsgspecError) as error:
            log.warning("stream %s: the counters of parts begin anew: %s: %s", stream, self._file.path, error)
            self._file.set_aside()

    def add(self, verdict: PartVerdict) -> None:
        """Count one part."""
        self.counters = counted(self.counters, verdict)

    @property
    def is_due(self) -> bool:
        """True if the counters have changed and no write was tried for a while; the next is due later then."""
        if time.monotonic() - self._tried_s < _WRITE_S or self.counters == self._written:
            return False
        self._tried_s = time.monotonic()
        return True

    def write(self) -> None:
        """Write the counters if they have changed.

        Raises:
            StorageError: the disk refuses; they are written the next time.
        """
        counters = self.counters
        if counters != self._written:
            self._file.write(msgspec.json.encode(counters))
            self._written = counters


class Inspection:
    """Triggers and open devices of an inspected stream, which its threads share.

    Attributes:
        stream, config: its name, and of the inspection.
        reject: the output; None: there is none.
        counters, store: of its parts, and the writer of their pictures.
        close_s: longest wait for the disk when it is closed, s.
    """

    def __init__(
        self, stream: str, config: InspectionConfig, state: Path, clips: Path, reject: Switch | None = None
    ) -> None:
        """Open pins, counters and the folder of pictures.

        Args:
            stream: its name.
            config: of the inspection.
            state: folder of the daemon's state.
            clips: folder of all clips, with one for each stream.
            reject: output; None: that of the configuration, if any.

        Raises:
            ConfigError, SourceError: a pin cannot be opened.
        """
        self.stream, self.config, self.close_s = stream, config, CLOSE_S
        self._token, self._numbers = uuid.uuid4().hex[:8], itertools.count(1)
        self._waiting: deque[Trigger] = deque()
        self._lock = threading.Lock()
        self._triggered_ns, self._is_closed, self._has_ignored = 0, False, False
        with ExitStack() as opened:
            self.reject = _open_reject(stream, config, reject)
            if self.reject is not None:
                opened.callback(self.reject.close)
            self.counters = CounterFile(state, stream)
            self.store = PartPictures(clips / stream, config.keep_bytes)
            opened.callback(self._close_files)
            if config.trigger.startswith("gpio:"):
                from agent.board.gpio import InputPin

                pin = InputPin(config.trigger, self._on_active, active_low=config.active_low)
                opened.callback(pin.close)
            self._opened = opened.pop_all()

    def _on_active(self) -> None:
        try:
            self.trigger()
        except CommandError as error:
            if len(self._waiting) >= _WAITING_MAX and not self._has_ignored:
                self._has_ignored = True
                log.error("stream %s: %s", self.stream, error)

    def _close_files(self) -> None:
        try:
            self.counters.write()
        except StorageError as error:
            log.warning("stream %s: its counters of parts are not written: %s", self.stream, error)
        self.store.close(self.close_s)

    def trigger(self, part: str = "") -> str:
        """Announce a part that is at the sensor now; return its id. For any thread.

        Raises:
            CommandError: it is too soon after another, or the stream has fallen behind by so many parts that this
                one gets no verdict; the reject output expects one all the same.
        """
        now_ns, at = time.monotonic_ns(), datetime.now(UTC)
        with self._lock:
            if self._is_closed:
                raise CommandError("the stream is being stopped")
            if now_ns - self._triggered_ns < self.config.debounce_s * 1e9:
                raise CommandError("ignored: too soon after the part before, see debounce_s")
            self._triggered_ns = now_ns
            trigger = self.make(part, now_ns, at)
            if len(self._waiting) >= _WAITING_MAX:
                raise CommandError(f"{_WAITING_MAX} parts wait for a verdict: this one gets none")
            self._waiting.append(trigger)
        return trigger.part

    def make(self, part: str, now_ns: int, at: datetime) -> Trigger:
        """Return a trigger, with an id if it has none, whose part the reject output expects."""
        key = next(self._numbers)
        trigger = Trigger(key, part or f"{self.stream}-{self._token}-{key}", now_ns, at)
        if self.reject is not None:
            self.reject.expect(trigger)
        return trigger

    def next(self) -> Trigger | None:
        """Remove and return the oldest trigger that waits."""
        with self._lock:
            return self._waiting.popleft() if self._waiting else None

    def stop(self) -> None:
        """Take no more triggers: those that wait are the last."""
        with self._lock:
            self._is_closed = True

    def close(self) -> None:
        """Release the pins, and write what waits. For any thread; a second call does nothing."""
        with self._lock:
            self._is_closed = True
            opened, self._opened = self._opened, ExitStack()
        opened.close()


def _open_reject(stream: str, config: InspectionConfig, switch: Switch | None) -> RejectOutput | None:
    if switch is None and config.reject:
        from agent.board.gpio import OutputPin

        switch = OutputPin(config.reject, active_low=config.reject_active_low)
    return None if switch is None else RejectOutput(stream, switch, config)


CLOSE_S = 0.3
"""Longest wait for a pulse to end, and for the disk, when a stream is closed, s."""


class Trigger(NamedTuple):
    """A part that comes.

    Attributes:
        key: unique in this process; ids of parts need not be.
        part: its id.
        now_ns: CLOCK_MONOTONIC, ns.
        at: UTC.
    """

    key: int
    part: str
    now_ns: int
    at: datetime


class Switch(Protocol):
    """An output: `agent.board.gpio.OutputPin`."""

    def set(self, *, active: bool) -> None: ...

    def close(self) -> None: ...


class RejectOutput:
    """Pulses an output for parts that are to be rejected. All methods may be called from any thread."""

    def __init__(self, stream: str, switch: Switch, config: InspectionConfig) -> None:
        """Start the thread `reject-NAME`."""
        self._stream, self._switch, self._config = stream, switch, config
        self._condition = threading.Condition()
        self._due: dict[int, float] = {}
        self._expected: set[int] = set()
        self._active_until, self._is_active = 0.0, False
        self._is_closed = self._is_released = self._has_failed = False
        self._thread = threading.Thread(target=self._run, name=f"reject-{stream}", daemon=True)
        self._thread.start()

    def expect(self, trigger: Trigger) -> None:
        """Reject a part at its deadline unless `decide` says otherwise; only with `reject_unsure`."""
        if self._config.reject_unsure:
            after_s = self._config.reject_after_s or self._config.deadline_s
            with self._condition:
                self._expected.add(trigger.key)
                self._due[trigger.key] = trigger.now_ns / 1e9 + after_s
                self._condition.notify()

    def decide(self, part: ClosedPart, *, reject: bool) -> bool:
        """Pulse for a part or let it pass; return True if the output acts, or has acted at its deadline.

        The pulse begins `reject_after_s` after its trigger, or now.
        """
        with self._condition:
            was_due = self._due.pop(part.key, None)
            has_acted = part.key in self._expected and was_due is None
            self._expected.discard(part.key)
            if reject and not has_acted:
                after_s = self._config.reject_after_s
                self._due[part.key] = part.triggered_ns / 1e9 + after_s if after_s else 0.0
            self._condition.notify()
        return reject or has_acted

    def close(self) -> None:
        """Release the output, inactive, when its pulse has ended or after a short wait.

        Pulses of parts that are not yet there are dropped: now they would hit others.
        """
        with self._condition:
            now = time.monotonic()
            late = [key for key, due in self._due.items() if due > now + CLOSE_S]
            for key in late:
                del self._due[key]
            self._is_closed = True
            self._condition.notify()
        if late:
            log.warning(
                "stream %s: stops: %s on the way pass unrejected", self._stream, plural(len(late), "part")
            )
        self._thread.join(2 * CLOSE_S)
        with self._condition:
            self._is_released = True
            self._switch.close()
            self._condition.notify()

    def _run(self) -> None:
        with self._condition:
            while not self._is_released:
                now = time.monotonic()
                self._begin_due(now)
                self._set(active=now < self._active_until)
                if self._is_closed and not self._due and not self._is_active:
                    return
                times = [*self._due.values(), *([self._active_until] if self._is_active else [])]
                self._condition.wait(max(0.0, min(times) - now) if times else None)

    def _begin_due(self, now: float) -> None:
        for key in [key for key, due in self._due.items() if due <= now]:
            del self._due[key]
            self._active_until = now + self._config.reject_pulse_s

    def _set(self, *, active: bool) -> None:
        if active is self._is_active:
            return
        self._is_active = active
        try:
            self._switch.set(active=active)
        except Exception as error:  # of the library: the line runs on
            if not self._has_failed:
                log.error("stream %s: the reject output fails: %s", self._stream, error)
            self._has_failed = True
