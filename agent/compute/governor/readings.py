"""Readings of the board and its streams, from which the governor decides once a second."""

from __future__ import annotations

from msgspec import Struct

from agent.types import DiskLoad, LinkLoad


class VariantCost(Struct, frozen=True, gc=False):
    """A size of a model, and its multiply-adds relative to the largest, 0..1."""

    name: str = ""
    cost: float = 1.0


class StreamReading(Struct, frozen=True):
    """One stream in the newest window.

    Attributes:
        priority: streams with a lower number give way first.
        min_fps: inferences per second that it is to have while its gate is open; 0: none are promised.
        max_latency_ms: from the capture of a picture to its result that it is to keep, ms; 0: none is promised.
        fps: pictures per second that its source gives when nothing disturbs it.
        fps_now: pictures per second that it has given in the window.
        open_share: share of them that the gate lets through, 0..1: the most of the last half minute.
        inferred_fps: inferences per second while the gate was open; None: it was closed for most of the window.
        inferred_lately: the same over the last ten windows; None: it was closed for most of them, or too few.
        fps_lately: pictures per second that its source has given in these.
        latency_ms: 95th percentile of capture to result; None: nothing was inferred.
        cost_ms: processor time of an inference of the largest variant when nothing disturbs it, ms.
        least_ms: shortest time in which the smallest variant can answer here, ms; 0: unknown.
        handled_fps: pictures per second that the stream has handled in the window, inferred or not.
        variants: that may be used, the largest first.
        has_samples, has_snapshots, has_clips: whether it publishes or encodes these; clips of copied packets
            cannot be reduced.
        has_decoding: whether less of its camera may be decoded: that is encoded, decoded as needed, gives others
            than key frames, and the stream is promised no rate; and so for all streams that share the camera.
        camera: what streams that share a camera have in common; empty: it is not shared.
    """

    priority: int = 50
    min_fps: float = 0.0
    max_latency_ms: float = 0.0
    fps: float = 0.0
    fps_now: float = 0.0
    open_share: float = 0.0
    inferred_fps: float | None = None
    inferred_lately: float | None = None
    fps_lately: float = 0.0
    latency_ms: float | None = None
    cost_ms: float = 0.0
    least_ms: float = 0.0
    handled_fps: float = 0.0
    variants: tuple[VariantCost, ...] = (VariantCost(),)
    has_samples: bool = False
    has_snapshots: bool = False
    has_clips: bool = False
    has_decoding: bool = False
    camera: str = ""


class BoardReading(Struct, frozen=True, gc=False):
    """The board in the newest window.

    Attributes:
        cores: processors that the daemon may use.
        idle: share of them that was idle, 0..1; with a quota no more than it leaves.
        others: share of them that other programs used, 0..1.
        celsius: temperature of the zone that is nearest to its limit, °C; None: unknown.
        limit_c: temperature that this zone is not to exceed, °C.
        settles_c: temperature that the present load leads to, °C; None: unknown.
        limit_in_s: time until `limit_c` is reached under the present load, s; None: never, or unknown.
        slowed: why the hardware reduces its clock now; empty: it does not, or that is unknown.
        memory_free: share of the memory that programs can still have, 0..1; None: unknown.
        battery_percent: charge of the battery that the board runs on, 0..100; None: it runs on none, or it is
            unknown.
        is_supply_known: False while warnings of the supply, which were known before, cannot be read.
        quota: processors that the daemon's control group may use; None: all of `cores`.
    """

    cores: int = 1
    idle: float = 1.0
    others: float = 0.0
    celsius: float | None = None
    limit_c: float = 80.0
    settles_c: float | None = None
    limit_in_s: float | None = None
    slowed: str = ""
    memory_free: float | None = None
    battery_percent: float | None = None
    quota: float | None = None
    is_supply_known: bool = True


class Readings(Struct, frozen=True):
    """Everything of one window.

    Attributes:
        now_s: CLOCK_MONOTONIC, s.
        board: see `BoardReading`.
        streams: that run, by name.
        disk, link: how busy storage and communication are.
        known: names of streams that do not run now and may come back, and of those that run.
    """

    now_s: float
    board: BoardReading
    streams: dict[str, StreamReading]
    disk: DiskLoad = DiskLoad()
    link: LinkLoad = LinkLoad()
    known: frozenset[str] = frozenset()
