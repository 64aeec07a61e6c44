"""The metrics of a daemon, and traces: what serves and records them is loaded when it is first wanted."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from agent.config import Config
from agent.config.http import MetricsConfig
from agent.daemon.parts import Asked, DevicePart, Reply
from agent.errors import NotInstalledError
from agent.features.metrics.trace import TraceRecording

if TYPE_CHECKING:
    from agent.comms.http import HttpEndpoint
    from agent.daemon.runtime import Runtime

log = logging.getLogger(__name__)


class MetricsPart(DevicePart):
    """Serves metrics while they are configured, and records traces, with and without them."""

    def __init__(self, runtime: Runtime) -> None:
        """Serve nothing before `start`."""
        self._runtime, self._trace = runtime, TraceRecording(runtime.topics.device)
        self._endpoint: HttpEndpoint | None = None
        self._missing = ""

    @property
    def trouble(self) -> str:
        return self._missing or (self._endpoint.trouble if self._endpoint is not None else "")

    def start(self) -> None:
        self.configure(self._runtime.config)

    def configure(self, config: Config) -> None:
        """Serve as a configuration says that has been checked. A daemon runs without the client library, too."""
        before, self._missing = self._missing, ""
        if config.metrics is not None and self._endpoint is None:
            try:
                self._endpoint = self._open()
            except NotInstalledError as error:
                self._missing = str(error)
                if self._missing != before:
                    log.error("%s", self._missing)
                return
        if self._endpoint is not None:
            self._endpoint.configure(config.metrics)

    def _open(self) -> HttpEndpoint:
        from agent.comms.http import HttpEndpoint, one_page
        from agent.features.metrics.exposition import Exposition
        from agent.features.metrics.readings import read_all

        page = Exposition(partial(read_all, self._runtime)).page
        return HttpEndpoint("metrics", one_page(MetricsConfig.PATH, page), self._runtime.topics.device)

    def poll(self) -> None:
        if self._endpoint is not None:
            self._endpoint.poll()

    def health(self) -> dict[str, Any]:
        return {"metrics": self.trouble}

    def close(self, seconds: float) -> None:
        """Stop serving, and end a running trace without an answer."""
        self._trace.stop()
        if self._endpoint is not None:
            self._endpoint.close()

    def trace(self, asked: Asked) -> Reply | None:
        """Begin a trace, which is answered at its end, or end the running one. Raises CommandError."""
        seconds = asked.command.seconds
        if not seconds:
            return "" if self._trace.end() else "no trace is being recorded", {}
        self._trace.start(seconds, self._runtime.mqtt.max_packet, asked.answer)
        log.info("command: trace for %g s", seconds)
        return None


def open_device_part(runtime: Runtime) -> MetricsPart:
    """Serve metrics as the configuration says."""
    return MetricsPart(runtime)


def trace(asked: Asked) -> Reply | None:
    """Record a trace, also by a daemon that serves no metrics."""
    assert asked.device is not None
    reply: Reply | None = asked.device.open_part("metrics").trace(asked)
    return reply
