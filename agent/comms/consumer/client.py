"""A guest at a broker: a person's tool that comes, is let in or told why not, and leaves again."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from agent.comms import credentials, reasons
from agent.comms.access import Access, as_options
from agent.comms.client import Protocol
from agent.comms.refusal import RefusedError, UnansweredError
from agent.errors import BrokerError, ConfigError

_CONNECT_S, _TCP_S, _KEEPALIVE_S = 10.0, 5.0, 30
_VERSIONS = {"5": paho.MQTTv5, "3.1.1": paho.MQTTv311}


class Guest:
    """One client. Paho's thread turns it from `enter` to `leave`.

    Attributes:
        client: paho's, to set further callbacks before `enter`, and to use after.
    """

    def __init__(
        self,
        access: Access,
        protocol: Protocol,
        *,
        stays: bool = False,
        let_in: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare.

        Args:
            access: to the broker.
            protocol: to speak.
            stays: whether it connects again by itself when the connection breaks later on.
            let_in: is called in paho's thread at each connection that the broker accepts.

        Raises:
            BrokerError: a certificate or a key cannot be used.
        """
        self._access, self._let_in = access, let_in
        self._heard: queue.SimpleQueue[int | str] = queue.SimpleQueue()
        self._words = ""
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2,
            protocol=_VERSIONS[protocol],
            transport=access.transport,
            reconnect_on_failure=stays,
        )
        self.client.on_connect, self.client.on_disconnect = self._on_connect, self._on_disconnect
        self.client.ws_set_options(access.ws_path)
        if access.username:
            self.client.username_pw_set(access.username, access.password or None)
        try:
            if (context := credentials.read_certificates(access.config)) is not None:
                self.client.tls_set_context(context)
        except ConfigError as error:
            raise BrokerError(as_options(str(error))) from error

    def enter(self, timeout_s: float) -> None:
        """Connect, and wait until the broker lets us in.

        Args:
            timeout_s: at most.

        Raises:
            BrokerError: it cannot be reached. `RefusedError` and `UnansweredError` are told apart.
        """
        until = time.monotonic() + timeout_s
        self._connect(min(timeout_s, _CONNECT_S))
        self.client.loop_start()
        try:
            self._await(max(0.05, min(_CONNECT_S, until - time.monotonic())))
        except BrokerError:
            self.leave()
            raise

    def _connect(self, timeout_s: float) -> None:
        """In a thread of its own: neither a name that is resolved nor a handshake can be given a bound."""
        done: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self.client.connect_timeout = min(timeout_s, _TCP_S)

        def connect() -> None:
            try:
                self.client.connect(self._access.host, credentials.port(self._access.config), _KEEPALIVE_S)
                done.put(None)
            except Exception as error:
                done.put(error)

        threading.Thread(target=connect, name="connect", daemon=True).start()
        try:
            error = done.get(timeout=timeout_s)
        except queue.Empty:
            error = TimeoutError()
        if error is not None:
            why = _why(error, tls=self._access.uses_tls)
            raise BrokerError(f"cannot reach the broker at {self._access.where}: {why}") from error

    def _await(self, timeout_s: float) -> None:
        where = self._access.where
        try:
            heard = self._heard.get(timeout=timeout_s)
        except queue.Empty:
            why = as_options(reasons.of_silence("does not answer", tls=self._access.uses_tls))
            raise UnansweredError(f"the broker at {where} {why}", silent=True) from None
        if isinstance(heard, str):
            why = as_options(reasons.of_hanging_up(heard, tls=self._access.uses_tls))
            raise UnansweredError(f"the broker at {where} does not let us in: {why}", silent=False)
        if heard:
            why = as_options(reasons.with_said(reasons.in_words(heard), self._words))
            raise RefusedError(heard, text=f"the broker at {where} refuses {self._access.user}: {why}")

    def leave(self) -> None:
        """Disconnect."""
        self.client.disconnect()
        with suppress(AttributeError):  # paho's thread may end, and take itself away, between a look and a use
            self.client.loop_stop()

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        code = int(reason.value)
        self._words = getattr(properties, "ReasonString", "")
        if not code:
            self._let_in()
        self._heard.put(code)

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        code = int(reason.value)
        self._heard.put(reasons.of_break(code, ""))


def _why(error: Exception, *, tls: bool) -> str:
    if isinstance(error, paho.WebsocketConnectionError):
        return "it does not answer as a WebSocket; check --port and --ws-path"
    if isinstance(
        error, ConnectionRefusedError | TimeoutError
    ):  # of a timeout nobody knows whether TCP connected
        too = ", and does it speak TLS" if tls and isinstance(error, TimeoutError) else ""
        return f"{as_options(reasons.of_error(error))}; is it running there{too}?"
    return as_options(reasons.of_opening(error, tls=tls))
