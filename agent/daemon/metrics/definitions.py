"""The metrics, as a table: name, kind, help, labels, and how the samples are read.

To add one, add a row to `METRICS`; what it reads is in `DaemonReadings`. Names follow Prometheus' conventions:
base units, and `_total` for what only grows. Every label has few values: names of streams, stages, states and
reasons, and at most 65 labels of events a stream. Each sample also gets the label `device`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, get_args

from msgspec import Struct

from agent.daemon.metrics.readings import DaemonReadings, StreamTotals
from agent.daemon.streams.counters import StageTimer
from agent.daemon.streams.services import State
from agent.storage.spool.pending import Reason
from agent.text import plain

_MB = 1 << 20
Value = float | StageTimer
Labelled = tuple[Sequence[str], Value]
"""Values of the labels, and of the sample; a `StageTimer` is a histogram in seconds."""


class MetricDefinition(Struct, frozen=True):
    """One metric.

    Attributes:
        name: with the suffix `_total` of a counter.
        kind: of the metric.
        help: one line.
        labels: names of its labels besides `device`.
        read: returns the samples.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...]
    read: Callable[[DaemonReadings], Iterable[Labelled]]


Reader = Callable[[DaemonReadings], Iterable[Labelled]]


def _one(value: Callable[[DaemonReadings], Value | None]) -> Reader:
    """Return a reader of one sample without labels; None: there is none now."""

    def read(readings: DaemonReadings) -> Iterator[Labelled]:
        if (found := value(readings)) is not None:
            yield (), found

    return read


def _each(value: Callable[[StreamTotals], Value | None]) -> Reader:
    """Return a reader of one sample a stream; None: the stream has none now."""

    def read(readings: DaemonReadings) -> Iterator[Labelled]:
        for name, stream in readings.streams.items():
            if (found := value(stream)) is not None:
                yield (name,), found

    return read


def _capture(key: str) -> Reader:
    return _each(lambda s: None if s.capture is None else float(getattr(s.capture, key)))


def _clips(key: str) -> Reader:
    return _one(lambda r: None if r.clips is None else float(getattr(r.clips, key)))


def _states(readings: DaemonReadings) -> Iterator[Labelled]:
    for name, stream in readings.streams.items():
        for state in get_args(State):
            yield (name, state), float(stream.state == state)


def _models(readings: DaemonReadings) -> Iterator[Labelled]:
    for name, stream in readings.streams.items():
        yield (name, stream.model, stream.backend, stream.variant), 1.0


def _stages(readings: DaemonReadings) -> Iterator[Labelled]:
    for name, stream in readings.streams.items():
        for stage, timer in stream.metrics.stages.items():
            if any(timer.counts):
                yield (name, stage), timer


def _events(readings: DaemonReadings) -> Iterator[Labelled]:
    totals: Counter[tuple[str, str, str]] = Counter()  # labels that differ may look alike as plain text
    for name, stream in readings.streams.items():
        for (label, kind), count in stream.metrics.events.all().items():
            totals[name, plain(label), kind] += count
    yield from totals.items()


def _dropped(readings: DaemonReadings) -> Iterator[Labelled]:
    for reason in get_args(Reason):
        yield (reason,), readings.spool.dropped_by.get(reason, 0)


def _cpu(readings: DaemonReadings) -> Iterator[Labelled]:
    if (cpu := readings.cpu).total:
        yield ("busy",), cpu.total - cpu.idle
        yield ("idle",), cpu.idle


def _power(readings: DaemonReadings) -> Iterator[Labelled]:
    if (power := readings.power) is not None:
        yield (power.source,), power.watts


