"""Microphones through PortAudio, which uses ALSA, PulseAudio or PipeWire.

A lock-free ring lies between PortAudio's callback and the thread that reads: neither waits for the other.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import time
from typing import Any, NamedTuple

import numpy as np

from agent.capture.audio_file import Block, mono
from agent.capture.portaudio import PORTAUDIO, Format, Input, SampleRateEstimator, choose, explain, find_format
from agent.config.source_uri import SourceUri
from agent.errors import SourceError
from agent.text import plural
from agent.types import Samples

log = logging.getLogger(__name__)


class _Mark(NamedTuple):
    """Position of the writer, published as one object, so that the reader never sees half of an update.

    Attributes:
        written: frames stored since the beginning.
        lost: frames that were not stored, since the beginning.
        at_ns: CLOCK_MONOTONIC at capture of the last stored frame, ns.
        read_ns: CLOCK_MONOTONIC when it was received, ns.
    """

    written: int
    lost: int
    at_ns: int
    read_ns: int


class RingRead(NamedTuple):
    """Result of one read.

    Attributes:
        frames: N×C int16 without a gap; a copy.
        lost: frames missing right after these.
        at_ns, read_ns: CLOCK_MONOTONIC when the last frame was captured, and when it was received, ns.
    """

    frames: Samples
    lost: int
    at_ns: int
    read_ns: int


class AudioRing:
    """Ring of frames of C channels for one writer and one reader, without a lock.

    A block that does not fit is dropped whole and counted, and so are all blocks until the next read: there is at
    most one gap, and it lies behind everything that is stored.
    """

    def __init__(self, frames: int, channels: int) -> None:
        """Allocate room for a number of frames, N×C int16; nothing is allocated later."""
        self._memory = np.zeros((frames, channels), np.int16)
        self._mark = _Mark(0, 0, 0, 0)  # written by the writer only
        self._read = self._settled = 0  # written by the reader only

    def write(self, block: Samples, at_ns: int, read_ns: int) -> bool:
        """Store a block, or drop it if there is no room. Never waits, and copies once.

        Args:
            block: N×C int16.
            at_ns: CLOCK_MONOTONIC at capture of its last frame, ns.
            read_ns: the current time, ns.
        """
        mark, memory, count = self._mark, self._memory, len(block)
        size = len(memory)
        if mark.lost != self._settled or count > size - (mark.written - self._read):
            self.count_lost(count)
            return False
        begin = mark.written % size
        first = min(count, size - begin)
        memory[begin : begin + first] = block[:first]
        if first < count:
            memory[: count - first] = block[first:]
        self._mark = _Mark(mark.written + count, mark.lost, at_ns, read_ns)
        return True

    def count_lost(self, count: int) -> None:
        """Count frames that were lost before they came here. Called by the writer."""
        mark = self._mark
        self._mark = _Mark(mark.written, mark.lost + count, mark.at_ns, mark.read_ns)

    def read(self) -> RingRead:
        """Return everything that is stored."""
        mark, memory, read = self._mark, self._memory, self._read
        count, size = mark.written - read, len(memory)
        frames = np.empty((count, memory.shape[1]), np.int16)
        begin = read % size
        first = min(count, size - begin)
        frames[:first] = memory[begin : begin + first]
        if first < count:
            frames[first:] = memory[: count - first]
        lost = mark.lost - self._settled
        self._read = mark.written
        self._settled = mark.lost  # last: the writer may store again from here on
        return RingRead(frames, lost, mark.at_ns, mark.read_ns)


_SYSTEM_S, _RING_S = 0.56, 4.0
"""Length of PortAudio's buffer and of the ring, s. PortAudio is woken for each quarter of the
first, and being woken is nearly all that a silent microphone costs; sound comes that much later at most."""
_AS_IT_COMES = 0
"""Block size of PortAudio's choice: fixed blocks would delay audio by half a block on average."""
_MOMENT_MS = 200
_AGE_MAX_S = 1.0
_NOTHING = np.empty(0, np.int16)


