"""The reader of sound: takes it from an open source, brings it to the wanted rate, stamps it, hands it on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from agent.capture.opening import Opening
from agent.capture.resampler import Resampler
from agent.capture.sound import Block, SoundSource, open_sound
from agent.messages import Samples


class Sound(NamedTuple):
    """Sound at the rate that is wanted.

    Attributes:
        samples: N int16, N > 0.
        lost: samples that are missing right before them.
        captured_ns, captured_at, read_ns: of the last, see `AudioChunk`.
    """

    samples: Samples
    lost: int
    captured_ns: int
    captured_at: datetime
    read_ns: int


Deliver = Callable[["SoundReader", Sound], bool]
"""Gets each piece of sound; False when no more is wanted."""


class SoundReader(Opening[SoundSource]):
    """One opening of a source of sound."""

    def __init__(
        self, uri: str, rate_hz: int, deliver: Deliver, woken: threading.Event, *, stall_s: float, name: str
    ) -> None:
        super().__init__(uri, woken, name)
        self._rate_hz, self._deliver, self._stall_s = rate_hz, deliver, stall_s
        self._lost = self._went = 0

    def _open(self) -> SoundSource:
        return open_sound(self._uri, self._rate_hz, stall_s=self._stall_s)

    def _read(self, source: SoundSource) -> None:
        self._began_ns, self._began_at = time.monotonic_ns(), datetime.now(UTC)
        self._from_hz, self._resampler = source.rate_hz, Resampler(source.rate_hz, self._rate_hz)
        while not self._abandoned.is_set():
            block = source.read()
            if block is None:
                rest = self._resampler.rest()
                self._hand_on(source, Block(rest))
                return
            if block.lost or source.rate_hz != self._from_hz:
                self._begin_anew(source, block.lost)
            if len(block.samples) and not self._hand_on(source, self._changed(block)):
                return

    def _changed(self, block: Block) -> Block:
        """At the rate that is wanted, with the time of what has come out instead of what went in."""
        samples = self._resampler.change(block.samples)
        behind_ns = round(self._resampler.behind_s * 1e9)
        return Block(samples, 0, block.captured_ns - behind_ns, block.read_ns)

    def _begin_anew(self, source: SoundSource, lost: int) -> None:
        """After a gap: what the filter held back is lost as well."""
        self.about = source.about
        lost_s = lost / self._from_hz + self._resampler.behind_s
        self._lost += max(1, round(lost_s * self._rate_hz))
        self._from_hz, self._resampler = source.rate_hz, Resampler(source.rate_hz, self._rate_hz)

    def _hand_on(self, source: SoundSource, block: Block) -> bool:
        """When it is due, and as far as there is any; False when no more is wanted."""
        if not len(block.samples):
            return True
        self._went += len(block.samples)
        stamped = self._live(block) if source.live else self._replayed(block, paced=source.paced)
        self._asked_ns, self._lost = 0, 0
        wanted = self._deliver(self, stamped)
        self._count()
        self._asked_ns = time.monotonic_ns()
        return wanted

    def _live(self, block: Block) -> Sound:
        age_s = max(0, time.monotonic_ns() - block.captured_ns) / 1e9
        at = datetime.now(UTC) - timedelta(seconds=age_s)
        return Sound(block.samples, self._lost, block.captured_ns, at, block.read_ns)

    def _replayed(self, block: Block, *, paced: bool) -> Sound:
        """Stamped with recorded time from the start on; at its pace not before that time has come."""
        recorded_s = self._went / self._rate_hz
        captured_ns = self._began_ns + round(recorded_s * 1e9)
        if paced:
            self._asked_ns = 0
            self._abandoned.wait(max(0.0, (captured_ns - time.monotonic_ns()) / 1e9))
        at = self._began_at + timedelta(seconds=recorded_s)
        return Sound(block.samples, 0, captured_ns, at, time.monotonic_ns())
