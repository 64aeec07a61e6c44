"""Microphones through PortAudio, which uses ALSA, PulseAudio or PipeWire.

Blocks go from PortAudio's callback to the thread that reads through a queue: neither waits for the other.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any, NamedTuple

import numpy as np

from agent.capture.audio_file import Block, mono
from agent.capture.portaudio import PORTAUDIO, Format, Input, choose, explain, find_format
from agent.config.source_uri import SourceUri
from agent.errors import SourceError
from agent.text import plural
from agent.types import Samples


class _Heard(NamedTuple):
    """Audio without a gap.

    Attributes:
        frames: N×C int16.
        lost: frames missing right before these.
        at_ns, read_ns: CLOCK_MONOTONIC when the last frame was captured, and when it was received, ns.
    """

    frames: Samples
    lost: int
    at_ns: int
    read_ns: int


_SYSTEM_S, _HELD_S = 0.56, 4.0
"""Length of PortAudio's buffer, and longest audio that waits for the reader, s. PortAudio is woken for each
quarter of the first, and being woken is nearly all that a silent microphone costs; sound comes that much later at
most."""
_AS_IT_COMES = 0
"""Block size of PortAudio's choice: fixed blocks would delay audio by half a block on average."""
_MOMENT_S = 0.2
_AGE_MAX_S = 1.0
_NOTHING = np.empty(0, np.int16)


class _Receiver:
    """Receives the audio of one open stream from PortAudio's thread, and wakes the reader.

    What does not fit is dropped and counted. Each counter is written by one of the two threads only.

    Attributes:
        finished: whether the stream has ended.
    """

    def __init__(self, form: Format) -> None:
        self.finished = False
        self._rate_hz, self._room = form.rate_hz, round(_HELD_S * form.rate_hz)
        self._blocks: deque[_Heard] = deque()
        self._written = self._lost = self._at_ns = 0
        self._read = 0
        self._came = threading.Event()

    def take(self) -> _Heard | None:
        """Wait a moment. Return what came, up to the next gap; None: nothing came."""
        if not self._came.wait(_MOMENT_S):
            return None
        self._came.clear()
        blocks: list[_Heard] = []
        while self._blocks and (not blocks or not self._blocks[0].lost):
            blocks.append(self._blocks.popleft())
        if self._blocks:  # behind a gap
            self._came.set()
        if not blocks:
            return None
        frames = np.concatenate([block.frames for block in blocks])
        self._read += len(frames)
        return _Heard(frames, blocks[0].lost, blocks[-1].at_ns, blocks[-1].read_ns)

    def receive(self, data: Any, count: int, times: Any, status: Any) -> None:
        """Copy a block and wake the reader: PortAudio's callback."""
        now_ns = time.monotonic_ns()
        age_s = times.currentTime - times.inputBufferAdcTime - count / self._rate_hz
        self._at_ns = max(self._at_ns, now_ns - round(min(max(age_s, 0.0), _AGE_MAX_S) * 1e9))
        if status.input_overflow:  # PortAudio does not say how many frames were lost; at least about one block
            self._lost += count
        if self._written - self._read + count > self._room:
            self._lost += count
        else:
            frames = np.frombuffer(data, np.int16).reshape(count, -1).copy()
            self._blocks.append(_Heard(frames, self._lost, self._at_ns, now_ns))
            self._written, self._lost = self._written + count, 0
        self._came.set()

    def finish(self) -> None:
        """Mark the stream as ended: PortAudio's callback."""
        self.finished = True
        self._came.set()


class Microphone:
    """An open microphone."""

    live, paced = True, False

    def __init__(self, address: SourceUri, stall_s: float, rate_hz: int) -> None:
        self._address, self._shown, self._stall_s, self._wanted_hz = address, address.masked, stall_s, rate_hz
        self._last_s = time.monotonic()
        self._stream = PORTAUDIO.open(self._shown, stall_s, self._make)

    def read(self) -> Block | None:
        if PORTAUDIO.asks_to_close:
            raise SourceError(f"{self._shown}: opened again, since a sound card was plugged in")
        if (heard := self._receiver.take()) is None:
            return self._check_silence()
        self._last_s = time.monotonic()
        return Block(mono(heard.frames, self._channel), heard.lost, heard.at_ns, heard.read_ns)

    def close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            PORTAUDIO.close(self._shown, stream)

    def _make(self, library: Any, found: list[Input]) -> Any:
        device = choose(found, self._address.target, library.default.device[0], self._shown)
        form = find_format(library, device, self._address, self._wanted_hz)
        self.rate_hz, self._channel = form.rate_hz, form.channel
        self.description = f"{device.name}: {form.rate_hz} Hz, {plural(form.channels, 'channel')}"
        self._receiver = _Receiver(form)
        try:
            return self._started(library, device.number, form, self._receiver)
        except library.PortAudioError as error:
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


def open_microphone(address: SourceUri, stall_s: float, rate_hz: int) -> Microphone:
    """Open a microphone.

    Raises:
        SourceError: PortAudio is missing; there is no such microphone, or more than one; another program uses it.
    """
    return Microphone(address, stall_s, rate_hz)
