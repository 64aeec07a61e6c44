"""A real MQTT broker inside this process, on loopback: amqtt, from the extra `[demo]`."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from types import TracebackType
from typing import Any

from agent.errors import BrokerError, reason_of
from agent.extras import install_command

_START_S = 10.0


class EmbeddedBroker:
    """Runs in a thread of its own while the `with` lasts. `port` is a free one."""

    def __init__(self) -> None:
        self.port = _free_port()
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="embedded-broker", daemon=True)

    def __enter__(self) -> EmbeddedBroker:
        """Start it.

        Raises:
            BrokerError: amqtt is not installed, or does not start.
        """
        self._kind = installed()
        for name in ("amqtt", "transitions"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._thread.start()
        if not self._up.wait(_START_S) or self._error is not None:
            raise BrokerError(f"the demo's broker did not start on 127.0.0.1:{self.port}: {self._why()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_START_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())

    def _why(self) -> str:
        if self._error is None:
            return f"no answer in {_START_S:g} s"
        cause = self._error.__cause__  # amqtt wraps what the system says
        return reason_of(cause if isinstance(cause, OSError) else self._error)

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        config: dict[str, Any] = {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{self.port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
        broker = self._kind(config)
        try:
            await broker.start()
        except Exception as error:  # whatever amqtt raises: told by __enter__
            self._error = error
            return
        finally:
            self._up.set()
        await self._stop.wait()
        await broker.shutdown()


def installed() -> Any:
    """The broker's class, of amqtt.

    Raises:
        BrokerError: amqtt is not installed.
    """
    try:
        from amqtt.broker import Broker
    except ImportError as error:
        raise BrokerError(f"the demo's broker is not installed: {install_command('demo')}") from error
    return Broker


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
