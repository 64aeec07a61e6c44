"""The daemon's service: restart and reload it, and read its state and health from systemd and health.json."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from agent.board.proc import boot_id
from agent.errors import NO_JSON, StorageError, UpdateError
from agent.health import DaemonHealth
from agent.storage.files import read_regular
from agent.structs import from_json

UNIT, FOLLOWER = "vedette.service", "vedette-update.service"
_PATIENCE_S = 60.0
"""Longer than a stop, which may take its TimeoutStopSec."""


class ServiceState(Struct, frozen=True):
    """State of a service.

    Attributes:
        active: `active`, `activating`, `deactivating`, `failed`, `inactive` …
        restarts: automatic restarts by systemd since the last manual start.
        why: reason of its last end, such as `exit-code`, `signal`, `watchdog`; `success`: no failure, or it runs.
        waits: True if it has failed and systemd will restart it after a pause.
    """

    active: str = "inactive"
    restarts: int = 0
    why: str = "success"
    waits: bool = False

    @property
    def failures(self) -> int:
        """Failures since the last manual start: the restarts, and one that no restart has followed yet."""
        return self.restarts + (self.active == "failed" or self.waits)

    @property
    def runs(self) -> bool:
        return self.active == "active" and not self.waits


class Service(Protocol):
    """Controls the daemon's service on behalf of an update."""

    def restart(self) -> None:
        """Stop the daemon and start the version that `current` leads to, without waiting until it is ready."""

    def reload(self) -> None:
        """Have the daemon read its configuration and changed models again."""

    def state(self) -> ServiceState:
        """Return the state of the daemon's service."""

    def hand_over(self) -> None:
        """Let the unit continue the current update, outside of this session."""

    def idle(self) -> str:
        """Return why the unit does not run the current update now; empty: it does."""


class Systemd:
    """Controls the service by `systemctl`; raises UpdateError with its output if it fails."""

    def restart(self) -> None:
        # else systemd refuses to start a service that has failed too often
        self._run("reset-failed", UNIT, check=False)
        self._run("restart", "--no-block", UNIT)

    def reload(self) -> None:
        self._run("reload", UNIT)

    def state(self) -> ServiceState:
        return self._state(UNIT)

    def _state(self, unit: str) -> ServiceState:
        output = self._run("show", "--property=ActiveState,SubState,NRestarts,Result", unit)
        fields = dict(line.split("=", 1) for line in output.splitlines() if "=" in line)
        restarts = fields.get("NRestarts", "0")
        return ServiceState(
            fields.get("ActiveState", "inactive"),
            int(restarts) if restarts.isdigit() else 0,
            fields.get("Result", "success"),
            fields.get("SubState") == "auto-restart",
        )

    def hand_over(self) -> None:
        self._run("reset-failed", FOLLOWER, check=False)
        self._run("start", "--no-block", FOLLOWER)

    def idle(self) -> str:
        found = self._state(FOLLOWER)
        if found.active in ("active", "activating", "reloading", "deactivating") and not found.waits:
            return ""
        return f"{FOLLOWER} is {'waiting for its restart' if found.waits else found.active}: {found.why}"

    @staticmethod
    def is_there() -> bool:
        """Return True if systemd runs here and knows the unit."""
        if shutil.which("systemctl") is None:
            return False
        command = ["systemctl", "cat", FOLLOWER]
        return subprocess.run(command, capture_output=True, timeout=_PATIENCE_S, check=False).returncode == 0

    def _run(self, *words: str, check: bool = True) -> str:
        command = ["systemctl", *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UpdateError(f"{' '.join(command)}: {error}") from error
        if check and done.returncode:
            output = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise UpdateError(f"{' '.join(command)}: {output}")
        return done.stdout


_HEALTH_MAX = 256 * 1024
"""Limit of health.json, bytes, as in `vedette-ssh`: the daemon, which writes it, is not trusted."""
_STALE_S = 15.0
"""Age at which the daemon counts as stuck or gone, s: it writes the file every two seconds."""


def read_health(path: Path) -> DaemonHealth | None:
    """Read health.json; return None if it cannot be read, is old, or is from an earlier boot."""
    try:
        health = from_json(read_regular(path, _HEALTH_MAX), DaemonHealth)
    except (OSError, StorageError, *NO_JSON):
        return None
    is_new = 0 <= time.clock_gettime(time.CLOCK_BOOTTIME) - health.at_s < _STALE_S
    return health if is_new and health.boot_id == boot_id() else None
