"""PortAudio, shared by every stream of this process that has a microphone.

PortAudio lists devices when it is initialised; doing that again, to see a device that was plugged in later, ends
every stream. So it is done while no stream is open; and if a stream waits for a device and the machine's sound
cards have changed, all streams are asked to close for a moment.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from agent.board.process import STDERR_TURN
from agent.config.source_uri import SourceUri
from agent.errors import SourceError

log = logging.getLogger(__name__)
_CARDS = Path("/proc/asound/cards")
T = TypeVar("T")


class Input(Struct, frozen=True):
    """A device that records.

    Attributes:
        number: PortAudio's; changes when devices are plugged in.
        name: PortAudio's.
        channels: most channels; a sound server says 32 or more.
        rate_hz: preferred rate, Hz.
    """

    number: int
    name: str
    channels: int
    rate_hz: int


class PortAudio:
    """Opens and closes streams, one at a time, and keeps the list of devices fresh."""

    def __init__(self, gather_s: float = 1.0) -> None:
        """Load nothing yet. A stream waits at most `gather_s` for others that were asked to close, s."""
        self._gather_s = gather_s
        self._turn = threading.Condition(threading.Lock())
        self._library: Any = None
        self._users, self._asked, self._cards = 0, False, ""

    def open(self, shown: str, timeout_s: float, make: Callable[[Any, list[Input]], T]) -> T:
        """Open a stream; give it back to `close`.

        Args:
            shown: what is opened, for messages.
            timeout_s: longest wait for other threads that open or close, s.
            make: receives sounddevice and the devices; opens the stream, or raises a `SourceError`.

        Raises:
            SourceError: PortAudio is missing, hangs in another stream, or what `make` raises.
        """
        with self._locked(shown, timeout_s):
            self._turn.wait_for(lambda: not self._asked or not self._users, self._gather_s)
            self._asked, self._cards = False, _cards() if self._asked else self._cards
            library = self._refreshed(shown)
            try:
                stream = make(library, inputs(library))
            except SourceError:
                self._asked = self._users > 0 and _cards() != self._cards
                raise
            self._users += 1
            return stream

    def query(self, shown: str, do: Callable[[Any, list[Input]], T]) -> T:
        """Call a function with sounddevice and the devices, while no other thread opens or closes."""
        with self._locked(shown, self._gather_s):
            library = self._refreshed(shown)
            return do(library, inputs(library))

    def close(self, shown: str, stream: Any) -> None:
        """Close a stream that `open` gave, as soon as PortAudio does not hang in another one."""
        with self._turn:
            for how in (stream.abort, stream.close):
                try:
                    how()
                except Exception as error:  # its device may be gone or in use by another program
                    log.debug("%s: %s: %s", shown, how.__name__, error)
            self._users -= 1
            self._turn.notify_all()

    @property
    def asks_to_close(self) -> bool:
        """True if another stream waits for a new device: then close, and open again."""
        return self._asked

    @contextlib.contextmanager
    def _locked(self, shown: str, timeout_s: float) -> Iterator[None]:
        if not self._turn.acquire(timeout=timeout_s):
            raise SourceError(f"{shown}: PortAudio has been busy with another microphone for {timeout_s:g} s")
        try:
            yield
        finally:
            self._turn.release()

    def _refreshed(self, shown: str) -> Any:
        """Return the library, with a fresh list of devices if no stream is open."""
        if self._library is None:
            self._library = _import(shown)
        elif not self._users:
            # Not by its _initialize, which redirects descriptor 2 meanwhile, and so other threads' messages.
            self._library._terminate()
            self._library._lib.Pa_Initialize()
            self._library._initialized += 1
        else:
            return self._library
        self._cards = _cards()
        return self._library


PORTAUDIO = PortAudio()


def inputs(library: Any) -> list[Input]:
    """List the devices that record, by number."""
    return [
        Input(number, str(device["name"]), device["max_input_channels"], round(device["default_samplerate"]))
        for number, device in enumerate(library.query_devices())
        if device["max_input_channels"] > 0
    ]


def _cards() -> str:
    try:
        return _CARDS.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _import(shown: str) -> Any:
    _silence_alsa()
    try:
        with STDERR_TURN:  # it redirects descriptor 2 while it initialises PortAudio
            library = importlib.import_module("sounddevice")
    except ImportError as error:
        raise SourceError(f"{shown}: expected sounddevice; it cannot be imported: {error}") from None
    except OSError:
        raise SourceError(
            f"{shown}: expected PortAudio; it is not installed: sudo apt install libportaudio2"
        ) from None
    # Its exit handler would terminate PortAudio, and wait for ever for a sound server that hangs.
    with contextlib.suppress(AttributeError):
        atexit.unregister(library._exit_handler)
    return library


def _silence_alsa() -> None:
    """Replace the error handlers of ALSA and JACK, which print lines for each device that they try."""
    nothing = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p)
    for name, setters in (
        ("libasound.so.2", ("snd_lib_error_set_handler",)),
        ("libjack.so.0", ("jack_set_error_function", "jack_set_info_function")),
    ):
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(name)
            for setter in setters:
                getattr(library, setter)(nothing)


RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 192000)
"""Rates that sound devices offer, Hz."""
CHANNELS_MAX = 8
"""Most channels of a microphone: a device with more is a sound server, which mixes by itself."""
_INVALID_RATE, _UNAVAILABLE = -9997, -9985
"""PortAudio's paInvalidSampleRate and paDeviceUnavailable."""


