"""The page of a daemon's clips."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.comms.http import HttpEndpoint
from agent.config import Config
from agent.daemon.parts import DevicePart
from agent.features.page.clips_page import ClipsPage

if TYPE_CHECKING:
    from agent.daemon.runtime import Runtime


class PagePart(DevicePart):
    """Serves the page while it is configured."""

    def __init__(self, runtime: Runtime) -> None:
        """Serve nothing before `start`."""
        self._runtime, device = runtime, runtime.topics.device
        self._endpoint = HttpEndpoint("page", ClipsPage(runtime.clips_folder, device).respond, device)

    @property
    def trouble(self) -> str:
        return self._endpoint.trouble

    def start(self) -> None:
        self.configure(self._runtime.config)

    def configure(self, config: Config) -> None:
        self._endpoint.configure(config.page)

    def poll(self) -> None:
        self._endpoint.poll()

    def health(self) -> dict[str, Any]:
        return {"page": self.trouble}

    def close(self, seconds: float) -> None:
        self._endpoint.close()


def open_device_part(runtime: Runtime) -> PagePart:
    """Serve the page as the configuration says."""
    return PagePart(runtime)
