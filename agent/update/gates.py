"""The gates of a bundle: what it has to show on a board before it may stay there."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

Seconds = Annotated[float, Meta(ge=0, le=86_400)]


class HealthGate(Struct, frozen=True, forbid_unknown_fields=True):
    """What a trial has to show before it is committed.

    Attributes:
        steady_s: so long every stream has to be well.
        within_s: after so long a trial that is not is rolled back.
        p95_factor: the 95th percentile of an inference may take so many times as long as before.
        p95_floor_ms: below this it is not looked at.
        memory_mb: that the daemon may take.
    """

    steady_s: Seconds = 60.0
    within_s: Seconds = 300.0
    p95_factor: Annotated[float, Meta(ge=1, le=100)] = 1.5
    p95_floor_ms: Annotated[float, Meta(ge=0, le=60_000)] = 5.0
    memory_mb: Annotated[float, Meta(gt=0, le=1_000_000)] = 400.0


class ShadowGate(Struct, frozen=True, forbid_unknown_fields=True):
    """What new models have to show beside those in use before they take their place.

    How long an inference may take is said by `HealthGate.p95_factor` and `p95_floor_ms`.

    Attributes:
        agreement: mean F1 of the new model's answers against those of the one in use, at least.
        compared: so many answers, in which either has found something, of each stream.
        every: of the pictures that are inferred, each so many-th is compared.
        within_s: after so long they are refused.
    """

    agreement: Annotated[float, Meta(ge=0, le=1)] = 0.9
    compared: Annotated[int, Meta(ge=1, le=1_000_000)] = 100
    every: Annotated[int, Meta(ge=1, le=10_000)] = 5
    within_s: Annotated[float, Meta(gt=0, le=604_800)] = 3600.0
