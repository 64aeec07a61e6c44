"""Write readings in the format that Prometheus asks for, by its client library (the extra `[metrics]`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from agent.comms.http import Page
from agent.daemon.streams.counters import BOUNDS_S, StageTimer
from agent.errors import NotInstalledError
from agent.features.metrics.definitions import METRICS, Labelled, MetricDefinition
from agent.features.metrics.readings import DaemonReadings

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric


def check_installed() -> None:
    """Raise NotInstalledError, with the command, if the client library is not installed."""
    try:
        import prometheus_client  # noqa: F401 - whether it can be imported
    except ImportError:
        text = "[metrics] needs a package that is not installed: pip install 'vedette[metrics]'"
        raise NotInstalledError(text, keys=("metrics",)) from None


class Exposition:
    """Makes the page of one daemon, from readings made for each scrape.

    Raises:
        NotInstalledError: the client library is not installed.
    """

    def __init__(
        self, read: Callable[[], DaemonReadings], definitions: Iterable[MetricDefinition] = METRICS
    ) -> None:
        check_installed()
        from prometheus_client import CollectorRegistry, ProcessCollector

        self._read, self._definitions = read, tuple(definitions)
        self._registry: CollectorRegistry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def page(self, accept: str) -> Page:
        """Return the metrics now, as text or as OpenMetrics, whichever an `Accept` header prefers."""
        from prometheus_client.exposition import choose_encoder

        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # the library does not expect every header
            encode, content_type = choose_encoder("")
        return Page(content_type, encode(self._registry))

    def describe(self) -> Iterator[Metric]:
        """Name the metrics without reading them; the library asks for this when they are registered."""
        for one in self._definitions:
            yield _family(one)

    def collect(self) -> Iterator[Metric]:
        """Read everything, and return the samples of each metric."""
        readings = self._read()
        for one in self._definitions:
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
