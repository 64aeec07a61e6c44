"""From a message to a row: what an event is, and why something else is none."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from rows import EventRow, RejectedRow

MOST_BYTES = 1_000_000
"""Largest message that is stored; an event has about one thousand bytes."""

MOST_SEQ = 2**53
"""No device gets there in a million years; readers of JSON that count in floats are exact up to here."""


def row(topic: str, payload: bytes) -> EventRow | RejectedRow:
    """The row that a message makes: an event, a verdict, news of a clip, or detections that were spooled.

    These share the numbers of their device: who leaves one kind out sees gaps that are none. The topic says
    whose a message is, since a broker checks rights by topic; a body that says otherwise is refused.
    """
    now = time.time()
    try:
        if len(payload) > MOST_BYTES:
            raise ValueError(f"{len(payload)} bytes are too many")
        text = payload.decode()
        if "\0" in text or "\\u0000" in text:  # PostgreSQL has no place for it
            raise ValueError("it holds a zero")
        return _event(topic, text, now)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        why, body = f"{type(error).__name__}: {error}", payload[:MOST_BYTES].decode(errors="replace")
        return RejectedRow(_no_zero(topic), _no_zero(why), now, _no_zero(body))


def _no_zero(text: str) -> str:
    return text.replace("\0", "�")


def _event(topic: str, text: str, now: float) -> EventRow:
    told = json.loads(text)
    device, stream, what = topic.split("/")[-3:]
    if (told["device"], told["stream"]) != (device, stream):
        raise ValueError(f"it says that it is of {told['device']!r}/{told['stream']!r}")
    seq, *texts = _KINDS[what](told)
    if type(seq) is not int or not 0 < seq < MOST_SEQ:
        raise ValueError(f"its seq is {seq!r}")
    names = [told["id"], device, stream, *texts]
    if not all(isinstance(name, str) and name.isprintable() and len(name) <= 1000 for name in names):
        raise ValueError("a name or time in it is no text, or too long")
    first_seq = told.get("first_seq", 0)
    if type(first_seq) is not int or not 0 <= first_seq <= seq:
        raise ValueError(f"its first_seq is {first_seq!r}")
    kind, label, track, captured_at = texts
    return EventRow(told["id"], device, stream, seq, kind, label, track, captured_at, now, text, first_seq)


Table = dict[str, Any]

_KINDS: dict[str, Callable[[Table], tuple[Any, ...]]] = {
    "events": lambda told: (
        told["seq"],
        told["kind"],
        told["track"]["label"],
        told["track"]["id"],
        told["captured_at"],
    ),
    "clips": lambda told: (told["seq"], "clip", told["label"], told["track"], told["began_at"]),
    "verdicts": lambda told: (told["seq"], told["verdict"], told["reason"], told["part"], told["triggered_at"]),
    "detections": lambda told: (told["spool_seq"], "detections", "", "", told["captured_at"]),
}
"""By the last level of the topic: number, kind, label, track and time."""
