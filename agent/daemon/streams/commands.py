"""What of a stream exists only while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct

if TYPE_CHECKING:
    from agent.daemon.streams.pipeline import Input, Pipeline

AT_WORK = ("running", "degraded")
"""States in which pictures or sound are handled."""


class StreamRun(Struct):
    """Source and pipeline of a run; None: it does not run."""

    pipeline: Pipeline[Any] | None = None
    source: Input | None = None