_STREAM = ("stream",)
METRICS: tuple[MetricDefinition, ...] = (
    MetricDefinition(
        "vedette_build_info",
        "gauge",
        "Versions of Vedette and of Python; always 1.",
        ("version", "python"),
        lambda r: [((r.version, r.python), 1.0)],
    ),
    MetricDefinition("vedette_uptime_seconds", "gauge", "Age of the daemon.", (), _one(lambda r: r.uptime_s)),
    # Streams
    MetricDefinition(
        "vedette_stream_info",
        "gauge",
        "Model of a stream, and the backend and variant that gave its newest answer; always 1.",
        ("stream", "model", "backend", "variant"),
        _models,
    ),
    MetricDefinition(
        "vedette_stream_state", "gauge", "1 for the state that the stream is in.", ("stream", "state"), _states
    ),
    MetricDefinition(
        "vedette_stream_captured_total",
        "counter",
        "Pictures, or samples of sound, that the source has given.",
        _STREAM,
        _capture("frames"),
    ),
    MetricDefinition(
        "vedette_stream_dropped_total",
        "counter",
        "Pictures that a newer one replaced, or samples of sound that were lost.",
        _STREAM,
        _capture("dropped"),
    ),
    MetricDefinition(
        "vedette_stream_reopened_total",
        "counter",
        "Times that the source came back after it was opened again.",
        _STREAM,
        _capture("reopened"),
    ),
    MetricDefinition(
        "vedette_stream_frames_total",
        "counter",
        "Pictures, or chunks of sound, that were handled.",
        _STREAM,
        _each(lambda s: s.metrics.frames),
    ),
    MetricDefinition(
        "vedette_stream_gated_frames_total",
        "counter",
        "Of the handled ones, those for which the gate was closed, so that the model did not run.",
        _STREAM,
        _each(lambda s: s.metrics.gated),
    ),
    MetricDefinition(
        "vedette_stream_predicted_frames_total",
        "counter",
        "Of the handled ones, those that were not inferred although the gate was open, by the governor.",
        _STREAM,
        _each(lambda s: s.metrics.predicted),
    ),
    MetricDefinition(
        "vedette_stream_reduced",
        "gauge",
        "1 while the governor gives the stream less than everything.",
        _STREAM,
        _each(lambda s: s.reduced),
    ),
    MetricDefinition(
        "vedette_stream_unmet",
        "gauge",
        "1 while a promise of the stream's service is not kept.",
        _STREAM,
        _each(lambda s: s.unmet),
    ),
    MetricDefinition(
        "vedette_stream_inferences_total",
        "counter",
        "Inferences.",
        _STREAM,
        _each(lambda s: s.metrics.inferences),
    ),
    MetricDefinition(
        "vedette_stream_tracks", "gauge", "Tracks that are alive.", _STREAM, _each(lambda s: s.tracks)
    ),
    MetricDefinition(
        "vedette_stream_events_total",
        "counter",
        "Published events.",
        ("stream", "label", "kind"),
        _events,
    ),
    MetricDefinition(
        "vedette_stream_stage_seconds",
        "histogram",
        "Time of each stage of an input; publish: from the event queue to the broker.",
        ("stream", "stage"),
        _stages,
    ),
    MetricDefinition(
        "vedette_stream_cpu_seconds_total",
        "counter",
        "Processor time of the stream's own threads, without those of the model's runtime.",
        _STREAM,
        _each(lambda s: s.cpu_s),
    ),
    # Delivery
    MetricDefinition(
        "vedette_spool_events", "gauge", "Events not yet acknowledged.", (), _one(lambda r: r.spool.waiting)
    ),
    MetricDefinition("vedette_spool_bytes", "gauge", "Size of these.", (), _one(lambda r: r.spool.bytes)),
    MetricDefinition(
        "vedette_spool_dropped_total", "counter", "Events dropped undelivered, ever.", ("reason",), _dropped
    ),
    MetricDefinition(
        "vedette_spool_on_disk",
        "gauge",
        "1 if new events go to the disk, 0 while it fails.",
        (),
        _one(lambda r: r.spool.on == "disk"),
    ),
    MetricDefinition(
        "vedette_broker_connected",
        "gauge",
        "1 while a broker has accepted the connection.",
        (),
        _one(lambda r: r.link.connected),
    ),
    MetricDefinition(
        "vedette_broker_fallback",
        "gauge",
        "1 if the broker that is used or tried is not the first.",
        (),
        _one(lambda r: r.link.is_fallback),
    ),
    MetricDefinition(
        "vedette_broker_connections_total",
        "counter",
        "Times that a broker has accepted the connection.",
        (),
        _one(lambda r: r.link.connects),
    ),
    MetricDefinition("vedette_broker_sent_total", "counter", "Events sent.", (), _one(lambda r: r.link.sent)),
    MetricDefinition(
        "vedette_broker_acknowledged_total",
        "counter",
        "Events that the broker has acknowledged.",
        (),
        _one(lambda r: r.link.acknowledged),
    ),
    MetricDefinition(
        "vedette_broker_dropped_samples_total",
        "counter",
        "Messages at QoS 0 that were not sent.",
        (),
        _one(lambda r: r.link.dropped_samples),
    ),
    MetricDefinition("vedette_clips_saved_total", "counter", "Saved clips.", (), _clips("saved")),
    MetricDefinition(
        "vedette_clips_failed_total",
        "counter",
        "Clips that could not be saved.",
        (),
        _clips("failed"),
    ),
    MetricDefinition(
        "vedette_clips_deleted_total",
        "counter",
        "Clips deleted for age or for room.",
        (),
        _clips("deleted"),
    ),
    MetricDefinition("vedette_clips", "gauge", "Clips on the disk.", (), _clips("kept")),
    MetricDefinition("vedette_clips_bytes", "gauge", "Size of these.", (), _clips("bytes")),
    MetricDefinition(
        "vedette_clips_written_bytes_total",
        "counter",
        "Bytes of clips written to the disk.",
        (),
        _clips("written"),
    ),
    # The board
    MetricDefinition(
        "vedette_board_temperature_celsius",
        "gauge",
        "Temperature of the hottest thermal zone.",
        (),
        _one(lambda r: r.temperature_c),
    ),
    MetricDefinition(
        "vedette_board_power_watts",
        "gauge",
        "Power that the board takes; the source estimate is not measured.",
        ("source",),
        _power,
    ),
    MetricDefinition(
        "vedette_board_hot",
        "gauge",
        "1 while the board is hotter than thermal.warn_c.",
        (),
        _one(lambda r: r.hot),
    ),
    MetricDefinition(
        "vedette_board_unmet",
        "gauge",
        "1 while the board is too hot, or its supply too weak, and no stream can give way any more.",
        (),
        _one(lambda r: r.unmet),
    ),
    MetricDefinition(
        "vedette_board_cpu_seconds_total", "counter", "Time of all processors together.", ("mode",), _cpu
    ),
    MetricDefinition(
        "vedette_board_memory_available_bytes",
        "gauge",
        "Memory that programs can still get without swapping.",
        (),
        _one(lambda r: r.memory.available_mb * _MB or None),
    ),
    MetricDefinition(
        "vedette_board_memory_bytes", "gauge", "Memory.", (), _one(lambda r: r.memory.total_mb * _MB or None)
    ),
)
"""All metrics. Those of the process, such as `process_resident_memory_bytes`, are of the client library."""
