"""The service that an update restarts, and what systemd says of it."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct

from agent.errors import NO_JSON, StorageError, UpdateError
from agent.storage.files import read_regular
from agent.update.protocol import Vitals

UNIT, FOLLOWER = "vedette.service", "vedette-update.service"
_PATIENCE_S = 60.0
"""A stop may take its TimeoutStopSec; what systemd itself needs is far below this."""


class ServiceState(Struct, frozen=True):
    """How a service stands.

    Attributes:
        active: `active`, `activating`, `deactivating`, `failed`, `inactive` …
        restarts: how often systemd has started it again by itself, since it was started by somebody.
        why: it ended last, such as `exit-code`, `signal`, `watchdog`; `success`: it did not fail, or runs again.
        waits: whether it ended by itself, and waits to be started again.
    """

    active: str = "inactive"
    restarts: int = 0
    why: str = "success"
    waits: bool = False

    @property
    def failures(self) -> int:
        """How often it ended by itself."""
        return self.restarts + (self.active == "failed" or self.waits)


class Service(Protocol):
    """Controls the daemon's service on behalf of an update."""

    def restart(self) -> None:
        """Stop the daemon, and start what `current` leads to; does not wait until it is ready."""

    def reload(self) -> None:
        """Have it read its configuration again, and models that have changed."""

    def standing(self) -> ServiceState:
        """How it stands."""

    def hand_over(self) -> None:
        """Have the update at hand gone on with outside of this session."""

    def idle(self) -> str:
        """Why nobody goes on with the update at hand now; empty: somebody does."""


class Systemd:
    """By `systemctl`. Its errors are `UpdateError`s with what it said."""

    def restart(self) -> None:
        # A version that failed too often must not keep the next one from being started.
        self._run("reset-failed", UNIT, check=False)
        self._run("restart", "--no-block", UNIT)

    def reload(self) -> None:
        self._run("reload", UNIT)

    def standing(self) -> ServiceState:
        return self._standing(UNIT)

    def _standing(self, unit: str) -> ServiceState:
        said = self._run("show", "--property=ActiveState,SubState,NRestarts,Result", unit)
        told = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
        restarts = told.get("NRestarts", "0")
        return ServiceState(
            told.get("ActiveState", "inactive"),
            int(restarts) if restarts.isdigit() else 0,
            told.get("Result", "success"),
            told.get("SubState") == "auto-restart",
        )

    def hand_over(self) -> None:
        self._run("reset-failed", FOLLOWER, check=False)
        self._run("start", "--no-block", FOLLOWER)

    def idle(self) -> str:
        found = self._standing(FOLLOWER)
        if found.active in ("active", "activating", "reloading", "deactivating") and not found.waits:
            return ""
        return f"{FOLLOWER} is {'waiting to be started again' if found.waits else found.active}: {found.why}"

    @staticmethod
    def is_there() -> bool:
        """Return True if systemd runs here and knows the unit."""
        if shutil.which("systemctl") is None:
            return False
        asks = ["systemctl", "cat", FOLLOWER]
        return subprocess.run(asks, capture_output=True, timeout=_PATIENCE_S, check=False).returncode == 0

    def _run(self, *words: str, check: bool = True) -> str:
        command = ["systemctl", *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UpdateError(f"{' '.join(command)}: {error}") from error
        if check and done.returncode:
            said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise UpdateError(f"{' '.join(command)}: {said}")
        return done.stdout


_LARGEST = 256 * 1024
"""Bytes that are read of what the daemon tells, whom nothing is believed: as much as `vedette-ssh` hands on."""
_STALE_S = 15.0
"""The daemon writes every two seconds; one that has not for so long is stuck or gone."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def read_vitals(path: Path) -> Vitals | None:
    """Read the daemon's latest vitals; None if there are none or they are stale (old, or of an earlier boot).

    Args:
        path: of the file.
    """
    try:
        vitals = msgspec.json.decode(read_regular(path, _LARGEST), type=Vitals)
    except (OSError, StorageError, *NO_JSON):
        return None
    is_new = 0 <= time.clock_gettime(time.CLOCK_BOOTTIME) - vitals.at_s < _STALE_S
    return vitals if is_new and vitals.boot_id == boot_id() else None


def boot_id() -> str:
    """Return the boot ID of the running kernel; empty if it cannot be read."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""
