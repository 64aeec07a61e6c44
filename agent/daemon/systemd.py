"""Notify systemd: ready once every stream infers that can, a status line, and the watchdog.

Protocol: datagrams of lines, on a socket whose address is in the environment. Source:
https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

from agent.capture.source import WAITS
from agent.daemon.streams.services import AT_WORK
from agent.daemon.streams.stream import Stream
from agent.errors import reason_of
from agent.text import plural

log = logging.getLogger(__name__)
_SOCKET, _PERIOD, _PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"
_SEND_S = 1.0
"""Longest wait for systemd to read a datagram, s: it normally reads at once."""


class Notifier:
    """Sends notifications. Without a socket in the environment, as by hand, it sends nothing.

    Systemd kills the process after `watchdog_s` without WATCHDOG=1, s; 0: it does not.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get(_SOCKET, "")
        self.watchdog_s = _period_s(environment) if self._address else 0.0
        self._failed = False

    def send(self, *lines: str) -> None:
        """Send lines, such as `READY=1`. A line break in one becomes a space."""
        if not self._address:
            return
        text = "\n".join(" ".join(line.splitlines()) for line in lines)
        # A leading @ stands for NUL: an address in the abstract namespace.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(_SEND_S)
                sender.sendto(text.encode(), address)
        except OSError as error:
            if not self._failed:
                log.warning("%s=%s: systemd cannot be notified: %s", _SOCKET, self._address, reason_of(error))
            self._failed = True


def _period_s(environment: Mapping[str, str]) -> float:
    """Return the watchdog's period, s; 0 if it is meant for another process."""
    try:
        is_ours = environment.get(_PID) in (None, "", str(os.getpid()))
        return int(environment.get(_PERIOD, "0")) / 1e6 if is_ours else 0.0
    except ValueError:
        return 0.0


HANGS_S = 150.0
"""A stream without progress for so long is stuck, s. Longer than any single step may take: a device has two
minutes to open a model (`agent.compute.infer.worker.PATIENCE_S`)."""
_FEEDS = 4
"""Notifications per watchdog period."""
_NOT_AWAITED = ("lost", "ended", "failed", "disabled")
"""States in which a stream is not awaited. A camera may stay away for days; waiting for it would let systemd's
start timeout end the other streams."""

Streams = Mapping[str, Stream]


def awaited(streams: Streams) -> list[str]:
    """Return the names of streams whose first inference is still to come."""
    return [name for name, one in streams.items() if not one.has_result and _is_awaited(*one.status)]


def _is_awaited(state: str, detail: str) -> bool:
    """Return False for a stream that may stay as it is; a camera's first key frame may take a minute."""
    return state not in _NOT_AWAITED and not (state == "starting" and detail == WAITS)


def hanging(streams: Streams) -> list[str]:
    """Return the names of streams whose thread is stuck."""
    return [name for name, one in streams.items() if one.stalled_s > HANGS_S]


def status_text(streams: Streams, *, ready: bool = True, connected: bool = True, reasons: bool = True) -> str:
    """Describe the state of all streams in one line."""
    states = {name: one.status for name, one in streams.items()}
    wanted = {name: state for name, state in states.items() if state[0] != "disabled"}
    run = sum(state in AT_WORK for state, _ in wanted.values())
    parts = [f"{run} of {plural(len(wanted), 'stream')} running"]
    if not ready:
        parts = [f"starting: waiting for the first inference of {', '.join(awaited(streams)) or 'any'}"]
    parts += [f"{name} stuck" for name in hanging(streams)]
    for name, (state, detail) in wanted.items():
        if state not in ("running", "starting") or detail == WAITS:
            parts.append(f"{name} {state}: {detail}" if detail and reasons else f"{name} {state}")
    return "; ".join(parts if connected else [*parts, "no broker"])


class SystemdStatus:
    """Keeps systemd informed, from the daemon's thread. `ready` is True once systemd was notified of that."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self.ready = False
        self._status, self._fed_s = "", -1e9
        self._hanging: list[str] = []

    def update(self, streams: Streams, *, connected: bool) -> None:
        """Notify systemd of what has changed, and feed the watchdog. `connected` is for the status line only."""
        if not self.ready and not awaited(streams):
            self.ready = True
            self._notifier.send("READY=1")
            states = {name: one.status[0] for name, one in streams.items()}
            text = status_text(streams, reasons=False)  # the log has given them
            if off := [name for name, state in states.items() if state == "disabled"]:
                text += f"; {', '.join(off)} disabled"
            runs_any = any(state in AT_WORK for state in states.values())
            log.info("%s: %s", "ready" if runs_any else "no stream is running", text)
        self._feed(hanging(streams))
        status = status_text(streams, ready=self.ready, connected=connected)
        if status != self._status:
            self._status = status
            self._notifier.send(f"STATUS={status}")

    def reloading(self) -> None:
        """Tell systemd that a reload has begun; `reloaded` ends it."""
        if self.ready:
            self._notifier.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def reloaded(self) -> None:
        """Tell systemd that the reload has finished (READY=1)."""
        if self.ready:
            self._notifier.send("READY=1")

    def stopping(self) -> None:
        """Tell systemd that the daemon is stopping."""
        log.info("stopping")
        self._notifier.send("STOPPING=1", "STATUS=stopping")

    def _feed(self, hanging: list[str]) -> None:
        now_s, watchdog_s = time.monotonic(), self._notifier.watchdog_s
        for name in set(hanging) - set(self._hanging):
            then = "; systemd's watchdog will restart the daemon" if watchdog_s else ""
            log.error("stream %s is stuck: no progress for %.0f s%s", name, HANGS_S, then)
        self._hanging = hanging
        if watchdog_s and not hanging and now_s - self._fed_s >= watchdog_s / _FEEDS:
            self._fed_s = now_s
            self._notifier.send("WATCHDOG=1")
