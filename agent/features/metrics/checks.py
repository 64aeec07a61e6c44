"""What is wrong with `[metrics]`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from agent.comms.http import check_served
from agent.config import Config
from agent.errors import ConfigError
from agent.features.metrics.exposition import check_installed
from agent.models.findings import ModelReader


def device_problems(config: Config, _: ModelReader) -> Iterator[ConfigError]:
    """Yield what keeps metrics from being served."""
    for check in (partial(check_served, config.metrics), check_installed):
        try:
            check()
        except ConfigError as error:
            yield error
