"""The service: what systemd is told of the daemon, and when. Ready once every stream infers that can."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping
from typing import Protocol

from agent.daemon.stream import State
from agent.errors import reason_of

# What systemd is told of this process: ready, how it is in words, that it is alive.
#
# Datagrams of lines, on a socket whose address is in the environment. Source:
# https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html

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


HANGS_S = 150.0
"""A stream that is busy with one thing for so long hangs. What may take long has a limit of its own, below this:
a device has two minutes to open a model (`agent.compute.infer.worker.session.PATIENCE_S`)."""
_FEEDS = 4
"""Times that the watchdog is fed in one of its periods."""
_NOT_AWAITED = ("lost", "ended", "failed", "disabled")
"""A camera that is away is looked for all the time. To wait for it would take the others' watchdog and, when
systemd loses its patience, the others."""


class Watched(Protocol):
    """A stream, as far as this is concerned: `agent.daemon.stream.Stream`."""

    @property
    def standing(self) -> tuple[State, str]:
        """State now and why."""
        ...

    @property
    def has_result(self) -> bool:
        """Whether an inference has been made."""
        ...

    @property
    def stalled_s(self) -> float:
        """How long its thread has been busy with one and the same thing, s."""
        ...


Streams = Mapping[str, Watched]


def awaited(streams: Streams) -> list[str]:
    """Names of streams whose first inference is yet to come, and will."""
    return [n for n, one in streams.items() if not one.has_result and one.standing[0] not in _NOT_AWAITED]


def hanging(streams: Streams) -> list[str]:
    """Names of streams whose thread does not come round any more."""
    return [name for name, one in streams.items() if one.stalled_s > HANGS_S]


def status_text(streams: Streams, *, ready: bool, connected: bool) -> str:
    """How everything is, in a line for people."""
    standings = {name: one.standing for name, one in streams.items()}
    wanted = {name: standing for name, standing in standings.items() if standing[0] != "disabled"}
    run = sum(state in ("running", "degraded") for state, _ in wanted.values())
    said = [f"{run} of {len(wanted)} stream{'s' * (len(wanted) != 1)} running"]
    if not ready:
        said = [f"starting: waiting for the first inference of {', '.join(awaited(streams)) or 'any'}"]
    said += [f"{name} hangs" for name in hanging(streams)]
    for name, (state, detail) in wanted.items():
        if state not in ("running", "starting"):
            said.append(f"{name} {state}{detail and f': {detail}'}")
    return "; ".join(said if connected else [*said, "no broker"])


class SystemdStatus:
    """Of one daemon, for its thread.

    Attributes:
        ready: whether systemd has been told that we are.
    """

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self.ready = False
        self._said, self._fed_s = "", -1e9
        self._hanging: list[str] = []

    def update(self, streams: Streams, *, connected: bool) -> None:
        """Tell what is to be told now.

        Args:
            streams: by name, as they are.
            connected: whether a broker is there; which decides nothing.
        """
        if not self.ready and not awaited(streams):
            self.ready = True
            self._notifier.ready()
            log.info("ready: %s", status_text(streams, ready=True, connected=connected))
        self._feed(hanging(streams))
        said = status_text(streams, ready=self.ready, connected=connected)
        if said != self._said:
            self._said = said
            self._notifier.status(said)

    def reloading(self) -> None:
        """A reload begins; `reloaded` ends it, however it went."""
        if self.ready:
            self._notifier.reloading()

    def reloaded(self) -> None:
        """It is over."""
        if self.ready:
            self._notifier.ready()

    def stopping(self) -> None:
        """The end begins."""
        self._notifier.stopping()
        self._notifier.status("stopping")

    def _feed(self, hanging: list[str]) -> None:
        """Feed the watchdog, as long as everything moves."""
        now_s, watchdog_s = time.monotonic(), self._notifier.watchdog_s
        for name in set(hanging) - set(self._hanging):
            then = "; systemd's watchdog will start the daemon again" if watchdog_s else ""
            log.error("stream %s hangs: its thread has not come round for %.0f s%s", name, HANGS_S, then)
        self._hanging = hanging
        if watchdog_s and not hanging and now_s - self._fed_s >= watchdog_s / _FEEDS:
            self._fed_s = now_s
            self._notifier.alive()
