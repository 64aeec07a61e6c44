"""File descriptor 2 belongs to the whole process, and native libraries write to it as they please.

Modules that redirect it for a moment hold `STDERR_TURN`: two at the same time would restore each other's
descriptor, and stderr would stay lost. What Vedette itself says goes to a descriptor of its own, which nobody
redirects.
"""

from __future__ import annotations

import fcntl
import os
import sys
import threading

STDERR_TURN = threading.Lock()
_LOWEST = 3
"""Descriptors below are stdin, stdout and stderr, also where the process was started without them."""


def separate_stderr() -> None:
    """Make `sys.stderr` write to a duplicate of descriptor 2, which programs that we start do not inherit.

    Logging, tracebacks of threads and faulthandler use `sys.stderr`: nothing of theirs is lost while descriptor 2
    is redirected. Call it before any of them. Does nothing where the process has no stderr, or no descriptor is
    free.
    """
    before = sys.stderr
    if before is None:
        return
    try:
        before.flush()
        own = fcntl.fcntl(before.fileno(), fcntl.F_DUPFD_CLOEXEC, _LOWEST)
    except (OSError, ValueError):
        return
    sys.stderr = os.fdopen(own, "w", buffering=1, encoding=before.encoding, errors=before.errors, closefd=False)
