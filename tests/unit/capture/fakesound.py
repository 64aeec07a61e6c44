"""A sounddevice without sound: its devices do what a test tells them, in its own time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from agent.types import Samples


class PortAudioError(Exception):
    """As sounddevice raises it: a message and a number."""


class Stream:
    """An open stream; `give` plays the part of PortAudio's thread."""

    def __init__(self, module: FakeSound, **settings: Any) -> None:
        module.refuse(settings["device"], settings["samplerate"])
        self.settings, self._module = settings, module
        self.closed = self.pulled = False
        self.aborts_with: Exception | None = None
        module.streams.append(self)

    def start(self) -> None:
        self._module.answers.wait(60.0)

    def give(self, samples: Samples, *, overflow: bool = False) -> None:
        if self.pulled or self.closed:
            return
        block = np.ascontiguousarray(samples.reshape(-1, self.settings["channels"]))
        times = SimpleNamespace(currentTime=1.0, inputBufferAdcTime=0.97)
        self.settings["callback"](block.data, len(block), times, SimpleNamespace(input_overflow=overflow))

    def pull(self) -> None:
        """The plug."""
        self.pulled = True
        self.settings["finished_callback"]()

    def abort(self) -> None:
        self.settings["finished_callback"]()
        if self.aborts_with is not None:
            raise self.aborts_with

    def close(self) -> None:
        self.closed = True


class FakeSound:
    """The module.

    Attributes:
        plugged: name, channels, own rate and rates of each device, seen after the next initialisation.
        busy: names that cannot be opened.
        streams: every one that was opened, oldest first.
        initialised: how often.
        answers: cleared while PortAudio hangs when a stream is started.
    """

    PortAudioError = PortAudioError

    def __init__(self) -> None:
        self.plugged: list[tuple[str, int, int, tuple[int, ...]]] = [("USB Mic", 1, 48000, (16000, 48000))]
        self.busy: set[str] = set()
        self.streams: list[Stream] = []
        self.answers = threading.Event()
        self.answers.set()
        self.initialised, self._initialized = 0, 0
        self._lib = SimpleNamespace(Pa_Initialize=self.initialise)
        self.default = SimpleNamespace(device=(0, -1))
        self.initialise()

    def initialise(self) -> None:
        assert all(stream.closed for stream in self.streams), "initialised while a stream was open"
        self.initialised += 1
        self._seen = list(self.plugged)

    def _terminate(self) -> None: ...

    def query_devices(self) -> list[dict[str, Any]]:
        return [
            {"name": name, "max_input_channels": channels, "default_samplerate": float(rate)}
            for name, channels, rate, _ in self._seen
        ]

    def check_input_settings(self, device: int, channels: int, dtype: str, samplerate: int) -> None:
        self.refuse(device, samplerate)

    def refuse(self, device: int, rate_hz: int) -> None:
        name, _, _, rates = self._seen[device]
        if name in self.busy:
            raise PortAudioError("Error opening RawInputStream: Device unavailable", -9985)
        if rate_hz not in rates:
            raise PortAudioError("Invalid sample rate", -9997)

    def RawInputStream(self, **settings: Any) -> Stream:  # noqa: N802 - sounddevice's name
        return Stream(self, **settings)


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
