"""The message of a line: how many have crossed it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from msgspec import Meta, Struct

_Number = Annotated[int, Meta(ge=0, le=2**53)]
"""Number of crossings that every JSON reader takes exactly."""
_IN_OUT = {"inwards": "in", "outwards": "out"}


class LabelCrossings(Struct, frozen=True, rename=_IN_OUT):
    """Crossings of a line by objects of one label.

    Attributes:
        inwards, outwards: their number; `in` and `out` in JSON.
    """

    inwards: _Number = 0
    outwards: _Number = 0


class LineMessage(Struct, frozen=True, rename=_IN_OUT):
    """`<device>/<stream>/line/<name>`, retained: the crossings of a line.

    Attributes:
        device, stream: where it is.
        name: of the line.
        inwards, outwards: number of all crossings; `in` and `out` in JSON.
        since: UTC from which on they are counted: the first start with the line, or the newest `reset`.
        labels: crossings by label.
    """

    device: str
    stream: str
    name: str
    inwards: int
    outwards: int
    since: datetime
    labels: dict[str, LabelCrossings] = {}
