"""The metrics of a daemon: what serves them is loaded when they are first wanted."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from agent.config.http import MetricsConfig
from agent.daemon.metrics.readings import DaemonReadings
from agent.errors import ConfigError

if TYPE_CHECKING:
    from agent.daemon.web.endpoint import HttpEndpoint

log = logging.getLogger(__name__)


class MetricsService:
    """Serves metrics while they are configured. For the daemon's thread; `read` is called in others."""

    def __init__(self, read: Callable[[], DaemonReadings], device: str) -> None:
        """Serve nothing before `configure`; `device` is its name."""
        self._read, self._device = read, device
        self._exporter: HttpEndpoint | None = None
        self._missing = ""

    @property
    def trouble(self) -> str:
        """Why the metrics are not served as configured; empty: they are, or none are wanted."""
        return self._missing or (self._exporter.trouble if self._exporter is not None else "")

    def configure(self, config: MetricsConfig | None) -> None:
        """Serve as a configuration says that has been checked; None: nothing. A daemon runs without them, too."""
        before, self._missing = self._missing, ""
        if config is not None and self._exporter is None:
            try:
                self._exporter = self._open()
            except ConfigError as error:
                self._missing = str(error)
                if self._missing != before:
                    log.error("%s", self._missing)
                return
        if self._exporter is not None:
            self._exporter.configure(config)

    def _open(self) -> HttpEndpoint:
        from agent.comms.http.server import one_page
        from agent.daemon.metrics.exposition import Exposition
        from agent.daemon.web.endpoint import HttpEndpoint

        return HttpEndpoint("metrics", one_page(MetricsConfig.PATH, Exposition(self._read).page), self._device)

    def poll(self) -> None:
        """Try again to listen if that is due."""
        if self._exporter is not None:
            self._exporter.poll()

    def close(self) -> None:
        """Stop serving."""
        if self._exporter is not None:
            self._exporter.close()
