"""A check-up: `vedette doctor` in a process of its own, for somebody who asks over the line."""

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

log = logging.getLogger(__name__)

LONGEST_S = 300.0
"""It takes some 10 s on a Pi 4; whoever hangs longer hangs for ever."""
_LARGEST = 256 * 1024
_NICE = 10
_STOP_S = 5.0

Done = Callable[[dict[str, Any] | None, str], None]
"""Gets the report, or None and why there is none."""


class Checkup:
    """One at a time. The examination may crash, hang or take much memory, and the daemon goes on."""

    def __init__(self, config: Path | None, longest_s: float = LONGEST_S) -> None:
        """Prepare.

        Args:
            config: file that it checks as well; None: the usual one.
            longest_s: after which it is ended, s.
        """
        # With -P: modules of the working folder, which may be anybody's, are not run. PYTHONPATH still counts, so
        # that the examination finds what the daemon has found.
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
        """Begin; `done` is called from another thread when it is over.

        Raises:
            CommandError: one is under way.
        """
        if self._thread is not None and self._thread.is_alive():
            raise CommandError("the doctor is at work already; ask again when it is done")
        self._thread = threading.Thread(target=self._run, args=(done,), name="doctor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it, if it is under way."""
        if (process := self._process) is not None:
            process.kill()

    def _run(self, done: Done) -> None:
        try:
            done(self._report(), "")
        except CommandError as error:
            done(None, str(error))
        except Exception as error:
            log.exception("doctor: a defect in Vedette")
            done(None, f"a defect in Vedette: {error}")

    def _report(self) -> dict[str, Any]:
        try:
            process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise CommandError(f"the doctor cannot be started: {error}") from error
        self._process = process
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
        try:
            said, _ = process.communicate(timeout=self._longest_s)
        except subprocess.TimeoutExpired:
            raise CommandError(f"the doctor did not finish in {self._longest_s:.0f} s") from None
        finally:
            self._process = None
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=_STOP_S)
        return _read(said, process.returncode)


def _read(said: bytes, code: int) -> dict[str, Any]:
    try:
        if len(said) > _LARGEST:
            raise ValueError(f"{len(said)} bytes of report")
        return msgspec.json.decode(said, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError) as error:
        raise CommandError(f"the doctor ended with code {code} and gave no report: {error}") from error
