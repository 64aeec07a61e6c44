"""What systemd is told of this process: ready, how it is in words, that it is alive.

Datagrams of lines, on a socket whose address is in the environment. Source:
https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

from agent.errors import reason_of

log = logging.getLogger(__name__)

_SOCKET, _PERIOD, _PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"
_SEND_S = 1.0
"""systemd reads at once; what it does not take in that time is not worth waiting for."""


class Notifier:
    """Of one process. Nothing is sent where nobody listens: started by hand, or by a unit that is not `notify`.

    Attributes:
        watchdog_s: systemd ends us when it has heard no `alive` for so long, s; 0: it does not.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Take the address and the period from the environment.

        Args:
            environment: of this process.
        """
        self._address = environment.get(_SOCKET, "")
        self.watchdog_s = _period_s(environment) if self._address else 0.0
        self._failed = False

    def ready(self) -> None:
        """Started, or done with reloading."""
        self._send("READY=1")

    def reloading(self) -> None:
        """A reload has begun; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Work advances."""
        self._send("WATCHDOG=1")

    def status(self, words: str) -> None:
        """How it is, in a line, for `systemctl status`."""
        self._send(f"STATUS={' '.join(words.splitlines())}")

    def _send(self, lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(_SEND_S)
                sender.sendto(lines.encode(), _path(self._address))
        except OSError as error:
            if not self._failed:
                log.warning("%s=%s: systemd cannot be told: %s", _SOCKET, self._address, reason_of(error))
            self._failed = True


def _path(address: str) -> str:
    """The address as the kernel takes it: a leading @ is one of the abstract namespace."""
    return "\0" + address[1:] if address.startswith("@") else address


def _period_s(environment: Mapping[str, str]) -> float:
    """Of the watchdog, unless it is meant for another process."""
    try:
        return int(environment.get(_PERIOD, "0")) / 1e6 if _is_ours(environment) else 0.0
    except ValueError:
        return 0.0


def _is_ours(environment: Mapping[str, str]) -> bool:
    return environment.get(_PID) in (None, "", str(os.getpid()))
