"""Connects a command-line tool to a broker: sends commands to a device, and follows what devices publish.

Failures are explained in terms of the tool's options. It speaks MQTT 3.1.1, as every broker does.

A daemon that was cut off begins its next run above every number that it may have given out, and each message
tells with which number its run began. So a gap before that number does not mean lost messages: its numbers were
never given out, or were in the device's memory only. See `agent.storage.spool.disk`.

A device with a new card begins at its clock, above all that it had before, unless the clock is wrong. So an
unknown run that begins lower is such a one, and its messages are counted from there.
"""

from __future__ import annotations

import queue
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec
import paho.mqtt.client as paho
from msgspec import Struct, structs
from paho.mqtt.enums import CallbackAPIVersion

from agent.comms.messages import ConditionMessage, EventMessage, InspectionMessage, LineMessage, VerdictMessage
from agent.comms.mqtt import endpoint
from agent.comms.topics import Topics
from agent.config.servers import MqttConfig, Transport
from agent.errors import NO_JSON, BrokerError, ConfigError
from agent.health import HealthMessage
from agent.structs import from_json, json_decoder


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
        return endpoint.address(self.config)

    @property
    def uses_tls(self) -> bool:
        return endpoint.uses_tls(self.config)

    @property
    def user(self) -> str:
        """Name this client for messages: its quoted user name, or a phrase for none."""
        return repr(self.username) if self.username else "a client without a user name"


def as_options(text: str) -> str:
    """Reword a message about keys of `[mqtt]` for the command line, where they are options."""
    return re.sub(r"\[mqtt\] (\w+)", lambda key: "--" + key[1].replace("_", "-"), text)


_CONNECT_S, _TCP_S, _KEEPALIVE_S = 10.0, 5.0, 30


class ConsumerClient:
    """One client. Paho's thread runs it from `connect` to `disconnect`.

    Attributes:
        client: paho's, to set further callbacks before `connect`, and to use after.
    """

    def __init__(
        self, options: BrokerOptions, *, reconnects: bool = False, on_connect: Callable[[], None] = lambda: None
    ) -> None:
        """Prepare.

        Args:
            options: how to reach the broker.
            reconnects: connect again when the connection breaks later on.
            on_connect: called in paho's thread at each connection that the broker accepts.

        Raises:
            BrokerError: a certificate or a key cannot be used.
        """
        self._options, self._accepted = options, on_connect
        self._results: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2, transport=options.transport, reconnect_on_failure=reconnects
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
            BrokerError: the broker cannot be reached, or does not accept this client.
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
            why = as_options(str(endpoint.opening_error(error, tls=self._options.uses_tls)))
            raise BrokerError(f"cannot reach the broker at {self._options.where}: {why}") from error

    def _await(self, timeout_s: float) -> None:
        try:
            why = self._results.get(timeout=timeout_s)
        except queue.Empty:
            why = "no answer to CONNECT; check that it is an MQTT broker"
            why += "" if self._options.uses_tls else endpoint.PERHAPS_TLS
        if why:
            raise BrokerError(
                f"the broker at {self._options.where} refuses {self._options.user}: {as_options(why)}"
            )

    def disconnect(self) -> None:
        self.client.disconnect()
        with suppress(AttributeError):  # paho's thread may end and remove itself meanwhile
            self.client.loop_stop()

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if not reason.value:
            self._accepted()
        self._results.put(endpoint.in_words(reason.value) if reason.value else "")

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        hint = "" if self._options.uses_tls else endpoint.PERHAPS_TLS
        self._results.put(endpoint.explain_break(int(reason.value)) + hint)


_STATUS_S = 3.0
"""Time in which the broker passes on the retained status of a device, s."""
_DEVICES_SHOWN = 8


class NoAnswerError(BrokerError):
    """The device has not answered; the message says what may be wrong."""

    exit_code = 3


class CommandReply(Struct, frozen=True):
    """Describe a device's answer to a command.

    Attributes:
        ok: True if the device has done what it was asked to.
        reason: why it has not, or a remark on what it has done.
        body: the whole JSON object.
    """

    ok: bool
    reason: str
    body: dict[str, Any]


class _Health(Struct):
    commands_off: str = ""


class _Answer(Struct):
    ok: bool
    reason: str


def send_command(
    options: BrokerOptions, topics: Topics, verb: str, body: dict[str, Any], timeout_s: float
) -> CommandReply:
    """Send a request, and wait at most `timeout_s` for its answer.

    Raises:
        BrokerError: the broker cannot be reached, or refuses the connection.
        NoAnswerError: the device does not answer.
    """
    return _Exchange(options, topics, verb).run(body, timeout_s)


