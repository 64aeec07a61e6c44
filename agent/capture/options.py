"""The options of a source: what stands behind the question mark of its URI."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, Literal

from msgspec import Struct

from agent.errors import SourceError

Pace = Literal["realtime", "fast"]


class Options(Struct, frozen=True):
    """Every option of every kind of source, read; a kind takes the few that it knows.

    Attributes:
        size: width and height, pixels; None: the source's own.
        fps: pictures per second; 0: the source's own.
        format: four characters, such as MJPG; empty: the device's own.
        pace: `realtime` plays as it was recorded, `fast` as fast as the consumer takes.
        loop: begin again at the end.
        frames: ends after so many pictures; 0: never.
        rate: samples per second that a microphone is asked for, Hz; 0: as many as are wanted.
        channel: of sound, from 0; None: the mean of all.
    """

    size: tuple[int, int] | None = None
    fps: float = 0.0
    format: str = ""
    pace: Pace = "realtime"
    loop: bool = False
    frames: int = 0
    rate: int = 0
    channel: int | None = None


def _size(text: str) -> tuple[int, int]:
    width, height = text.lower().split("x")
    size = int(width), int(height)
    if not all(16 <= side <= 16384 for side in size):
        raise ValueError(text)
    return size


def _fps(text: str) -> float:
    fps = float(text)
    if not (math.isfinite(fps) and 0 < fps <= 1000):
        raise ValueError(text)
    return fps


def _format(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9 ]{4}", text):
        raise ValueError(text)
    return text.upper()


def _pace(text: str) -> str:
    return {"realtime": "realtime", "fast": "fast"}[text]


def _loop(text: str) -> bool:
    return {"1": True, "0": False, "true": True, "false": False}[text]


def _frames(text: str) -> int:
    frames = int(text)
    if frames < 1:
        raise ValueError(text)
    return frames


def _rate(text: str) -> int:
    rate = int(text)
    if not 4000 <= rate <= 384_000:
        raise ValueError(text)
    return rate


def _channel(text: str) -> int | None:
    named = {"mix": None, "left": 0, "right": 1}
    if text in named:
        return named[text]
    channel = int(text)
    if not 0 <= channel < 64:
        raise ValueError(text)
    return channel


_READERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "size": (_size, "WIDTHxHEIGHT in pixels, each from 16 to 16384, such as 1280x720"),
    "fps": (_fps, "a number of pictures per second over 0 and up to 1000, such as 15"),
    "format": (_format, "four characters, such as MJPG or YUYV"),
    "pace": (_pace, "realtime or fast"),
    "loop": (_loop, "1 or 0"),
    "frames": (_frames, "a whole number of pictures from 1"),
    "rate": (_rate, "samples per second from 4000 to 384000, such as 16000"),
    "channel": (_channel, "mix, left, right, or a channel's number from 0 to 63"),
}


def read_options(pairs: Sequence[tuple[str, str]], keys: Sequence[str], pace: Pace, shown: str) -> Options:
    """The options of a query.

    Args:
        pairs: keys and values as they stand in the query.
        keys: that this kind of source knows.
        pace: unless the query says otherwise.
        shown: the URI, for messages.

    Raises:
        SourceError: a key is unknown or stands twice, or a value is out of range.
    """
    values: dict[str, Any] = {"pace": pace}
    seen: set[str] = set()
    for key, text in pairs:
        if key not in keys:
            raise SourceError(_unknown_key(key, keys, shown))
        if key in seen:
            raise SourceError(f"{shown}: expected {key} once; found it twice")
        seen.add(key)
        values[key] = _read_value(key, text, shown)
    return Options(**values)


def _read_value(key: str, text: str, shown: str) -> Any:
    read, expected = _READERS[key]
    try:
        return read(text)
    except (ValueError, KeyError):
        raise SourceError(f"{shown}: {key}: expected {expected}; found {text!r}") from None


def _unknown_key(key: str, keys: Sequence[str], shown: str) -> str:
    near = get_close_matches(key, keys, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{shown}: expected a key among {', '.join(keys)}; found {key}{hint}"
