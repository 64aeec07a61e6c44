"""The metrics of a daemon: what is read for each scrape, as a table, and the page that Prometheus asks for.

To add a metric, add a row to `METRICS`; what it reads is in `DaemonReadings`. Names follow the conventions of
Prometheus: base units, and `_total` for what only grows. Every label has few values: names of streams, stages,
states and reasons, and at most 65 labels of events a stream. Each sample also gets the label `device`. The client
library (the extra `[metrics]`) writes the format.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, get_args

from msgspec import Struct

from agent import __version__
from agent.board.power import PowerReading
from agent.board.proc import Memory, read_memory
from agent.board.processors import Ticks, read_ticks
from agent.comms.http import Answer, HttpRequest, text_answer
from agent.comms.mqtt.link import LinkState
from agent.config.servers import MetricsConfig
from agent.daemon.streams.counters import BOUNDS_S, StageTimer
from agent.daemon.streams.services import State
from agent.features.metrics.checks import check_installed
from agent.storage.spool.pending import Reason
from agent.storage.spool.spool import SpoolStats
from agent.text import plain

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from agent.daemon.runtime import Runtime
    from agent.daemon.streams.stream import Stream
    from agent.health import ClipsHealth


class DaemonReadings(Struct, frozen=True):
    """Everything at a scrape.

    Attributes:
        device: name of the device.
        uptime_s: of the daemon, s.
        streams: by name.
        cpu_s: processor time of the threads of each stream, s.
        spool: the event queue.
        link: connection to the broker.
        clips: of all streams; None: no stream makes any.
        temperature_c: of the hottest zone, °C; None: not known.
        hot: see `agent.health.HealthMessage`.
        unmet: True if the board cannot be kept below its limits, see `agent.health.HealthMessage`.
        cpu: time of the board's processors; zeros: not known.
        memory: of the board.
        power: that the board takes; None: not known.
    """

    device: str
    uptime_s: float
    streams: dict[str, Stream]
    cpu_s: dict[str, float]
    spool: SpoolStats
    link: LinkState
    clips: ClipsHealth | None
    temperature_c: float | None
    hot: bool
    unmet: bool
    cpu: Ticks
    memory: Memory
    power: PowerReading | None = None


def read_all(runtime: Runtime) -> DaemonReadings:
    """Read everything. Any thread may call this."""
    streams, board, health = dict(runtime.streams), runtime.board, runtime.parts.health()
    return DaemonReadings(
        device=runtime.topics.device,
        uptime_s=time.monotonic() - runtime.began_s,
        streams=streams,
        cpu_s=board.load.stream_seconds(set(streams)),
        spool=runtime.spool.stats(),
        link=runtime.mqtt.state,
        clips=health.get("clips"),
        temperature_c=board.heat.celsius,
        hot=board.heat.hot,
        unmet=bool(health.get("unmet")),
        cpu=read_ticks(),
        memory=read_memory(),
        power=board.power.power,
    )


_MB = 1 << 20
Value = float | StageTimer
Labelled = tuple[Sequence[str], Value]
"""Values of the labels, and of the sample; a `StageTimer` is a histogram in seconds."""


Reader = Callable[[DaemonReadings], Iterable[Labelled]]


class MetricDefinition(Struct, frozen=True):
    """One metric.

    Attributes:
        name: with the suffix `_total` of a counter.
        help: one line.
        read: returns the samples.
        labels: names of its labels besides `device`.
    """

    name: str
    help: str
    read: Reader
    labels: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Kind of the metric, as Prometheus calls it."""
        if self.name.endswith("_total"):
            return "counter"
        return "histogram" if self.name.endswith("_stage_seconds") else "gauge"


def _device(name: str, text: str, value: Callable[[DaemonReadings], Value | None]) -> MetricDefinition:
    """Return a metric of one sample; None: there is none now."""

    def read(readings: DaemonReadings) -> Iterator[Labelled]:
        if (found := value(readings)) is not None:
            yield (), found

    return MetricDefinition(f"vedette_{name}", text, read)


