"""The daemon's health: `health.json`, and the parts of it that the MQTT health message holds too.

The daemon writes `health.json`; the updater, the fleet and `vedette doctor` read it. Other versions may write
other fields: unknown ones are ignored, missing ones get their defaults. A field never changes its type.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from msgspec import Meta, Struct

HEALTH_FILE = "health.json"
"""Name of the file in the service's runtime directory."""
Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
"""Limited, since readers do not trust the daemon: JSON encoders cannot write a larger integer."""


class StreamHealth(Struct, frozen=True):
    """State of one stream.

    Attributes:
        state: starting | running | degraded (its device fails, and the CPU answers) | lost | ended | failed |
            disabled.
        detail: why, when it is not running.
        fps: frames processed per second, over the last interval.
        inferences_per_s: inferences per second, over the last interval.
        infer_ms: mean of the last interval.
        frames, dropped, reopened: since the start.
        tracks: alive now.
        model, backend, variant: in use.
        set_by_command: settings that commands have changed from the configuration file.
        p95_ms: 95th percentile of the newest 256 times of each stage that ran, ms, by stage.
        cpu: processor time of its threads per second over the last interval; 1 is one whole processor. Threads of
            the model's runtime and processes of accelerators are not among them. None: not known.
        reduced: what the governor gives it less of than everything, and why; empty: of nothing.
        unmet: which promise of its service is not kept, and by whose doing; empty: all are.
        problems: of its camera, microphone or model, such as `dark`; see `vedette guide condition`.
        decoding: what of an encoded source is decoded now: packets (key frames now and then) | keyframes | full;
            empty: it is not encoded.
        decoded_fps: pictures decoded per second, over the last interval.
    """

    state: str
    detail: str = ""
    fps: float = 0.0
    inferences_per_s: float = 0.0
    infer_ms: float = 0.0
    frames: Count = 0
    dropped: Count = 0
    reopened: Count = 0
    tracks: Count = 0
    model: str = ""
    backend: str = ""
    variant: str = ""
    set_by_command: tuple[str, ...] = ()
    p95_ms: dict[str, float] = {}
    cpu: float | None = None
    reduced: str = ""
    unmet: str = ""
    problems: tuple[str, ...] = ()
    decoding: str = ""
    decoded_fps: float = 0.0


class ShadowReport(Struct, frozen=True):
    """Comparison of a stream's model with a new one that runs beside it.

    Attributes:
        compared: inputs in which either model found something.
        agreement: mean F1 of one model's detections against the other's, 0..1; None without a comparison.
        infer_p95_ms: 95th percentile of the new model's latest inference times, ms; None: there were none.
        present_p95_ms: that of the stream's own model on the same inputs, ms.
        failed: why the new model stopped; empty: it runs.
    """

    compared: Count = 0
    agreement: float | None = None
    infer_p95_ms: float | None = None
    present_p95_ms: float | None = None
    failed: str = ""


class StreamReport(StreamHealth, frozen=True):
    """Health of a stream as last published, with its state as of now.

    Attributes:
        inferred: inferences since the stream was started.
        infer_p95_ms: 95th percentile of the newest inference times, ms; None before the first one.
        shadow: comparison with a new model that runs beside the stream's own; None: none does.
    """

    inferred: Count = 0
    infer_p95_ms: float | None = None
    shadow: ShadowReport | None = None


class LinkHealth(Struct, frozen=True):
    """The connection to the broker.

    Attributes:
        broker: `host:port` of the broker that delivered this message.
        how: protocol, encryption and user.
        connects: how often a broker has accepted a connection, since the start.
        trouble: where and why the connection was lost last, such as a second client with this id; empty: never.
    """

    broker: str
    how: str
    connects: Count = 0
    trouble: str = ""


class DaemonHealth(Struct, frozen=True):
    """`health.json`.

    Attributes:
        version: of Vedette.
        pid: of the daemon.
        boot_id: of the kernel; tells a file of another boot.
        at_s: time of writing, CLOCK_BOOTTIME, s.
        ready: each stream has inferred, or cannot now: its source is lost or has ended, or it is switched off.
        rss_mb: resident memory of the daemon, MB.
        streams: by name.
        shadow: id of the update whose new models run beside those in use; empty: none do.
        reloads: number of reloads since the start, refused ones included; -1: not reported.
        reload_refused: why the newest reload was refused; empty: it was not.
        link: connection to the broker; None: there is none now.
        uptime_s: of the daemon, s.
    """

    version: str = ""
    pid: Count = 0
    boot_id: str = ""
    at_s: float = 0.0
    ready: bool = False
    rss_mb: float = 0.0
    streams: dict[str, StreamReport] = {}
    shadow: str = ""
    reloads: Annotated[int, Meta(ge=-1, le=(1 << 63) - 1)] = -1
    reload_refused: str = ""
    link: LinkHealth | None = None
    uptime_s: float = 0.0