class _Receiver:
    """Receives the audio of one open stream from PortAudio's thread, which never waits, and wakes the reader.

    Attributes:
        ring: of the audio.
        rate_hz: samples per second.
        finished: whether the stream has ended.
    """

    def __init__(self, form: Format) -> None:
        self.ring = AudioRing(round(_RING_S * form.rate_hz), form.channels)
        self.rate_hz, self.finished = form.rate_hz, False
        self._at_ns = 0
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)

    def wait(self) -> bool:
        """Wait a moment. Return True if something came."""
        if not self._poll.poll(_MOMENT_MS):
            return False
        os.eventfd_read(self._wake)
        return True

    def receive(self, data: Any, count: int, times: Any, status: Any) -> None:
        """Copy a block and wake the reader: PortAudio's callback."""
        now_ns = time.monotonic_ns()
        age_s = times.currentTime - times.inputBufferAdcTime - count / self.rate_hz
        self._at_ns = max(self._at_ns, now_ns - round(min(max(age_s, 0.0), _AGE_MAX_S) * 1e9))
        if status.input_overflow:
            self.ring.count_lost(
                count
            )  # PortAudio does not say how many frames were lost; at least about one block
        self.ring.write(np.frombuffer(data, np.int16).reshape(count, -1), self._at_ns, now_ns)
        self._rouse()

    def finish(self) -> None:
        """Mark the stream as ended: PortAudio's callback."""
        self.finished = True
        self._rouse()

    def _rouse(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Free the number of this receiver. Call it after the last callback: the number is used again."""
        os.close(self._wake)


class Microphone:
    """An open microphone."""

    live, paced = True, False

    def __init__(self, address: SourceUri, stall_s: float, rate_hz: int) -> None:
        self._address, self._shown, self._stall_s, self._wanted_hz = address, address.masked, stall_s, rate_hz
        self._stream: Any = None
        self._lost = 0
        self._open()

    def read(self) -> Block | None:
        if PORTAUDIO.asks_to_close:
            self._reopen()
        if not self._receiver.wait():
            return self._check_silence()
        heard = self._receiver.ring.read()
        lost, self._lost = self._lost, heard.lost
        if not len(heard.frames):
            self._lost += lost
            return self._check_silence()
        self._last_s = time.monotonic()
        if heard.lost:
            self._meter.restart()
        elif (measured_hz := self._meter.add(len(heard.frames), heard.read_ns / 1e9)) is not None:
            self._correct_rate(measured_hz)
        return Block(mono(heard.frames, self._channel), lost, heard.at_ns, heard.read_ns)

    def close(self) -> None:
        if self._stream is not None:
            self._leave()

    def _open(self) -> None:
        self._last_s = time.monotonic()
        self._stream = PORTAUDIO.open(self._shown, self._stall_s, self._make)
        self._meter = SampleRateEstimator(self.rate_hz)

    def _leave(self) -> None:
        stream, self._stream = self._stream, None
        PORTAUDIO.close(self._shown, self._stall_s, stream, self._receiver.close)

    def _reopen(self) -> None:
        """Close and reopen, so that PortAudio lists a device that another stream waits for."""
        gone_s = time.monotonic()
        self._leave()
        PORTAUDIO.wait_for_others()
        self._open()
        self._lost += round((time.monotonic() - gone_s) * self.rate_hz)

    def _make(self, library: Any, found: list[Input]) -> Any:
        device = choose(found, self._address.target, library.default.device[0], self._shown)
        form = find_format(library, device, self._address, self._wanted_hz)
        self.rate_hz, self._channel = form.rate_hz, form.channel
        self.description = f"{device.name}: {form.rate_hz} Hz, {plural(form.channels, 'channel')}"
        self._receiver = _Receiver(form)
        try:
            return self._started(library, device.number, form, self._receiver)
        except BaseException as error:
            self._receiver.close()
            if not isinstance(error, library.PortAudioError):
                raise
            raise SourceError(f"{self._shown}: {device.name} cannot be opened: {explain(error)}") from None

    def _started(self, library: Any, number: int, form: Format, receiver: _Receiver) -> Any:
        stream = library.RawInputStream(
            samplerate=form.rate_hz,
            channels=form.channels,
            dtype="int16",
            device=number,
            blocksize=_AS_IT_COMES,
            latency=_SYSTEM_S,
            callback=receiver.receive,
            finished_callback=receiver.finish,
        )
        try:
            stream.start()
        except library.PortAudioError:
            stream.close()
            raise
        return stream

    def _check_silence(self) -> Block:
        """Raise SourceError if nothing came for too long."""
        if self._receiver.finished:
            raise SourceError(f"{self._shown}: the microphone is gone: unplugged, or its sound server ended")
        if time.monotonic() - self._last_s > self._stall_s:
            raise SourceError(f"{self._shown}: no sound for {self._stall_s:g} s")
        return Block(_NOTHING)

    def _correct_rate(self, measured_hz: int) -> None:
        """Use the measured rate from here on: the device claims another."""
        log.error(
            "%s: claims %d samples per second and delivers about %d; taking it for %d Hz. If it sounds wrong, the"
            " driver or the cable loses sound",
            self._shown,
            self.rate_hz,
            measured_hz,
            measured_hz,
        )
        self.description = f"{self.description}, really {measured_hz} Hz"
        self.rate_hz = self._receiver.rate_hz = measured_hz
        self._meter = SampleRateEstimator(measured_hz)


def open_microphone(address: SourceUri, stall_s: float, rate_hz: int) -> Microphone:
    """Open a microphone.

    Raises:
        SourceError: PortAudio is missing; there is no such microphone, or more than one; another program uses it.
    """
    return Microphone(address, stall_s, rate_hz)
