"""Descriptor 2 belongs to the whole process: who sends it elsewhere for a moment takes this turn first.

Two who do it at the same time would put each other's descriptor back, and stderr would stay lost.
"""

from __future__ import annotations

import threading

STDERR_TURN = threading.Lock()
