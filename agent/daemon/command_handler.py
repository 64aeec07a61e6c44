"""Commands over MQTT: execute requests one after the other in the daemon's thread, and answer them."""

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
from agent.comms.commands import Command, Request, Requests
from agent.config.load import names
from agent.daemon.control import ConfigManager
from agent.daemon.parts import Asked, execute, is_of_feature
from agent.daemon.runtime import Runtime
from agent.errors import CommandError, VedetteError
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


_OF_STREAMS = ("set", "snapshot", "record", "inspect", "accept", "reset", "forget")
_AT_ONCE = 8
"""Requests executed before the daemon turns to its other duties."""

Reply = tuple[str, Mapping[str, Any]]
"""Answer to a command that succeeded: a remark, and further keys."""


class CommandHandler:
    """Executes commands in `process_pending`; only `doctor` runs in a process of its own."""

    def __init__(
        self,
        control: ConfigManager,
        runtime: Runtime,
        doctor: DoctorProcess,
        reload: Callable[[], str],
        wake: Callable[[], None],
    ) -> None:
        """Receive no command before `listen`; `wake` is called from any thread when one has come.

        `reload` reads the configuration again and returns the changes, or raises a `VedetteError`.
        """
        self._control, self._runtime, self._doctor, self._reload = control, runtime, doctor, reload
        self._requests = Requests(runtime.topics, runtime.mqtt.answer, wake)
        self._is_listening: bool | None = None

    def listen(self) -> None:
        """Subscribe to commands, or unsubscribe, as the configuration in use says."""
        runtime = self._runtime
        if runtime.commands is self._is_listening:
            return
        was, self._is_listening = self._is_listening, runtime.commands
        for pattern in runtime.topics.commands:
            if runtime.commands:
                runtime.mqtt.listen(pattern, self._requests.receive, as_published=True)
            elif was:
                runtime.mqtt.ignore(pattern)
        if not runtime.commands and runtime.config.mqtt.commands is None:
            log.info("commands are disabled: %s", runtime.commands_off)

    def process_pending(self) -> bool:
        """Execute some of the waiting requests. Return True if there may be more."""
        for _ in range(_AT_ONCE):
            request = self._requests.next()
            if request is None:
                return False
            self._execute(request)
        return True

    def stop(self) -> None:
        """Kill a running `doctor`."""
        self._doctor.stop()

    def _execute(self, request: Request) -> None:
        try:
            if request.command is None:
                raise CommandError(request.refusal)
            if not self._runtime.commands:
                raise CommandError(f"commands are disabled: {self._runtime.commands_off}")
            if request.command.verb == "doctor":
                self._examine(request)
                return
            if is_of_feature(request.command.verb):
                self._ask_feature(request, request.command)
                return
            remark, more = self._reply(request.command)
        except VedetteError as error:
            self._refuse(request, "; ".join(str(error).splitlines()))
        except Exception as error:
            # An internal error of one command must not end the streams.
            log.exception("a command failed: internal error (please report)")
            self._refuse(request, f"internal error: {type(error).__name__}: {error}")
        else:
            self._requests.answer(request, ok=True, reason=remark, more=more)

    def _refuse(self, request: Request, reason: str) -> None:
        log.warning("command refused: %s", reason)
        self._requests.answer(request, ok=False, reason=reason)
        stream, what = request.place
        if stream:  # a client that shows a switch has moved it already
            self._runtime.mqtt.repeat(self._runtime.topics.state(stream, what))

    def _reply(self, command: Command) -> Reply:
        control = self._control
        if command.stream or command.verb in _OF_STREAMS:
            control.check_stream(command.stream)
        if command.verb == "set":
            return control.set(command.stream, command.what, command.value), {}
        if command.verb == "reload":
            return self._reload(), {}
        return "", self._status()

    def _ask_feature(self, request: Request, command: Command) -> None:
        def answer(result: dict[str, Any] | None, why: str) -> None:
            self._requests.answer(request, ok=result is not None, reason=why, more=result)

        runtime, stream = self._runtime, None
        if command.stream:
            self._control.check_stream(command.stream)
            stream = runtime.streams[command.stream]
        reply = execute(Asked(command, stream, runtime.topics, answer, runtime.parts))
        if reply is not None:
            remark, more = reply
            self._requests.answer(request, ok=True, reason=remark, more=more)

    def _examine(self, request: Request) -> None:
        def done(report: dict[str, Any] | None, why: str) -> None:
            if report is None:
                log.warning("command refused: %s", why)
            more = {} if report is None else {"report": report}
            self._requests.answer(request, ok=report is not None, reason=why, more=more)

        self._doctor.start(done)
        log.info("command: doctor")

    def _status(self) -> dict[str, Any]:
        runtime = self._runtime
        streams = {}
        for name, stream in runtime.streams.items():
            (state, detail), one = stream.status, runtime.settings[name]
            streams[name] = {
                "state": state,
                "detail": self._control.remark(name) or detail,
                "enabled": one.enabled,
                "threshold": one.threshold,
                "variant": one.variant,
                "variants": one.variants,
                "zones": one.zones,
                "lines": one.lines,
                "filters": one.filters,
                "only_moving": one.only_moving,
                "motion_masks": one.motion_masks,
                "set_by_command": self._control.overridden(name),
                "states": {},
                "sound": stream.has_sound,
                "decoding": captured.decoding if (captured := stream.captured) else "",
                "reduced": stream.reduced,
                "unmet": stream.unmet,
                "problems": stream.parts.problems,
                **stream.parts.describe(),
            }
        return {
            "version": __version__,
            "device": runtime.topics.device,
            "streams": streams,
            "waits_for_restart": names(runtime.pending_restart),
            "unmet": runtime.parts.health().get("unmet", ""),
        }
