"""Orders: requests from the line, carried out one after the other in the daemon's thread, and answered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from agent import __version__
from agent.checkup import Checkup
from agent.comms.commands import Command
from agent.comms.requests import Request, Requests
from agent.control import Control
from agent.errors import CommandError, VedetteError
from agent.house import House
from agent.restart import names

log = logging.getLogger(__name__)

_AT_ONCE = 8
"""Requests that are carried out before the daemon looks at its other duties."""

Said = tuple[str, Mapping[str, Any]]
"""What is to be said of something that was carried out: a remark, and further keys of the answer."""


class Orders:
    """Of a house. Everything but the check-up happens in `work`."""

    def __init__(
        self,
        control: Control,
        house: House,
        checkup: Checkup,
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

    def work(self) -> bool:
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

    def _done(self, command: Command) -> Said:
        streams, control = self._house.streams, self._control
        if command.stream or command.verb in ("set", "snapshot", "record"):
            control.check(command.stream)
        if command.verb == "set":
            return control.change(command.stream, command.what, command.value), {}
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
                "rung": one.rung,
                "rungs": one.rungs,
                "zones": one.zones,
                "set_by_command": self._control.overridden(name),
            }
        return {
            "version": __version__,
            "device": house.topics.device,
            "streams": streams,
            "waits_for_restart": names(house.waiting),
        }
