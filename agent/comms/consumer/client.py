"""Connects a command-line tool to a broker, and explains failures in terms of its options."""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import paho.mqtt.client as paho
from msgspec import Struct, structs
from paho.mqtt.enums import CallbackAPIVersion

from agent.comms.mqtt import endpoint, reasons
from agent.comms.mqtt.endpoint import shown_host
from agent.comms.mqtt.paho_client import VERSIONS, Protocol
from agent.comms.mqtt.reasons import RefusedError, UnansweredError
from agent.config.mqtt import MqttConfig, Transport
from agent.errors import BrokerError, ConfigError

KEYS = (
    "host",
    "port",
    "transport",
    "ws_path",
    "username",
    "password_file",
    "tls",
    "ca_file",
    "cert_file",
    "key_file",
    "alpn",
)
"""Keys of `[mqtt]` that are command-line options, such as `--ws-path`."""
_WITHOUT_TLS = "if it speaks no TLS there, leave out --tls, --ca-file and --cert-file"


class BrokerOptions(Struct, frozen=True):
    """How to reach a broker. The fields are those of `MqttConfig`, except the password itself."""

    host: str = "localhost"
    port: int = 0
    username: str = ""
    password: str = ""
    ca_file: str = ""
    tls: bool = False
    cert_file: str = ""
    key_file: str = ""
    transport: Transport = "tcp"
    ws_path: str = "/mqtt"
    alpn: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"BrokerOptions({self.where})"  # no password in a log or a traceback

    @property
    def config(self) -> MqttConfig:
        keys = {key: value for key, value in structs.asdict(self).items() if key != "password"}
        return MqttConfig(**keys)

    @property
    def where(self) -> str:
        return f"{shown_host(self.host)}:{endpoint.port(self.config)}"

    @property
    def uses_tls(self) -> bool:
        return endpoint.uses_tls(self.config)

    @property
    def user(self) -> str:
        """Name this client for messages: its quoted user name, or a phrase for none."""
        return repr(self.username) if self.username else "a client without a user name"


def as_options(text: str) -> str:
    """Reword a message about configuration keys for the command line, where the keys are options."""
    text = text.replace(reasons.WITHOUT_TLS, _WITHOUT_TLS).replace(
        "are keys of their own", "are options of their own"
    )
    text = re.sub(r"(?<=write )host = ('[^']*')(?: and port = (\d+))?", _as_host, text)
    return re.sub(r"\[mqtt\] (\w+(?: and \w+)*)", _as_options, text)


def _as_host(found: re.Match[str]) -> str:
    return f"--host {found[1]}" + (f" --port {found[2]}" if found[2] else "")


def _as_options(found: re.Match[str]) -> str:
    keys = found[1].split(" and ")
    if not set(keys) <= set(KEYS):
        return found[0]
    return " and ".join("--" + key.replace("_", "-") for key in keys)


_CONNECT_S, _TCP_S, _KEEPALIVE_S = 10.0, 5.0, 30


class ConsumerClient:
    """One client. Paho's thread runs it from `connect` to `disconnect`.

    Attributes:
        client: paho's, to set further callbacks before `connect`, and to use after.
    """

    def __init__(
        self,
        options: BrokerOptions,
        protocol: Protocol,
        *,
        reconnects: bool = False,
        on_connect: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare.

        Args:
            options: how to reach the broker.
            protocol: to speak.
            reconnects: connect again when the connection breaks later on.
            on_connect: called in paho's thread at each connection that the broker accepts.

        Raises:
            BrokerError: a certificate or a key cannot be used.
        """
        self._options, self._accepted = options, on_connect
        self._results: queue.SimpleQueue[int | str] = queue.SimpleQueue()
        self._broker_text = ""
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2,
            protocol=VERSIONS[protocol],
            transport=options.transport,
            reconnect_on_failure=reconnects,
        )
        self.client.on_connect, self.client.on_disconnect = self._on_connect, self._on_disconnect
        self.client.ws_set_options(options.ws_path)
        if options.username:
            self.client.username_pw_set(options.username, options.password or None)
        try:
            if (context := endpoint.read_certificates(options.config)) is not None:
                self.client.tls_set_context(context)
        except ConfigError as error:
            raise BrokerError(as_options(str(error))) from error

    def connect(self, timeout_s: float) -> None:
        """Connect, and wait until the broker accepts the connection.

        Raises:
            BrokerError: the broker cannot be reached; `RefusedError`, `UnansweredError`: it does not accept this
                client.
        """
        until = time.monotonic() + timeout_s
        self._connect(min(timeout_s, _CONNECT_S))
        self.client.loop_start()
        try:
            self._await(max(0.05, min(_CONNECT_S, until - time.monotonic())))
        except BrokerError:
            self.disconnect()
            raise

    def _connect(self, timeout_s: float) -> None:
        """Connect in another thread: resolving a name and a handshake have no time limit."""
        done: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self.client.connect_timeout = min(timeout_s, _TCP_S)

        def connect() -> None:
            try:
                self.client.connect(self._options.host, endpoint.port(self._options.config), _KEEPALIVE_S)
                done.put(None)
            except Exception as error:
                done.put(error)

        threading.Thread(target=connect, name="connect", daemon=True).start()
        try:
            error = done.get(timeout=timeout_s)
        except queue.Empty:
            error = TimeoutError()
        if error is not None:
            why = _why(error, tls=self._options.uses_tls)
            raise BrokerError(f"cannot reach the broker at {self._options.where}: {why}") from error

    def _await(self, timeout_s: float) -> None:
        where = self._options.where
        try:
            result = self._results.get(timeout=timeout_s)
        except queue.Empty:
            why = as_options(reasons.explain_silence("does not answer", tls=self._options.uses_tls))
            raise UnansweredError(f"the broker at {where} {why}", silent=True) from None
        if isinstance(result, str):
            why = as_options(reasons.explain_hangup(result, tls=self._options.uses_tls))
            raise UnansweredError(f"the broker at {where} refuses the connection: {why}", silent=False)
        if result:
            why = as_options(reasons.with_broker_text(reasons.in_words(result), self._broker_text))
            raise RefusedError(result, text=f"the broker at {where} refuses {self._options.user}: {why}")

    def disconnect(self) -> None:
        self.client.disconnect()
        with suppress(AttributeError):  # paho's thread may end and remove itself meanwhile
            self.client.loop_stop()

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        code = int(reason.value)
        self._broker_text = getattr(properties, "ReasonString", "")
        if not code:
            self._accepted()
        self._results.put(code)

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        code = int(reason.value)
        self._results.put(reasons.explain_break(code, ""))


def _why(error: Exception, *, tls: bool) -> str:
    if isinstance(error, paho.WebsocketConnectionError):
        return "it does not answer as a WebSocket; check --port and --ws-path"
    if isinstance(error, ConnectionRefusedError | TimeoutError):  # after a timeout, TCP may have connected
        too = ", and does it speak TLS" if tls and isinstance(error, TimeoutError) else ""
        return f"{as_options(reasons.explain_error(error))}; is it running there{too}?"
    return as_options(reasons.explain_opening(error, tls=tls))
