"""Commands over MQTT: execute requests one after the other in the daemon's thread, and answer them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent import __version__
from agent.comms.commands import Command, Request, Requests
from agent.config.load import names
from agent.daemon.control import ConfigManager
from agent.daemon.parts import Asked, execute, is_of_feature
from agent.daemon.runtime import Runtime
from agent.errors import CommandError, VedetteError

if TYPE_CHECKING:
    from agent.daemon.doctor import DoctorProcess

log = logging.getLogger(__name__)
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
        file: Path | None,
        reload: Callable[[], str],
        wake: Callable[[], None],
    ) -> None:
        """Receive no command before `listen`.

        Args:
            control: changes settings.
            runtime: in use.
            file: configuration that a doctor checks; None: its default.
            reload: reads the configuration again and returns the changes, or raises a `VedetteError`.
            wake: called from any thread when a command has come.
        """
        self._control, self._runtime, self._file, self._reload = control, runtime, file, reload
        self._doctor: DoctorProcess | None = None
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
        if self._doctor is not None:
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
        if command.stream or command.verb in _OF_STREAMS:
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

        from agent.daemon.doctor import DoctorProcess

        self._doctor = self._doctor or DoctorProcess(self._file)
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
