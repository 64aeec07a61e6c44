"""`vedette doctor` in a process of its own, for a command over MQTT."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import CommandError
from agent.structs import from_json

log = logging.getLogger(__name__)
LONGEST_S = 300.0
"""Longest run of `vedette doctor`, s. It takes some 10 s on a Pi 4."""
_LARGEST = 256 * 1024
_NICE = 10
_STOP_S = 5.0

Done = Callable[[dict[str, Any] | None, str], None]
"""Called with the report, or with None and the reason."""


class DoctorProcess:
    """Runs `vedette doctor --json` in a process of its own: it may crash, hang or take much memory."""

    def __init__(self, config: Path | None, longest_s: float = LONGEST_S) -> None:
        """Set the configuration file to check, None for the default one, and when the process is killed, s."""
        # With -P: no modules of the working directory, which may belong to another user, are run. PYTHONPATH
        # still counts, so that the process finds the packages that the daemon has found.
        self._command = [
            sys.executable,
            "-P",
            "-m",
            "agent",
            "doctor",
            "--json",
            *(["-c", str(config)] if config else []),
        ]
        self._longest_s = longest_s
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, done: Done) -> None:
        """Start the process, unless one runs (CommandError); `done` is called from another thread at its end."""
        if self._thread is not None and self._thread.is_alive():
            raise CommandError("vedette doctor is running already; ask again when it has finished")
        self._thread = threading.Thread(target=self._run, args=(done,), name="doctor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Kill the process, if one is running."""
        if (process := self._process) is not None:
            process.kill()

    def _run(self, done: Done) -> None:
        try:
            done(self._report(), "")
        except CommandError as error:
            done(None, str(error))
        except Exception as error:
            log.exception("doctor: internal error (please report)")
            done(None, f"internal error: {error}")

    def _report(self) -> dict[str, Any]:
        try:
            process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise CommandError(f"vedette doctor cannot be started: {error}") from error
        self._process = process
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
        try:
            output, _ = process.communicate(timeout=self._longest_s)
        except subprocess.TimeoutExpired:
            raise CommandError(f"vedette doctor did not finish in {self._longest_s:.0f} s") from None
        finally:
            self._process = None
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=_STOP_S)
        return _decode(output, process.returncode)


def _decode(output: bytes, code: int) -> dict[str, Any]:
    try:
        if len(output) > _LARGEST:
            raise ValueError(f"{len(output)} bytes of report")
        return from_json(output, dict[str, Any])
    except (msgspec.MsgspecError, ValueError) as error:
        raise CommandError(f"vedette doctor ended with exit status {code} without a report: {error}") from error
