"""A device in a process of its own, to be killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.config import Durability

ROOT = Path(__file__).parent.parent.parent


@contextmanager
def process(
    folder: Path, port: int, count: int, pause_s: float = 0.0, durability: Durability = "event"
) -> Iterator[subprocess.Popen[str]]:
    """A device in a process of its own, which is killed at the end."""
    command = [sys.executable, "-m", "tests.support.publishing", str(folder), str(port), str(count), str(pause_s)]
    command.append(durability)
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        yield running
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
