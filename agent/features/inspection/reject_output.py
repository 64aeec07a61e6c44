"""The reject output of an inspected line: pulses for parts that are not ok, and for those without a verdict."""

from __future__ import annotations

import logging
import threading
import time
from datetime import datetime
from typing import NamedTuple, Protocol

from agent.config.inspection import InspectionConfig
from agent.features.inspection.rules import ClosedPart
from agent.text import plural

log = logging.getLogger(__name__)
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
