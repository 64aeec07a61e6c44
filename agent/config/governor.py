"""`[governor]` and `[streams.NAME.service]`: how the board's resources are shared out between streams."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Giving = Literal["samples", "snapshots", "clips", "inference", "decoding"]
"""What of a stream can be reduced."""


class ServiceConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[streams.NAME.service]`: how important the stream is, and what it must keep under load.

    Attributes:
        priority: where not all fits, streams with a lower number give way first.
        min_fps: pictures per second that are inferred at least while the gate is open, if the source gives so
            many; 0: none are promised.
        max_latency_ms: longest time from the capture of a picture to its result, for 95 of 100, ms; 0: none is
            promised.
        smaller_variants: the model's smaller sizes may be used under load. They are kept in memory for it: 15 MB
            of `nanodet`.
    """

    priority: Annotated[int, Meta(ge=0, le=100)] = 50
    min_fps: Annotated[float, Meta(ge=0.0, le=1000.0)] = 0.0
    max_latency_ms: Annotated[float, Meta(ge=0.0, le=1e6)] = 0.0
    smaller_variants: bool = False


class GovernorConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[governor]`: what gives way when processors, disk or network are too slow, or the board too hot.

    Attributes:
        enabled: whether anything gives way. If false, each stream takes what it gets.
        max_temperature_c: temperature of the hottest zone that is not exceeded, °C. Left out: of each zone 3 °C
            below the one at which the kernel throttles for it, and at most `thermal.warn_c`.
        order: what a stream gives up, the first at first, and decoding always at last; what is left out is never
            reduced. `samples`: messages of `detections`; `snapshots`: their quality and rate; `clips`: their
            pictures per second; `inference`: pictures that are inferred, and the size of the model; `decoding`:
            pictures of an encoded network camera between its key frames, for a stream of a higher priority.
        max_stride: of the pictures in which something moves, at least one in so many is inferred.
        save_below_percent: charge from which on every stream infers as little as it may, while the board runs on
            its battery, 0..100; 0: never.
    """

    enabled: bool = True
    max_temperature_c: Annotated[float, Meta(ge=30.0, le=150.0)] | None = None
    order: tuple[Giving, ...] = ("samples", "snapshots", "clips", "inference", "decoding")
    max_stride: Annotated[int, Meta(ge=1, le=100)] = 6
    save_below_percent: Annotated[float, Meta(ge=0.0, le=100.0)] = 0.0
