"""The page of a daemon's clips: what serves it is loaded when it is first wanted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from agent.config.http import PageConfig

if TYPE_CHECKING:
    from agent.daemon.web.endpoint import HttpEndpoint


class PageService:
    """Serves the page while it is configured. For the daemon's thread."""

    def __init__(self, clips: Path, device: str) -> None:
        """Serve nothing before `configure`; `clips` is the folder of all clips, `device` the device's name."""
        self._clips, self._device = clips, device
        self._endpoint: HttpEndpoint | None = None

    @property
    def trouble(self) -> str:
        """Why the page is not served as configured; empty: it is, or none is wanted."""
        return "" if self._endpoint is None else self._endpoint.trouble

    def configure(self, config: PageConfig | None) -> None:
        """Serve as a configuration says that has been checked; None: nothing."""
        if config is not None and self._endpoint is None:
            from agent.daemon.web.clips_page import ClipsPage
            from agent.daemon.web.endpoint import HttpEndpoint

            self._endpoint = HttpEndpoint("page", ClipsPage(self._clips, self._device).respond, self._device)
        if self._endpoint is not None:
            self._endpoint.configure(config)

    def poll(self) -> None:
        """Try again to listen if that is due."""
        if self._endpoint is not None:
            self._endpoint.poll()

    def close(self) -> None:
        """Stop serving."""
        if self._endpoint is not None:
            self._endpoint.close()