class Format(Struct, frozen=True):
    """How a microphone is opened.

    Attributes:
        rate_hz: rate, Hz.
        channels: number of channels.
        channel: the channel that is used; None: the mean of all.
    """

    rate_hz: int
    channels: int
    channel: int | None


def choose(found: Sequence[Input], target: str, default: int, shown: str) -> Input:
    """Return the microphone that a URI names.

    Args:
        found: devices of this machine.
        target: `default`, a number, a name, or a part of one; case does not matter.
        default: number of PortAudio's preferred device; -1: none.
        shown: the URI, for messages.

    Raises:
        SourceError: no device or several devices match; lists the devices.
    """
    name = target.casefold()
    chosen = [device for device in found if device.name.casefold() == name]
    chosen = chosen or [device for device in found if _is_meant(device, name, default)]
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        raise SourceError(f"{shown}: expected the name of one microphone; found {_listed(chosen)}")
    if not found:
        raise SourceError(f"{shown}: no microphone was found: {not_found()}")
    wanted = "a default microphone" if name == "default" else f"a microphone {target}"
    raise SourceError(f"{shown}: expected {wanted}; found {_listed(found)}")


def find_format(library: Any, device: Input, address: SourceUri, wanted_hz: int) -> Format:
    """Return how to open a device: at the requested or wanted rate, else at one near.

    Args:
        library: sounddevice.
        device: to be opened.
        address: whose options may ask for a rate and a channel.
        wanted_hz: rate if the address asks for none, Hz.

    Raises:
        SourceError: it lacks the channel, cannot be opened now, or offers no rate that is known.
    """
    options, shown = address.options, address.masked
    channel = options.channel
    if channel is not None and channel >= device.channels:
        found = f"{device.name} has {device.channels}, which count from 0"
        raise SourceError(f"{shown}: expected a channel {channel}; {found}")
    is_server = device.channels > CHANNELS_MAX
    channels = (1 if channel is None else channel + 1) if is_server else device.channels
    asked_hz = options.rate or wanted_hz
    for rate_hz in _rates(asked_hz, device.rate_hz):
        try:
            library.check_input_settings(device.number, channels, "int16", samplerate=rate_hz)
        except library.PortAudioError as error:
            if _code(error) != _INVALID_RATE:
                raise SourceError(f"{shown}: {device.name} cannot be opened: {explain(error)}") from None
            continue
        if rate_hz != asked_hz:
            level = logging.WARNING if options.rate else logging.INFO
            log.log(level, "%s: %d Hz is not offered; opened at %d Hz", shown, asked_hz, rate_hz)
        return Format(rate_hz, channels, channel)
    raise SourceError(f"{shown}: expected a rate between {RATES_HZ[0]} and {RATES_HZ[-1]} Hz; it offers none")


def explain(error: Exception) -> str:
    """Describe a PortAudio error, as one clause."""
    reason = str(error.args[0] if error.args else error).replace("Error opening RawInputStream: ", "")
    detail = error.args[2][2] if len(error.args) > 2 else ""
    reason = f"{reason} ({detail})" if detail and detail not in reason else reason
    if _code(error) == _UNAVAILABLE or "busy" in reason:
        reason += "; another program may use it: fuser -v /dev/snd/*"
    return reason


NOT_PLUGGED = "plug one in, or start the sound server"
"""Message of `not_found` if nothing is broken."""


def not_found() -> str:
    """Explain why no microphone is found, or say what to do."""
    devices = sorted(Path("/dev/snd").glob("pcm*c"))
    if any(not os.access(device, os.R_OK | os.W_OK) for device in devices):
        return "this user may open none: add the user to the group audio, and log in again"
    if devices:
        return "none can be opened now: check whether another program uses it (fuser -v /dev/snd/*)"
    return NOT_PLUGGED


def _is_meant(device: Input, name: str, default: int) -> bool:
    if name == "default":
        return device.number == default
    if name.isdecimal():
        return device.number == int(name)
    return name in device.name.casefold()


def _listed(found: Sequence[Input]) -> str:
    return ", ".join(f"{device.number} ({device.name})" for device in found)


def _rates(asked_hz: int, own_hz: int) -> list[int]:
    """List rates to try: the requested one, then higher ones, then lower; of these the device's own first."""
    rates = {asked_hz, own_hz, *RATES_HZ}
    return sorted(rates, key=lambda hz: (hz < asked_hz, hz not in (asked_hz, own_hz), abs(hz - asked_hz)))


def _code(error: Exception) -> int:
    return int(error.args[1]) if len(error.args) > 1 and isinstance(error.args[1], int) else 0
