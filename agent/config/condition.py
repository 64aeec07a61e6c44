"""`[streams.NAME.condition]`: which problems of a camera, a microphone or a model are told."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

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
    """

    enabled: bool | None = None
    ignore: tuple[Problem, ...] = ()
