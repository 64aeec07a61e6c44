"""What is wrong with `[page]`."""

from __future__ import annotations

from collections.abc import Iterator

from agent.comms.http import check_served
from agent.config import Config
from agent.errors import ConfigError
from agent.models.findings import ModelReader


def device_problems(config: Config, _: ModelReader) -> Iterator[ConfigError]:
    """Yield what keeps the page from being served."""
    for check in (_check_page, _check_port):
        try:
            check(config)
        except ConfigError as error:
            yield error


def _check_page(config: Config) -> None:
    check_served(config.page)


def _check_port(config: Config) -> None:
    """Refuse the port of another table. Raises ConfigError."""
    metrics, page = config.metrics, config.page
    if metrics is not None and page is not None and metrics.address[1] == page.address[1]:
        raise page.wrong("listen", f"= {page.listen!r}: [metrics] has this port; choose another")
