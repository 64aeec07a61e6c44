"""The choice of a microphone by its name, and of the rate and the channels that it is opened with."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from agent.capture.portaudio import Input
from agent.capture.ratemeter import RATES_HZ
from agent.capture.uri import Address
from agent.errors import SourceError

log = logging.getLogger(__name__)

CHANNELS_MAX = 8
"""What says that it has more is no microphone but a sound server, which mixes by itself."""
_INVALID_RATE, _UNAVAILABLE = -9997, -9985
"""PortAudio's paInvalidSampleRate and paDeviceUnavailable."""


class Format(Struct, frozen=True):
    """How a microphone is opened.

    Attributes:
        rate_hz: that it is opened at.
        channels: that it is opened with.
        channel: of these, which is taken; None: the mean of all.
    """

    rate_hz: int
    channels: int
    channel: int | None


def choose(found: Sequence[Input], target: str, default: int, shown: str) -> Input:
    """The microphone that is meant.

    Args:
        found: what there is.
        target: `default`, a number, a name, or a part of one; upper and lower case do not matter.
        default: number of the one that PortAudio prefers; -1: none.
        shown: the URI, for messages.

    Raises:
        SourceError: there is none of that name, or more than one; lists what there is.
    """
    name = target.casefold()
    chosen = [device for device in found if device.name.casefold() == name]
    chosen = chosen or [device for device in found if _is_meant(device, name, default)]
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        raise SourceError(f"{shown}: expected the name of one microphone; found {_listed(chosen)}")
    raise SourceError(f"{shown}: expected a microphone {target}; found {_listed(found) or missing()}")


def fitting(library: Any, device: Input, address: Address, wanted_hz: int) -> Format:
    """How to open it: at the rate that is asked for or wanted, else at one near.

    Args:
        library: sounddevice.
        device: which.
        address: whose options ask for a rate and a channel.
        wanted_hz: unless the address asks for another.

    Raises:
        SourceError: it lacks the channel, cannot be opened now, or offers no rate that we know.
    """
    options, shown = address.options, address.shown
    form = _channels(device, options.channel, shown)
    asked_hz = options.rate or wanted_hz
    for rate_hz in _rates(asked_hz, device.rate_hz):
        try:
            library.check_input_settings(device.number, form.channels, "int16", samplerate=rate_hz)
        except library.PortAudioError as error:
            if _code(error) != _INVALID_RATE:
                raise SourceError(f"{shown}: {device.name} cannot be opened: {why(error)}") from None
            continue
        if rate_hz != asked_hz:
            level = logging.WARNING if options.rate else logging.INFO
            log.log(level, "%s: %d Hz is not offered; opened at %d Hz", shown, asked_hz, rate_hz)
        return Format(rate_hz, form.channels, form.channel)
    raise SourceError(f"{shown}: expected a rate between {RATES_HZ[0]} and {RATES_HZ[-1]} Hz; it offers none")


def why(error: Exception) -> str:
    """What PortAudio complains about, as one clause."""
    reason = str(error.args[0] if error.args else error).replace("Error opening RawInputStream: ", "")
    detail = error.args[2][2] if len(error.args) > 2 else ""
    reason = f"{reason} ({detail})" if detail and detail not in reason else reason
    if _code(error) == _UNAVAILABLE or "busy" in reason:
        reason += "; another program may use it: fuser -v /dev/snd/*"
    return reason


NOT_PLUGGED = "none: is one plugged in, or should a sound server run?"
"""What `missing` says where nothing is broken."""


def missing() -> str:
    """Why there is no microphone at all, as far as one can see."""
    devices = sorted(Path("/dev/snd").glob("pcm*c"))
    if any(not os.access(device, os.R_OK | os.W_OK) for device in devices):
        return "none that this user may open: add it to the group audio, and log in again"
    if devices:
        return "none that can be opened now: does another program use it (fuser -v /dev/snd/*)?"
    return NOT_PLUGGED


def _is_meant(device: Input, name: str, default: int) -> bool:
    if name == "default":
        return device.number == default
    if name.isdecimal():
        return device.number == int(name)
    return name in device.name.casefold()


def _listed(found: Sequence[Input]) -> str:
    return ", ".join(f"{device.number} ({device.name})" for device in found)


def _channels(device: Input, channel: int | None, shown: str) -> Format:
    server = device.channels > CHANNELS_MAX
    if channel is not None and channel >= device.channels:
        raise SourceError(
            f"{shown}: expected a channel {channel}; {device.name} has {device.channels}, which count from 0"
        )
    if not server:
        return Format(0, device.channels, channel)
    return Format(0, 1 if channel is None else channel + 1, channel)


def _rates(asked_hz: int, own_hz: int) -> Iterator[int]:
    """What to try: as asked; then its own where that loses nothing; then the next higher, then the next lower."""
    tried = {asked_hz}
    yield asked_hz
    higher = [own_hz] if own_hz > asked_hz else []
    higher += [rate for rate in RATES_HZ if rate > asked_hz]
    for rate in (*higher, own_hz, *(rate for rate in reversed(RATES_HZ) if rate < asked_hz)):
        if rate not in tried:
            tried.add(rate)
            yield rate


def _code(error: Exception) -> int:
    return int(error.args[1]) if len(error.args) > 1 and isinstance(error.args[1], int) else 0
