"""From a message to a row: what an event is, and why something else is none."""

from __future__ import annotations

import json
import time

from stores import EventRow, RejectedRow

MOST_BYTES = 1_000_000
"""Of a message that is kept; an event has about one thousand."""


def row(topic: str, payload: bytes) -> EventRow | RejectedRow:
    """The event in a message of `<prefix>/<device>/<stream>/events`.

    The topic says whose it is, since a broker checks rights by topic; a body that says otherwise is no event.
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
    device, stream = topic.split("/")[-3:-1]
    if (told["device"], told["stream"]) != (device, stream):
        raise ValueError(f"it says that it is of {told['device']!r}/{told['stream']!r}")
    seq = told["seq"]
    if type(seq) is not int or not 0 < seq < 2**63:
        raise ValueError(f"its seq is {seq!r}")
    names = [told["id"], device, stream, told["kind"], told["track"]["label"], told["track"]["id"]]
    texts = [*names, told["captured_at"]]
    if not all(isinstance(value, str) and value.isprintable() and len(value) <= 1000 for value in texts):
        raise ValueError("a name or time in it is no text, or too long")
    made = (told["id"], device, stream, seq, told["kind"], told["track"]["label"], told["track"]["id"])
    return EventRow(*made, told["captured_at"], now, text)