class SpoolHealth(Struct, frozen=True):
    """State of the spool.

    Attributes:
        waiting: events not yet acknowledged.
        bytes: size of these.
        dropped: events dropped undelivered, ever.
        on: `disk`, or `memory` while the disk fails.
        dropped_by: the dropped by reason: `bytes`, limit of the spool; `unsendable`, no broker accepts them.
        first_seq: the first number of this run of the daemon, see `EventMessage`.
    """

    waiting: int
    bytes: int
    dropped: int
    on: str
    dropped_by: dict[str, int] = {}
    first_seq: int = 0


class ClipsHealth(Struct, frozen=True):
    """State of the clips of all streams.

    Attributes:
        saved, failed: since the start.
        deleted: since the start, because they were too old or to make room for newer ones.
        kept, bytes: number and size of the clips on the board's disk.
        trouble: why none can be saved; empty: no reason is known.
        written: bytes written to the disk since the start: flash memory wears by them.
    """

    saved: int
    failed: int
    deleted: int
    kept: int
    bytes: int
    trouble: str = ""
    written: int = 0


class FusionHealth(Struct, frozen=True):
    """State of one fused event.

    Attributes:
        on: True while it goes on.
        events: since it was configured.
        away: streams and texts of its condition that are away now: what they would say is unknown.
    """

    on: bool
    events: int
    away: tuple[str, ...] = ()


class SupplyHealth(Struct, frozen=True):
    """Warnings of the board about its supply and heat.

    Each is `under-voltage`, `throttled`, `the frequency is capped`, or `the soft temperature limit is reached`.

    Attributes:
        now: those that hold now, or have held for a moment in the last ten seconds.
        before: others that held earlier: since the board started on a Raspberry Pi, else since the daemon did.
    """

    now: tuple[str, ...] = ()
    before: tuple[str, ...] = ()


class BatteryHealth(Struct, frozen=True):
    """State of the board's battery.

    Attributes:
        status: `charging`, `discharging`, `not charging`, `full` or `unknown`.
        percent: charge, 0 to 100; None: it does not tell.
    """

    status: str
    percent: int | None = None


class HealthMessage(Struct, frozen=True):
    """`<device>/health`, retained.

    Attributes:
        version: of Vedette.
        at: UTC.
        uptime_s: of the daemon, s.
        streams: by name.
        spool: see `SpoolHealth`.
        rss_mb: resident memory of the daemon, MB.
        temperature_c: of the processor's hottest thermal zone, °C; None: there is none.
        hot: True from `thermal.warn_c` until the temperature is 5 °C below it.
        power_w: power that the board takes, W; None: unknown.
        power_from: sensor that measured it, such as `ina219` or `pmic`; `estimate`: made from the load and
            published figures; empty: unknown.
        supply: see `SupplyHealth`; None: the board gives no warnings, or they are unknown.
        battery: see `BatteryHealth`; None: there is none, or it is unknown.
        link: see `LinkHealth`; None: there was no connection when this was written.
        waits_for_restart: keys, such as `storage.state_dir`, that were changed in the file and need a restart.
        clips: see `ClipsHealth`; None: no stream makes any.
        homeassistant: why Home Assistant does not find this device; empty: no reason is known.
        commands_off: why no commands are accepted from the broker; empty: they are.
        state_folder: what happened to the state folder while the daemon ran, or that changes by commands are not
            written to it yet; empty: nothing.
        fusion: fused events by name.
        texts_refused: texts that were refused since the start, by name of the input; without those of none.
        cpu: share of all processors that any program used over the last interval, 0..1; None: not known.
        memory_available_mb: memory that programs can still get without swapping, MB; None: not known.
        metrics: why the metrics are not served as configured; empty: they are, or none are wanted.
        page: why the page is not served as configured; empty: it is, or none is wanted.
        unmet: why the board stays too hot, or its supply too weak, though all have given way; empty: neither.
    """

    version: str
    at: datetime
    uptime_s: float
    streams: dict[str, StreamHealth]
    spool: SpoolHealth
    rss_mb: float
    temperature_c: float | None = None
    hot: bool = False
    power_w: float | None = None
    power_from: str = ""
    supply: SupplyHealth | None = None
    battery: BatteryHealth | None = None
    link: LinkHealth | None = None
    waits_for_restart: tuple[str, ...] = ()
    clips: ClipsHealth | None = None
    homeassistant: str = ""
    commands_off: str = ""
    state_folder: str = ""
    fusion: dict[str, FusionHealth] = {}
    texts_refused: dict[str, int] = {}
    cpu: float | None = None
    memory_available_mb: int | None = None
    metrics: str = ""
    page: str = ""
    unmet: str = ""
