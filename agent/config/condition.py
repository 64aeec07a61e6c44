"""`[streams.NAME.condition]`: which problems of a camera, a microphone or a model are told."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Problem = Literal[
    "dark",
    "frozen",
    "blurred",
    "covered",
    "moved",
    "tilted",
    "silent",
    "clipped",
    "humming",
    "constant",
    "drift",
]
"""What is wrong with a stream whose inputs come."""


class ConditionConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[streams.NAME.condition]`: whether camera, microphone and model are watched.

    Attributes:
        enabled: left out: for cameras, microphones and network streams, but not for files and test pictures.
        ignore: problems that are not told.
        accept_after_s: time after which the view of a moved camera is taken for its new one, s; 0: only when it
            is accepted by command, or the zones are drawn anew. Left out: 0 with zones, else an hour.
    """

    enabled: bool | None = None
    ignore: tuple[Problem, ...] = ()
    accept_after_s: Annotated[float, Meta(ge=0.0, le=1e8)] | None = None