class _Exchange:
    """The request and its answer, over one connection."""

    def __init__(self, options: BrokerOptions, topics: Topics, verb: str) -> None:
        self._options, self._topics, self._verb = options, topics, verb
        self._mark = secrets.token_hex(8)
        self._subscribed: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[CommandReply | None] = queue.SimpleQueue()
        self._statuses: dict[str, str] = {}
        self._commands_off = ""
        self._connection = ConsumerClient(options)
        client = self._client = self._connection.client
        client.on_subscribe = lambda _c, _u, _m, reasons, _p: self._subscribed.put(
            [int(reason.value) for reason in reasons]
        )
        client.on_message = self._message

    def run(self, body: dict[str, Any], timeout_s: float) -> CommandReply:
        until = time.monotonic() + timeout_s
        self._connection.connect(timeout_s)
        try:
            self._subscribe(until)
            payload = msgspec.json.encode({**body, "id": self._mark})
            self._client.publish(self._topics.command(self._verb), payload, 1)
            return self._wait_answer(timeout_s, until)
        finally:
            self._connection.disconnect()

    def _subscribe(self, until: float) -> None:
        topics = self._topics.answer(self._verb), Topics(self._topics.prefix, "+").status, self._topics.health
        self._client.subscribe([(topic, 1) for topic in topics])
        try:
            codes = self._subscribed.get(timeout=max(0.05, until - time.monotonic()))
        except queue.Empty:
            raise BrokerError(f"the broker at {self._options.where} does not answer the subscription") from None
        if codes[0] >= endpoint.REFUSED:
            raise BrokerError(f"the broker does not let {self._options.user} receive answers")

    def _wait_answer(self, timeout_s: float, until: float) -> CommandReply:
        """Return the answer. A device that takes no commands, or is not known to the broker, ends the wait."""
        for end in (min(until, time.monotonic() + _STATUS_S), until):
            with suppress(queue.Empty):
                reply = self._answers.get(timeout=max(0.05, end - time.monotonic()))
                if reply is not None:
                    return reply
                break
            if self._topics.device not in self._statuses:
                break
        raise NoAnswerError(self._why_silent(timeout_s))

    def _message(self, client: Any, userdata: Any, message: paho.MQTTMessage) -> None:
        if message.topic == self._topics.answer(self._verb):
            self._receive_answer(bytes(message.payload))
            return
        if message.topic == self._topics.health:
            with suppress(*NO_JSON):
                self._commands_off = from_json(message.payload, _Health).commands_off
        else:
            device = message.topic.removeprefix(f"{self._topics.prefix}/").removesuffix("/status")
            self._statuses[device] = message.payload.decode(errors="replace")[:20]
        status = self._statuses.get(self._topics.device)
        if status and (self._commands_off or (message.retain and status != "online")):
            self._answers.put(None)

    def _receive_answer(self, payload: bytes) -> None:
        with suppress(*NO_JSON):  # anybody may publish there
            answer, body = from_json(payload, _Answer), from_json(payload, dict[str, Any])
            if body.get("id") == self._mark:
                self._answers.put(CommandReply(answer.ok, answer.reason, body))

    def _why_silent(self, timeout_s: float) -> str:
        device, user = self._topics.device, self._options.user
        status = self._statuses.get(device)
        if status is None:
            known = sorted(self._statuses)
            others = ", ".join(known[:_DEVICES_SHOWN]) + (" …" if known[_DEVICES_SHOWN:] else "")
            more = f"there are: {others}" if known else "nor any other"
            return f"no device {device} is known at {self._options.where}; {more}"
        if status != "online":
            return f"{device} is {status}"
        if self._commands_off:
            return f"{device} is online and takes no commands: {self._commands_off}"
        return (
            f"no answer from {device} in {timeout_s:.0f} s, though it is online: it is busy, takes no commands "
            f"([mqtt] commands), or the broker's access list does not let {user} command it, or does not "
            "let it answer"
        )


Kind = (
    Literal["status", "health", "snapshot", "count", "line"]
    | Literal["events", "verdicts", "detections", "clips", "inspection", "condition"]
)

_START_S = 20.0
T = TypeVar("T")


class Numbered(Struct, frozen=True):
    """The numbers of a message that went through the spool; a detection's number is `spool_seq`."""

    seq: int = 0
    spool_seq: int = 0
    first_seq: int = 0


_events = json_decoder(EventMessage)
_verdicts = json_decoder(VerdictMessage)
_inspections = json_decoder(InspectionMessage)
_conditions = json_decoder(ConditionMessage)
_lines = json_decoder(LineMessage)
_numbered = json_decoder(Numbered)
_health = json_decoder(HealthMessage)


