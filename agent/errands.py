"""Errands: what a stream's thread is asked to do between two inputs."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from agent.config import StreamConfig
from agent.corridor import Corridor

if TYPE_CHECKING:
    from agent.senses import Sense


class Errands:
    """Of one stream. They are asked for by any thread, and run in the stream's own."""

    def __init__(self) -> None:
        self._configs: deque[StreamConfig] = deque()
        self._snapshot = False

    def configure(self, config: StreamConfig) -> None:
        """Take a configuration that the sense can take, see `agent.compute.vision.Vision.configure`."""
        self._configs.append(config)

    def snapshot(self) -> None:
        """Publish the next picture."""
        self._snapshot = True

    def run(self, sense: Sense, corridor: Corridor[Any]) -> None:
        """Run what is asked for.

        Raises:
            ModelError: the configuration cannot be taken.
        """
        while self._configs:
            sense.configure(self._configs.popleft())
        if self._snapshot:
            self._snapshot = False
            corridor.ask_snapshot()
