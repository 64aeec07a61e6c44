"""`<device>/health`: how a device is, with its streams, its spool and its line to the broker."""

from __future__ import annotations

from datetime import datetime

from msgspec import Struct


class SpoolHealth(Struct, frozen=True):
    """State of the spool.

    Attributes:
        waiting: events not yet acknowledged.
        bytes: that they take.
        dropped: events that went without having been delivered, ever.
        on: `disk`, or `memory` while the disk fails or where it is so configured.
        dropped_by: of these, by reason: `bytes` and `age`, the bounds of the spool; `memory`, they lay there only
            when the daemon stopped (what a crash takes is not known); `unsendable`, no broker takes them.
        first_seq: the first number that this run of the daemon gives out; see `EventMessage`.
    """

    waiting: int
    bytes: int
    dropped: int
    on: str
    dropped_by: dict[str, int] = {}
    first_seq: int = 0


class StreamHealth(Struct, frozen=True):
    """State of one stream.

    Attributes:
        state: starting | running | degraded (its device fails, and the CPU answers) | lost | ended | failed |
            disabled.
        detail: why, when it is not running.
        fps: frames handled per second, over the last interval.
        inferences_per_s: of those, frames that were inferred.
        infer_ms: mean of the last interval.
        frames, dropped, reopened: since start.
        tracks: alive now.
        model, backend, rung: in use.
        set_by_command: what operators have set against the configuration file.
    """

    state: str
    detail: str = ""
    fps: float = 0.0
    inferences_per_s: float = 0.0
    infer_ms: float = 0.0
    frames: int = 0
    dropped: int = 0
    reopened: int = 0
    tracks: int = 0
    model: str = ""
    backend: str = ""
    rung: str = ""
    set_by_command: tuple[str, ...] = ()


class LinkHealth(Struct, frozen=True):
    """The line to the broker.

    Attributes:
        broker: `host:port` of the one that this came over.
        how: protocol, encryption and user.
        fallback: whether that is not the first of the configuration.
        connects: how often a broker has accepted us, since start.
        trouble: where and why the line was lost last, such as another client with our client id; empty: never.
        intrusions: messages of somebody else on `…/state/…` of this device that were put right, over this line.
    """

    broker: str
    how: str
    fallback: bool = False
    connects: int = 0
    trouble: str = ""
    intrusions: int = 0


class ClipsHealth(Struct, frozen=True):
    """How the clips of all streams are doing.

    Attributes:
        saved, failed: since start; what is being recorded is neither yet.
        deleted: since start, because they were too old or to make room for newer ones.
        kept, bytes: clips on the board's disk, and what they take.
        trouble: why none can be saved; empty: as far as is known, they can.
    """

    saved: int
    failed: int
    deleted: int
    kept: int
    bytes: int
    trouble: str = ""


class HealthMessage(Struct, frozen=True):
    """`<device>/health`, retained.

    Attributes:
        version: of Vedette.
        at: UTC.
        uptime_s: of the daemon, s.
        streams: by name.
        spool: see `SpoolHealth`.
        rss_mb: resident memory of the daemon, MB.
        temperature_c: hottest thermal zone, °C, where there is one.
        hot: whether that has reached `thermal.warn_c`, and is not 5 °C below it again.
        link: see `LinkHealth`; None when there was no connection as this was written.
        waits_for_restart: keys, such as `storage.folder`, that the file has changed since the start and that a
            reload could not take up.
        clips: see `ClipsHealth`; None where no stream makes any.
        homeassistant: why Home Assistant does not find this device; empty: nothing speaks against it.
        commands_off: why no commands are taken from the broker; empty: they are taken.
        state_folder: that it was deleted or replaced while the daemon ran, and whether it could be written anew;
            also that what commands have set is not written yet; empty: neither.
    """

    version: str
    at: datetime
    uptime_s: float
    streams: dict[str, StreamHealth]
    spool: SpoolHealth
    rss_mb: float
    temperature_c: float | None = None
    hot: bool = False
    link: LinkHealth | None = None
    waits_for_restart: tuple[str, ...] = ()
    clips: ClipsHealth | None = None
    homeassistant: str = ""
    commands_off: str = ""
    state_folder: str = ""
