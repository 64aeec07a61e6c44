"""Pack and unpack the learned views of a camera, which are kept over restarts."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct

from agent.compute.condition.drift import DriftMemory
from agent.compute.condition.looks import LOOKS, SETTLED
from agent.compute.condition.view import TILES, WIDTH, Floats, LearnedView

_ROWS_MAX = 2 * WIDTH


class PackedView(Struct, frozen=True):
    """A `LearnedView`.

    Attributes:
        field: int8 [rows, WIDTH, 2], 127 for 1.
        strength, brightness: float16 [9, 12], little-endian.
        sharpness: None: not known.
    """

    field: bytes
    strength: bytes
    brightness: bytes
    sharpness: float | None
    pictures: int


class CameraMemory(Struct, frozen=True):
    """Learned views and place of one camera, as they are written to a file.

    Attributes:
        looks: the one in use first.
        moved: `moved` or `tilted` while it is; else empty.
        where: describes that, at most 64 characters.
        zones: describes the zones that were drawn on the learned view.
        origin: of which pictures it was learned; that of others is of no use.
        answers: what the model usually answers; None: nothing is known.
    """

    looks: tuple[PackedView, ...]
    moved: str = ""
    where: Annotated[str, Meta(max_length=64, pattern=r"^[ -~°]*$")] = ""
    zones: str = ""
    origin: str = ""
    answers: DriftMemory | None = None


def pack_looks(looks: list[LearnedView]) -> tuple[PackedView, ...]:
    """Return looks for the disk, without those that are still being learned."""
    return tuple(
        PackedView(
            np.rint(one.field * 127.0).astype(np.int8).tobytes(),
            one.strength.astype("<f2").tobytes(),
            one.brightness.astype("<f2").tobytes(),
            None if math.isnan(one.sharpness) else round(one.sharpness, 4),
            one.pictures,
        )
        for one in looks
        if one.pictures >= SETTLED
    )


def unpack_looks(packed: tuple[PackedView, ...]) -> list[LearnedView]:
    """Return looks from the disk.

    Raises:
        ValueError: a size or a number is none that `pack_looks` writes.
    """
    looks = [_unpack(one) for one in packed[:LOOKS]]
    if len({len(one.field) for one in looks}) > 1:
        raise ValueError("looks are of different sizes")
    return looks


def _unpack(packed: PackedView) -> LearnedView:
    field = np.frombuffer(packed.field, np.int8).reshape(-1, WIDTH, 2).astype(np.float32) / 127.0
    strength, brightness = _tiles(packed.strength), _tiles(packed.brightness)
    sharpness = math.nan if packed.sharpness is None else packed.sharpness
    is_sound = TILES[1] <= len(field) <= _ROWS_MAX and packed.pictures >= SETTLED and not sharpness <= 0.0
    if not (is_sound and np.isfinite(strength).all() and np.isfinite(brightness).all()):
        raise ValueError("a look has other numbers than were written")
    return LearnedView(field, strength, brightness, sharpness, packed.pictures)


def _tiles(packed: bytes) -> Floats:
    return np.frombuffer(packed, "<f2").reshape(TILES[::-1]).astype(np.float32)
