"""Something that is called from a thread that must not end with it."""

from __future__ import annotations

import logging
from collections.abc import Callable

log = logging.getLogger(__name__)


class Hook:
    """At most one function. May be exchanged by any thread."""

    def __init__(self) -> None:
        self._function: Callable[[], None] | None = None

    def set(self, function: Callable[[], None] | None) -> None:
        """Call this one from now on, or none."""
        self._function = function

    def call(self) -> None:
        """Call it. That it fails is told and does no harm."""
        if (function := self._function) is not None:
            try:
                function()
            except Exception:
                log.exception("spool: the hook failed")