def _stream(name: str, text: str, value: Callable[[Stream], Value | None]) -> MetricDefinition:
    """Return a metric of one sample a stream; None: the stream has none now."""

    def read(readings: DaemonReadings) -> Iterator[Labelled]:
        for name, stream in readings.streams.items():
            if (found := value(stream)) is not None:
                yield (name,), found

    return MetricDefinition(f"vedette_stream_{name}", text, read, ("stream",))


def _capture(name: str, text: str, key: str) -> MetricDefinition:
    return _stream(name, text, lambda s: None if (c := s.captured) is None else float(getattr(c, key)))


def _clips(name: str, text: str, key: str) -> MetricDefinition:
    return _device(name, text, lambda r: None if r.clips is None else float(getattr(r.clips, key)))


def _states(readings: DaemonReadings) -> Iterator[Labelled]:
    for name, stream in readings.streams.items():
        for state in get_args(State):
            yield (name, state), float(stream.status[0] == state)


def _models(readings: DaemonReadings) -> Iterator[Labelled]:
    for name, stream in readings.streams.items():
        yield (name, stream.model.manifest.name if stream.model else "", *stream.answered_by), 1.0


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


METRICS: tuple[MetricDefinition, ...] = (
    MetricDefinition(
        "vedette_build_info",
        "Versions of Vedette and of Python; always 1.",
        lambda _: [((__version__, platform.python_version()), 1.0)],
        ("version", "python"),
    ),
    _device("uptime_seconds", "Age of the daemon.", lambda r: r.uptime_s),
    # Streams
    MetricDefinition(
        "vedette_stream_info",
        "Model of a stream, and the backend and variant that gave its newest answer; always 1.",
        _models,
        ("stream", "model", "backend", "variant"),
    ),
    MetricDefinition(
        "vedette_stream_state", "1 for the state that the stream is in.", _states, ("stream", "state")
    ),
    _capture("captured_total", "Pictures, or samples of sound, that the source has given.", "frames"),
    _capture(
        "dropped_total", "Pictures that a newer one replaced, or samples of sound that were lost.", "dropped"
    ),
    _capture("reopened_total", "Times that the source came back after it was opened again.", "reopened"),
    _stream("frames_total", "Pictures, or chunks of sound, that were handled.", lambda s: s.metrics.frames),
    _stream(
        "gated_frames_total",
        "Of the handled ones, those for which the gate was closed, so that the model did not run.",
        lambda s: s.metrics.gated,
    ),
    _stream(
        "predicted_frames_total",
        "Of the handled ones, those that were not inferred although the gate was open, by the governor.",
        lambda s: s.metrics.predicted,
    ),
    _stream("reduced", "1 while the governor gives the stream less than everything.", lambda s: bool(s.reduced)),
    _stream("unmet", "1 while a promise of the stream's service is not kept.", lambda s: bool(s.unmet)),
    _stream("inferences_total", "Inferences.", lambda s: s.metrics.inferences),
    _stream("tracks", "Tracks that are alive.", lambda s: s.tracks),
    MetricDefinition("vedette_stream_events_total", "Published events.", _events, ("stream", "label", "kind")),
    MetricDefinition(
        "vedette_stream_stage_seconds",
        "Time of each stage of an input; publish: from the event queue to the broker.",
        _stages,
        ("stream", "stage"),
    ),
    MetricDefinition(
        "vedette_stream_cpu_seconds_total",
        "Processor time of the stream's own threads, without those of the model's runtime.",
        lambda r: [((name,), r.cpu_s.get(name, 0.0)) for name in r.streams],
        ("stream",),
    ),
    # Delivery
    _device("spool_events", "Events not yet acknowledged.", lambda r: r.spool.waiting),
    _device("spool_bytes", "Size of these.", lambda r: r.spool.bytes),
    MetricDefinition("vedette_spool_dropped_total", "Events dropped undelivered, ever.", _dropped, ("reason",)),
    _device("spool_on_disk", "1 if new events go to the disk, 0 while it fails.", lambda r: r.spool.on == "disk"),
    _device("broker_connected", "1 while a broker has accepted the connection.", lambda r: r.link.connected),
    _device(
        "broker_connections_total",
        "Times that a broker has accepted the connection.",
        lambda r: r.link.connects,
    ),
    _device("broker_sent_total", "Events sent.", lambda r: r.link.sent),
    _device(
        "broker_acknowledged_total", "Events that the broker has acknowledged.", lambda r: r.link.acknowledged
    ),
    _device(
        "broker_dropped_samples_total",
        "Messages at QoS 0 that were not sent.",
        lambda r: r.link.dropped_samples,
    ),
    _clips("clips_saved_total", "Saved clips.", "saved"),
    _clips("clips_failed_total", "Clips that could not be saved.", "failed"),
    _clips("clips_deleted_total", "Clips deleted for age or for room.", "deleted"),
    _clips("clips", "Clips on the disk.", "kept"),
    _clips("clips_bytes", "Size of these.", "bytes"),
    _clips("clips_written_bytes_total", "Bytes of clips written to the disk.", "written"),
    # The board
    _device("board_temperature_celsius", "Temperature of the hottest thermal zone.", lambda r: r.temperature_c),
    MetricDefinition(
        "vedette_board_power_watts",
        "Power that the board takes; the source estimate is not measured.",
        _power,
        ("source",),
    ),
    _device("board_hot", "1 while the board is hotter than thermal.warn_c.", lambda r: r.hot),
    _device(
        "board_unmet",
        "1 while the board is too hot, or its supply too weak, and no stream can give way any more.",
        lambda r: r.unmet,
    ),
    MetricDefinition("vedette_board_cpu_seconds_total", "Time of all processors together.", _cpu, ("mode",)),
    _device(
        "board_memory_available_bytes",
        "Memory that programs can still get without swapping.",
        lambda r: r.memory.available_mb * _MB or None,
    ),
    _device("board_memory_bytes", "Memory.", lambda r: r.memory.total_mb * _MB or None),
)
"""All metrics. Those of the process, such as `process_resident_memory_bytes`, are of the client library."""