class ReceivedMessage(Struct, frozen=True):
    """One message from a device.

    Attributes:
        topic, payload: as received.
        device, stream: names; `stream` is empty for the device's own topics.
        kind: third level of the topic, or the second of the device's own.
        received_ns: CLOCK_MONOTONIC, ns.
        retained: the broker had retained it; it is not new.
    """

    topic: str
    device: str
    stream: str
    kind: Kind
    payload: bytes
    received_ns: int
    retained: bool

    def event(self) -> EventMessage | None:
        """Return the event, or None if the message cannot be read as one."""
        return self._decoded("events", _events)

    def verdict(self) -> VerdictMessage | None:
        """Return the verdict on a part, or None if the message cannot be read as one."""
        return self._decoded("verdicts", _verdicts)

    def inspection(self) -> InspectionMessage | None:
        """Return the counters of inspected parts, or None if the message cannot be read as such."""
        return self._decoded("inspection", _inspections)

    def condition(self) -> ConditionMessage | None:
        """Return the problems of a stream, or None if the message cannot be read as such."""
        return self._decoded("condition", _conditions)

    def line(self) -> LineMessage | None:
        """Return the crossings of a line, or None if the message cannot be read as such."""
        return self._decoded("line", _lines)

    def health(self) -> HealthMessage | None:
        """Return the device's health; None: it is not what this version can read."""
        return self._decoded("health", _health)

    def _decoded(self, kind: Kind, decoder: msgspec.json.Decoder[T]) -> T | None:
        try:
            return decoder.decode(self.payload) if self.kind == kind else None
        except NO_JSON:
            return None

    def numbers(self) -> tuple[int, int] | None:
        """Return `seq` and `first_seq`, which is 0 if unknown; None: the message has no number."""
        if self.kind not in ("events", "verdicts", "clips", "detections"):
            return None
        try:
            numbers = _numbered.decode(self.payload)
        except NO_JSON:
            return None
        seq = numbers.spool_seq if self.kind == "detections" else numbers.seq
        return (seq, numbers.first_seq) if seq else None


class Subscriber:
    """Subscribes to every topic of one device or of all. Reconnects by itself."""

    def __init__(self, options: BrokerOptions, *, prefix: str = "vedette", device: str = "+") -> None:
        """Prepare; `start` connects. Raise BrokerError if a certificate or a key cannot be used."""
        self._prefix, self._device = prefix, device
        self._received: queue.SimpleQueue[ReceivedMessage] = queue.SimpleQueue()
        self._connection = ConsumerClient(options, reconnects=True, on_connect=self._subscribe)
        self._connection.client.on_message = self._message

    def start(self, timeout_s: float = _START_S) -> None:
        """Connect and subscribe. Raise BrokerError if the broker cannot be reached, or refuses the connection."""
        self._connection.connect(timeout_s)

    def messages(self, until: float | None = None) -> Iterator[ReceivedMessage | None]:
        """Yield messages as they arrive; None about four times a second while there are none.

        `until` is a time of CLOCK_MONOTONIC at which to end, s; None: never.
        """
        while until is None or time.monotonic() < until:
            try:
                yield self._received.get(timeout=0.25)
            except queue.Empty:
                yield None

    def stop(self) -> None:
        self._connection.disconnect()

    def _subscribe(self) -> None:
        self._connection.client.subscribe(f"{self._prefix}/{self._device}/#", qos=1)

    def _message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        levels = message.topic.removeprefix(f"{self._prefix}/").split("/")
        device, stream, kind = _parts(levels)
        payload, now_ns = bytes(message.payload), time.monotonic_ns()
        self._received.put(ReceivedMessage(message.topic, device, stream, kind, payload, now_ns, message.retain))


def _parts(levels: list[str]) -> tuple[str, str, Any]:
    if len(levels) >= 3:
        return levels[0], levels[1], levels[2]
    return levels[0], "", levels[-1]


SEQ_END = 1 << 63
"""Above every number."""
_RUNS_MAX = 1000


class SequenceGap(NamedTuple):
    """Numbers that have not arrived.

    Attributes:
        first, last: of the gap.
        restart: a run began after the gap; else its messages were lost on the way.
    """

    first: int
    last: int
    restart: bool


class SequenceTracker:
    """Track the sequence numbers of one device's messages in the order in which they arrive.

    Attributes:
        lost: number of messages lost on the way since the first that arrived.
    """

    def __init__(self) -> None:
        self._run, self.lost = 0, 0
        self._newest: dict[int, int] = {}  # number of the newest message by first_seq of its run

    def record(self, seq: int, first_seq: int) -> list[SequenceGap]:
        """Record a message. Return the gap before it, in two parts if a run began within it.

        A repeated or late message leaves no gap: numbers are sent in their order. Nor does the first message of a
        run that begins lower than the one before: what preceded it is not known.
        """
        run = first_seq if 0 < first_seq <= seq else self._run
        known = self._newest.get(run)
        if not (known or 0) < seq < SEQ_END:
            return []
        expected = (self._newest.get(self._run, 0) if known is None else known) + 1
        self._remember(run, seq)
        if expected == 1 or seq < expected:  # what preceded the first message is not known
            return []
        begins = first_seq if expected < first_seq <= seq else expected
        gaps = [SequenceGap(expected, begins - 1, True), SequenceGap(begins, seq - 1, False)]
        found = [gap for gap in gaps if gap.first <= gap.last]
        self.lost += sum(gap.last - gap.first + 1 for gap in found if not gap.restart)
        return found

    def _remember(self, run: int, seq: int) -> None:
        self._newest.pop(run, None)
        self._run, self._newest[run] = run, seq
        if len(self._newest) > _RUNS_MAX:
            del self._newest[next(iter(self._newest))]
