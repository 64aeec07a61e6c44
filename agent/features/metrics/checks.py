"""What is wrong with `[metrics]`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from agent.comms.http import read_access
from agent.config import Config
from agent.errors import ConfigError, NotInstalledError
from agent.models.findings import ModelReader


def device_problems(config: Config, _: ModelReader) -> Iterator[ConfigError]:
    """Yield what keeps metrics from being served."""
    if config.metrics is not None:
        for check in (partial(read_access, config.metrics), check_installed):
            try:
                check()
            except ConfigError as error:
                yield error


def check_installed() -> None:
    """Raise NotInstalledError, with the command, if the client library is not installed."""
    try:
        import prometheus_client  # noqa: F401 - whether it can be imported
    except ImportError:
        text = "[metrics] needs a package that is not installed: pip install 'vedette[metrics]'"
        raise NotInstalledError(text, keys=("metrics",)) from None
