"""Rows that are stored: events, rejected messages, and gaps."""

from __future__ import annotations

from typing import NamedTuple


class EventRow(NamedTuple):
    """An event as it is kept."""

    id: str
    device: str
    stream: str
    seq: int
    kind: str
    label: str
    track: str
    captured_at: str
    received_at: float
    body: str
    first_seq: int = 0


class RejectedRow(NamedTuple):
    """A message that is no event, and why."""

    topic: str
    why: str
    received_at: float
    body: str


class Gap(NamedTuple):
    """Numbers of a device that have not come.

    With `restart` a new run of the device begins behind them, above all that the one before may have given out
    when it was cut off: they were never given out, or went with its memory. Without, they were lost.
    """

    device: str
    first: int
    last: int
    restart: bool = False
