"""Orders: requests from the line, carried out one after the other in the daemon's thread, and answered."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from agent import __version__
from agent.comms.commands import Command
from agent.comms.requests import Request, Requests
from agent.config.diff import names
from agent.daemon.control import ConfigManager
from agent.daemon.runtime import Runtime
from agent.errors import CommandError, VedetteError

# A check-up: `vedette doctor` in a process of its own, for somebody who asks over the line.

log = logging.getLogger(__name__)

LONGEST_S = 300.0
"""It takes some 10 s on a Pi 4; whoever hangs longer hangs for ever."""
_LARGEST = 256 * 1024
_NICE = 10
_STOP_S = 5.0

Done = Callable[[dict[str, Any] | None, str], None]
"""Gets the report, or None and why there is none."""


class DoctorProcess:
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


_AT_ONCE = 8
"""Requests that are carried out before the daemon looks at its other duties."""

Reply = tuple[str, Mapping[str, Any]]
"""What is to be said of something that was carried out: a remark, and further keys of the answer."""


class CommandHandler:
    """Of a house. Everything but the check-up happens in `work`."""

    def __init__(
        self,
        control: ConfigManager,
        house: Runtime,
        checkup: DoctorProcess,
        reload: Callable[[], str],
        wake: Callable[[], None],
    ) -> None:
        """Prepare; nothing is heard before `listen`.

        Args:
            control: changes what can be set.
            house: that is commanded.
            checkup: examines the board.
            reload: reads the configuration again and gives what is different, or raises a `VedetteError`.
            wake: is called, from any thread, when there is something to do.
        """
        self._control, self._house, self._checkup, self._reload = control, house, checkup, reload
        self._requests = Requests(house.topics, house.line.answer, wake)
        self._is_listening: bool | None = None

    def listen(self) -> None:
        """Listen for commands, or no more, as the configuration in use wants it."""
        house = self._house
        if house.commands is self._is_listening:
            return
        was, self._is_listening = self._is_listening, house.commands
        for pattern in house.topics.commands:
            if house.commands:
                house.line.listen(pattern, self._requests.take, as_published=True)
            elif was:
                house.line.ignore(pattern)
        if not house.commands and house.config.mqtt.commands is None:
            log.info("commands are off: %s", house.commands_off)

    def process_pending(self) -> bool:
        """Carry out some of what waits; whether there may be more."""
        for _ in range(_AT_ONCE):
            request = self._requests.next()
            if request is None:
                return False
            self._carry_out(request)
        return True

    def stop(self) -> None:
        """End what is under way."""
        self._checkup.stop()

    def _carry_out(self, request: Request) -> None:
        try:
            if request.command is None:
                raise CommandError(request.refusal)
            if not self._house.commands:
                raise CommandError(f"commands are off: {self._house.commands_off}")
            if request.command.verb == "doctor":
                self._examine(request)
                return
            remark, more = self._done(request.command)
        except CommandError as error:
            self._refuse(request, str(error))
        except Exception as error:
            # What one command brings to light must not end the streams.
            log.exception("a command failed: a defect in Vedette")
            self._refuse(request, f"a defect in Vedette: {type(error).__name__}: {error}")
        else:
            self._requests.answer(request, ok=True, reason=remark, more=more)

    def _refuse(self, request: Request, reason: str) -> None:
        log.warning("command refused: %s", reason)
        self._requests.answer(request, ok=False, reason=reason)
        stream, what = request.place
        if stream:  # whoever shows a switch has moved it
            self._house.line.repeat(self._house.topics.state(stream, what))

    def _done(self, command: Command) -> Reply:
        streams, control = self._house.streams, self._control
        if command.stream or command.verb in ("set", "snapshot", "record"):
            control.check(command.stream)
        if command.verb == "set":
            return control.set(command.stream, command.what, command.value), {}
        if command.verb == "snapshot":
            streams[command.stream].snapshot_now()
            return "", {"topic": self._house.topics.snapshot(command.stream)}
        if command.verb == "record":
            return "", {"path": self._recorded(command)}
        if command.verb == "reload":
            return self._reloaded(), {}
        return "", self._status()

    def _recorded(self, command: Command) -> str:
        try:
            return self._house.streams[command.stream].record(command.seconds)
        except VedetteError as error:
            raise CommandError(str(error)) from error

    def _reloaded(self) -> str:
        try:
            return self._reload()
        except VedetteError as error:
            raise CommandError("; ".join(str(error).splitlines())) from error

    def _examine(self, request: Request) -> None:
        def done(report: dict[str, Any] | None, why: str) -> None:
            if report is None:
                log.warning("command refused: %s", why)
            more = {} if report is None else {"report": report}
            self._requests.answer(request, ok=report is not None, reason=why, more=more)

        self._checkup.start(done)
        log.info("command: doctor")

    def _status(self) -> dict[str, Any]:
        house = self._house
        streams = {}
        for name, stream in house.streams.items():
            (state, detail), one = stream.standing, house.settings[name]
            streams[name] = {
                "state": state,
                "detail": self._control.remark(name) or detail,
                "enabled": one.enabled,
                "threshold": one.threshold,
                "variant": one.variant,
                "variants": one.variants,
                "zones": one.zones,
                "set_by_command": self._control.overridden(name),
            }
        return {
            "version": __version__,
            "device": house.topics.device,
            "streams": streams,
            "waits_for_restart": names(house.pending_restart),
        }
