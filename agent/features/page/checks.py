"""What is wrong with `[page]`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from agent.comms.http import read_access
from agent.config import Config
from agent.errors import ConfigError
from agent.models.findings import ModelReader


def device_problems(config: Config, _: ModelReader) -> Iterator[ConfigError]:
    """Yield what keeps the page from being served."""
    page, metrics = config.page, config.metrics
    if page is None:
        return
    try:
        read_access(page)
    except ConfigError as error:
        yield error
    with suppress(ConfigError):  # of an address that is none, which is told with its own table
        if metrics is not None and metrics.address[1] == page.address[1]:
            yield page.wrong("listen", f"= {page.listen!r}: [metrics] has this port; choose another")
