"""PortAudio, the one library of this process that hears microphones, shared by every stream that has one.

It makes its list of devices when it is initialised, and shows what was plugged in later only when that is done
again, which ends every stream. So it is done when nobody has a stream open; and when somebody misses a device and
the cards of this machine have changed since, every stream is asked to be closed for a moment.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from msgspec import Struct

from agent.errors import SourceError
from agent.stderr import STDERR_TURN

log = logging.getLogger(__name__)

_CARDS = Path("/proc/asound/cards")
_GATHER_S = 1.0
"""So long those who were asked to close wait for each other."""

T = TypeVar("T")


class Input(Struct, frozen=True):
    """A device that hears.

    Attributes:
        number: PortAudio's; changes with what is plugged in.
        name: as PortAudio tells it.
        channels: at most; a sound server says 32 or more.
        rate_hz: the one that it prefers.
    """

    number: int
    name: str
    channels: int
    rate_hz: int


class _Leaving(NamedTuple):
    """A stream that nobody wants any more, see `PortAudio.close`."""

    shown: str
    stream: Any
    closed: Callable[[], None]


class PortAudio:
    """Opens and closes streams, one at a time, and keeps the list of devices fresh."""

    def __init__(self) -> None:
        self._turn = threading.Condition(threading.Lock())
        self._library: Any = None
        self._users, self._asked, self._cards = 0, False, ""
        self._leaving: deque[_Leaving] = deque()

    def open(self, shown: str, timeout_s: float, make: Callable[[Any, list[Input]], T]) -> T:
        """Open a stream; whoever has one gives it back to `close`.

        Args:
            shown: what is opened, for messages.
            timeout_s: wait for others who open or close so long, s.
            make: gets sounddevice and what there is; opens the stream, or raises a `SourceError`.

        Raises:
            SourceError: PortAudio is missing, hangs in another stream, or what `make` raises.
        """
        with self._my_turn(shown, timeout_s):
            library = self._fresh(shown)
            try:
                stream = make(library, inputs(library))
            except SourceError:
                self._asked = self._users > 0 and _cards() != self._cards
                raise
            self._users += 1
            return stream

    def look(self, shown: str, do: Callable[[Any, list[Input]], T]) -> T:
        """Do something with sounddevice and what there is, while nobody opens or closes.

        Raises:
            SourceError: see `open`.
        """
        with self._my_turn(shown, _GATHER_S):
            library = self._fresh(shown)
            return do(library, inputs(library))

    def close(self, shown: str, timeout_s: float, stream: Any, closed: Callable[[], None]) -> None:
        """Close a stream that `open` gave. Where PortAudio hangs in another one, that is done when it answers.

        Args:
            shown: what is closed, for messages.
            timeout_s: wait for others who open or close so long, s.
            stream: to be closed.
            closed: is called when its callback can no longer be, from any thread.
        """
        self._leaving.append(_Leaving(shown, stream, closed))
        if self._turn.acquire(timeout=timeout_s):
            self._release()
        else:
            log.warning("%s: PortAudio hangs in another microphone; closed when it answers", shown)

    @property
    def asks_to_close(self) -> bool:
        """Whether somebody misses a device that may have come since: then close, `gather`, and open again."""
        return self._asked

    def gather(self) -> None:
        """Having closed, wait until everybody else has, too; not where PortAudio hangs."""
        if not self._turn.acquire(timeout=_GATHER_S):
            return
        try:
            if not self._turn.wait_for(lambda: not self._asked or not self._users, _GATHER_S):
                self._asked, self._cards = False, _cards()
        finally:
            self._release()

    @contextlib.contextmanager
    def _my_turn(self, shown: str, timeout_s: float) -> Iterator[None]:
        if not self._turn.acquire(timeout=timeout_s):
            raise SourceError(f"{shown}: PortAudio has been busy with another microphone for {timeout_s:g} s")
        try:
            self._close_leaving()
            yield
        finally:
            self._release()

    def _release(self) -> None:
        """Close the streams that others could not close meanwhile, and let the next one in."""
        while True:
            self._close_leaving()
            self._turn.release()
            # One may have been left since, by somebody who found the turn taken.
            if not self._leaving or not self._turn.acquire(blocking=False):
                return

    def _close_leaving(self) -> None:
        while self._leaving:
            leaving = self._leaving.popleft()
            try:
                _close(leaving.shown, leaving.stream)
            finally:
                self._users -= 1
                self._turn.notify_all()
                leaving.closed()

    def _fresh(self, shown: str) -> Any:
        """The library, with a fresh list where that harms nobody."""
        if self._library is None:
            self._library = _import(shown)
        elif not self._users:
            # Not by its _initialize, which sends descriptor 2 away meanwhile, and with it what others say.
            self._library._terminate()
            self._library._lib.Pa_Initialize()
            self._library._initialized += 1
        else:
            return self._library
        self._asked, self._cards = False, _cards()
        return self._library


PORTAUDIO = PortAudio()


def _close(shown: str, stream: Any) -> None:
    """Close a stream, whatever sounddevice raises: its device is another program's then, or gone."""
    for how in (stream.abort, stream.close):
        try:
            how()
        except Exception as error:
            log.debug("%s: %s: %s", shown, how.__name__, error)


def inputs(library: Any) -> list[Input]:
    """What hears, in the order of the numbers."""
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
    _quiet()
    try:
        with STDERR_TURN:  # it sends descriptor 2 away while it initialises PortAudio
            library = importlib.import_module("sounddevice")
    except ImportError as error:
        raise SourceError(f"{shown}: expected sounddevice; it cannot be imported: {error}") from None
    except OSError:
        raise SourceError(
            f"{shown}: expected PortAudio; it is not installed: sudo apt install libportaudio2"
        ) from None
    # It would take PortAudio down at the process's end, and wait for ever for a sound server that hangs.
    with contextlib.suppress(AttributeError):
        atexit.unregister(library._exit_handler)
    return library


def _quiet() -> None:
    """No lines of ALSA and JACK on stderr for each device that they try: what takes them does nothing."""
    nothing = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p)
    for name, setters in (
        ("libasound.so.2", ("snd_lib_error_set_handler",)),
        ("libjack.so.0", ("jack_set_error_function", "jack_set_info_function")),
    ):
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(name)
            for setter in setters:
                getattr(library, setter)(nothing)
