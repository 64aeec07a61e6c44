"""The daemon's health: `health.json`, and the parts of it that the MQTT health message holds too.

The daemon writes `health.json`; the updater, the fleet and `vedette doctor` read it. Other versions may write
other fields: unknown ones are ignored, missing ones get their defaults. A field never changes its type.
"""

from __future__ import annotations

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
        fallback: True if that is not the first of the configuration.
        connects: how often a broker has accepted a connection, since the start.
        trouble: where and why the connection was lost last, such as a second client with this id; empty: never.
    """

    broker: str
    how: str
    fallback: bool = False
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