class Exposition:
    """Makes the page of one daemon, from readings made for each scrape.

    Raises:
        NotInstalledError: the client library is not installed.
    """

    def __init__(self, read: Callable[[], DaemonReadings]) -> None:
        check_installed()
        from prometheus_client import CollectorRegistry, ProcessCollector

        self._read, self._registry = read, CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def respond(self, request: HttpRequest) -> Answer:
        """Answer with the metrics now, as text or as OpenMetrics, whichever the `Accept` header prefers."""
        from prometheus_client.exposition import choose_encoder

        if request.path.partition("?")[0] != MetricsConfig.PATH:
            return text_answer(404, f"there is only {MetricsConfig.PATH} here")
        try:
            encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        except (TypeError, ValueError):  # the library does not expect every header
            encode, content_type = choose_encoder("")
        return Answer(encode(self._registry), content_type)

    def describe(self) -> Iterator[Metric]:
        """Name the metrics without reading them; the library asks for this when they are registered."""
        for one in METRICS:
            yield _family(one)

    def collect(self) -> Iterator[Metric]:
        """Read everything, and return the samples of each metric."""
        readings = self._read()
        for one in METRICS:
            family = _family(one)
            for sample in one.read(readings):
                _add(family, one, readings.device, sample)
            if family.samples:
                yield family


def _family(one: MetricDefinition) -> Metric:
    from prometheus_client.metrics_core import Metric

    return Metric(one.name.removesuffix("_total"), one.help, one.kind)


def _add(family: Metric, one: MetricDefinition, device: str, sample: Labelled) -> None:
    labels = dict(zip(("device", *one.labels), (device, *sample[0]), strict=True))
    value = sample[1]
    if isinstance(value, StageTimer):
        _add_histogram(family, one.name, labels, value)
    else:
        family.add_sample(one.name, labels, float(value))


def _add_histogram(family: Metric, name: str, labels: dict[str, str], timer: StageTimer) -> None:
    totals = list(accumulate(timer.counts))
    for bound, total in zip((*map(str, BOUNDS_S), "+Inf"), totals, strict=True):
        family.add_sample(f"{name}_bucket", {**labels, "le": bound}, float(total))
    family.add_sample(f"{name}_count", labels, float(totals[-1]))
    family.add_sample(f"{name}_sum", labels, timer.sum_ns / 1e9)
