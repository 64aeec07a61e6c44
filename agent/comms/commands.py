"""Commands from the broker: read from topics and payloads, queued for the daemon, and answered.

A command is checked for its form only: the daemon knows which streams, zones and variants exist. A retained one
is refused, since it would be executed again at every start. One that arrives twice is executed once, and answered
again if it has been answered.

Under MQTT 3.1.1 a message that passes does not tell whether it will be retained: there such a command is executed
when it is sent, and refused from the next connection on.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct, structs

from agent.comms.topics import MOTION_MASKS, ONLY_MOVING, Addressed, Topics
from agent.config.wording import plain_fault
from agent.errors import NO_JSON, CommandError
from agent.structs import from_json
from agent.text import plain
from agent.types import Box

if TYPE_CHECKING:
    from agent.comms.mqtt.inbox import IncomingMessage

log = logging.getLogger(__name__)

Value = bool | float | str | None
Given = bool | int | float | str | None
Fields = dict[str, Any]

ALL = "all"
"""Value that stands for every line of a stream."""
DEFAULT = "default"
"""Value that stands for the one in the configuration file."""
LONGEST_RECORD_S, LONGEST_TRACE_S = 600.0, 120.0
EXAMPLES = 10
"""Pictures that a state is taught from, by default."""
_LONGEST = 128
"""Maximum length of a name, a value or an id, characters."""
_SHOWN = 40
_OTHERS = ("$", "homeassistant/")
"""Beginnings of topics that have a meaning to others: no reply is sent there."""


class Command(Struct, frozen=True):
    """Describe one command to carry out.

    Attributes:
        verb: see the guide page `commands`.
        stream: the stream that the command concerns; empty: the device.
        what: the setting to change: `enabled`, `threshold`, `variant`, `only_moving`, `motion_masks`,
            `zone/NAME`, `line/NAME` or `filter/NAME`.
        value: the new value: True or False for on or off, a number or a name; None: the file's.
        seconds: length of the recording, or of the trace; 0: end a running trace.
        part: id of the part to inspect; empty: it gets one.
        state: name of the state to teach or to forget.
        name: value of the state that the next pictures show, or to forget; empty: forget the state.
        examples: number of pictures to learn from.
        region: of the picture, left, top, right, bottom as fractions; None: that of the state.
        line: whose crossings are counted anew; empty: all of the stream.
    """

    verb: str
    stream: str = ""
    what: str = ""
    value: Value = None
    seconds: float = 0.0
    part: str = ""
    state: str = ""
    name: str = ""
    examples: int = 0
    region: Box | None = None
    line: str = ""


class _Body(Struct, frozen=True, forbid_unknown_fields=True):
    id: str = ""


class _Id(Struct, frozen=True):
    id: str = ""


class _OfStream(_Body, frozen=True, forbid_unknown_fields=True, kw_only=True):
    stream: str


class _Set(_OfStream, frozen=True, forbid_unknown_fields=True, kw_only=True):
    what: str
    value: Given


class _Record(_OfStream, frozen=True, forbid_unknown_fields=True, kw_only=True):
    seconds: Given


class _Trace(_Body, frozen=True, forbid_unknown_fields=True, kw_only=True):
    seconds: Given


class _Inspect(_OfStream, frozen=True, forbid_unknown_fields=True, kw_only=True):
    part: str = ""


class _Reset(_OfStream, frozen=True, forbid_unknown_fields=True, kw_only=True):
    line: str = ""


class _Teach(_OfStream, frozen=True, forbid_unknown_fields=True, kw_only=True):
    state: str
    value: str
    examples: int = EXAMPLES
    region: Box | None = None


class _Forget(_OfStream, frozen=True, forbid_unknown_fields=True, kw_only=True):
    state: str
    value: str = ""


def quoted(text: str) -> str:
    """Return a stranger's text for people and logs: in quotes, short, without control characters."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


def set_command(stream: str, what: str, payload: bytes) -> Command:
    """Return the command of a message on `<stream>/set/<what>`, or raise CommandError."""
    try:
        text = payload.decode().strip()
    except UnicodeDecodeError:
        raise CommandError(f"{quoted(what)}: the payload is not UTF-8") from None
    if len(text) > _LONGEST:
        raise CommandError(f"{quoted(what)}: {len(text)} characters are no value")
    row = _COMMANDS.get(what)
    if row is None or row.from_text is None:
        return _setting(stream, what, text)
    return _command(what, row, row.body(**{"stream": stream, **row.from_text(text)}))


def request_command(verb: str, payload: bytes) -> tuple[Command, str]:
    """Return the command of a message on `cmd/<verb>`, and its `id`, or raise CommandError."""
    row = _COMMANDS.get(verb)
    if row is None:
        raise CommandError(f"no command {quoted(verb)}; there are: {', '.join(_COMMANDS)}")
    try:
        body = from_json(payload.strip() or b"{}", row.body)
    except NO_JSON as error:
        raise CommandError(f"{verb}: {_describe(error)}") from None
    for name, text in structs.asdict(body).items():
        if isinstance(text, str) and len(text) > _LONGEST:
            raise CommandError(f"{verb}: `{name}` has {len(text)} characters, at most {_LONGEST} are taken")
    return _command(verb, row, body), body.id


def id_of(payload: bytes) -> str:
    """Return the `id` of a request that is refused; empty: it has none that can be sent back."""
    try:
        name = from_json(payload, _Id).id
    except NO_JSON:
        return ""
    return name if len(name) <= _LONGEST else ""


def _describe(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "the JSON is nested too deeply"
    if not isinstance(error, msgspec.MsgspecError):
        return "the payload is not UTF-8"  # or has far too many digits
    return plain(plain_fault(str(error))[:_LONGEST])  # it quotes a stranger's keys


def _command(verb: str, row: _Row, body: _Body) -> Command:
    return Command(verb, **row.read({key: value for key, value in structs.asdict(body).items() if key != "id"}))


def _read_set(body: Fields) -> Fields:
    command = _setting(body["stream"], body["what"], body["value"])
    return {"stream": command.stream, "what": command.what, "value": command.value}


def _setting(stream: str, what: str, given: Given) -> Command:
    kind, _, name = what.partition("/")
    read = _READERS.get(kind if name and kind in _NAMED else what if what not in _NAMED else "")
    if read is None:
        known = ", ".join(f"{name}/NAME" if name in _NAMED else name for name in _READERS)
        raise CommandError(f"{quoted(what)} cannot be set; there are: {known}")
    if given is None or given == DEFAULT:
        return Command("set", stream, what)
    return Command("set", stream, what, read(given, what))


def _switch(given: Given, what: str) -> bool:
    words = {"on": True, "off": False}
    if isinstance(given, bool):
        return given
    if isinstance(given, str) and given.lower() in words:
        return words[given.lower()]
    raise CommandError(f"{quoted(what)} is on or off, not {_shown(given)}")


def _share(given: Given, what: str) -> float:
    number = _number(given)
    if number is None or not 0.0 <= number <= 1.0:
        raise CommandError(f"{what} is a number from 0 to 1, not {_shown(given)}")
    return number + 0.0  # of -0.0, too


def _name(given: Given, what: str) -> str:
    if not isinstance(given, str) or not given:
        raise CommandError(f"{what} is the name of one, or auto, not {_shown(given)}")
    return given


def _seconds(given: Given, verb: str, least: float, most: float) -> float:
    number = _number(given)
    if number is None or not least <= number <= most:
        raise CommandError(f"{verb} takes {least:.0f} to {most:.0f} seconds, not {_shown(given)}")
    return number


def _printable(text: str) -> str:
    if not text.strip().isprintable():
        raise CommandError(f"inspect: the id of a part has only printable characters, not {quoted(text)}")
    return text.strip()


def _line_of(text: str) -> Fields:
    if not text:
        raise CommandError(f"reset takes the name of a line, or {ALL}, not nothing")
    return {"line": text}


def _state_of(text: str) -> Fields:
    state, _, value = text.partition("=")
    return {"state": state, "value": value}


def _renamed(body: Fields) -> Fields:
    return {"name" if key == "value" else key: value for key, value in body.items()}


def _shown(given: Given) -> str:
    """Return a value for people, as it is written in JSON; a text in quotes."""
    if given is None:
        return "null"
    if isinstance(given, bool):
        return str(given).lower()
    return quoted(given) if isinstance(given, str) else str(given)[:_SHOWN]


def _number(given: Given) -> float | None:
    """Return a number as JSON knows them, without NaN, infinity or underscores; None: it is not one."""
    if isinstance(given, str):
        try:
            given = from_json(given.encode(), float)
        except (msgspec.MsgspecError, ValueError):
            return None
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        return None
    try:
        number = float(given)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


_READERS: Mapping[str, Callable[[Given, str], Value]] = {
    "enabled": _switch,
    "threshold": _share,
    "variant": _name,
    ONLY_MOVING: _switch,
    MOTION_MASKS: _switch,
    "zone": _switch,
    "line": _switch,
    "filter": _switch,
}
_NAMED = ("zone", "line", "filter")
"""Settings that each zone, line or filter has."""


class _Row(Struct, frozen=True):
    """A command: the request on `cmd/<verb>`, and what becomes of it.

    Attributes:
        body: JSON of the request.
        read: returns the fields of a `Command` from those of the body, or raises CommandError.
        from_text: returns fields of the body from the text of a message on `<stream>/set/<verb>`; None: it has no
            such form.
    """

    body: type[_Body]
    read: Callable[[Fields], Fields] = dict
    from_text: Callable[[str], Fields] | None = None


_COMMANDS: Mapping[str, _Row] = {
    "set": _Row(_Set, _read_set),
    "snapshot": _Row(_OfStream, from_text=lambda _: {}),
    "record": _Row(
        _Record,
        lambda body: {**body, "seconds": _seconds(body["seconds"], "record", 1.0, LONGEST_RECORD_S)},
        lambda text: {"seconds": text},
    ),
    "inspect": _Row(
        _Inspect, lambda body: {**body, "part": _printable(body["part"])}, lambda text: {"part": text}
    ),
    "accept": _Row(_OfStream, from_text=lambda _: {}),
    "reset": _Row(_Reset, lambda body: {**body, "line": "" if body["line"] == ALL else body["line"]}, _line_of),
    "teach": _Row(_Teach, _renamed, _state_of),
    "forget": _Row(_Forget, _renamed, _state_of),
    "reload": _Row(_Body),
    "doctor": _Row(_Body),
    "status": _Row(_Body),
    "trace": _Row(_Trace, lambda body: {"seconds": _seconds(body["seconds"], "trace", 0.0, LONGEST_TRACE_S)}),
}
"""All commands by verb. A new one is a row here, with its body; `CommandHandler` or a feature executes it."""
VERBS = tuple(_COMMANDS)


def check_answer_topic(topic: str, topics: Topics, verb: str) -> None:
    """Raise CommandError for a response topic where a reply would command a device or pass for its messages."""
    own = topics.answer(verb or "set")
    if topic == own or topic.startswith(f"{own}/"):
        inside = False
    else:
        inside = topic.startswith((f"{topics.prefix}/", *_OTHERS)) or topic == topics.prefix
    if not topic or inside or len(topic) > 10 * _LONGEST or set(topic) & set("+#\0"):
        raise CommandError(
            f"no answer is sent to {quoted(topic)}; use one beneath {own}/, or outside of {topics.prefix}/"
        )


_WAITING_MAX = 64
_REMEMBERED = 128
"""Most requests whose repetition is recognised."""
_RETAINED_LOGGED = 64
"""Topics of retained commands that are logged, each once."""
_CORRELATION_MAX = 1024

Answer = Callable[[str, bytes, bytes], None]
"""Function that sends a payload with correlation data to a topic."""
_Mark = tuple[str, str, bytes, str, bytes]


class Request(Struct, frozen=True):
    """A request that waits to be executed.

    Attributes:
        command: to execute; None: the request is refused.
        refusal: why.
        place: stream and setting of a message on `set/…`; both empty for one on `cmd/…`.
        answer_to: topic of the answer; empty: none is expected.
        correlation, id: returned with the answer, so that its receiver recognises it.
        mark: by which a repetition is recognised; None: it is not.
    """

    command: Command | None
    refusal: str
    place: tuple[str, str]
    answer_to: str
    correlation: bytes
    id: str = ""
    mark: _Mark | None = None


class Requests:
    """Queue of waiting requests. Call `receive` from the connection's thread; the rest from any thread."""

    def __init__(
        self, topics: Topics, answer: Answer, wake: Callable[[], None], remembered_s: float = 60.0
    ) -> None:
        """Queue nothing yet. The repetition of a request is recognised for `remembered_s`, s."""
        self._topics, self._answer, self._wake = topics, answer, wake
        self._remembered_s = remembered_s
        self._waiting: deque[Request] = deque()
        self._known: OrderedDict[_Mark, tuple[float, bytes]] = OrderedDict()
        self._lock = threading.Lock()
        self._logged: set[str] = set()

    def receive(self, received: IncomingMessage) -> None:
        """Queue a message on one of the device's command topics, or refuse it."""
        addressed = self._topics.addressed(received.topic)
        if addressed is None:
            return
        if received.retained:
            if received.payload:  # else it deletes a retained one
                self._refuse_retained(received.topic)
            return
        if not received.payload and received.topic in self._logged:  # deletes it, under MQTT 3.1.1
            self._logged.discard(received.topic)
            return
        request = self._request(received, addressed)
        if request.mark is not None and self._is_repeated(request, request.mark):
            return
        if len(self._waiting) >= _WAITING_MAX:
            self.answer(request, ok=False, reason="too many commands wait; try again later")
            return
        self._waiting.append(request)
        self._wake()

    def next(self) -> Request | None:
        """Remove and return the oldest request; None: none waits."""
        try:
            return self._waiting.popleft()
        except IndexError:
            return None

    def answer(
        self, request: Request, *, ok: bool, reason: str = "", more: Mapping[str, Any] | None = None
    ) -> None:
        """Answer a request; `reason` says why it was not executed, or is a remark. `more` has further keys."""
        body = {"ok": ok, "reason": reason, **({"id": request.id} if request.id else {}), **(more or {})}
        payload = msgspec.json.encode(body)
        if request.mark is not None:
            with self._lock:
                if request.mark in self._known:
                    self._known[request.mark] = time.monotonic(), payload
        if request.answer_to:
            self._answer(request.answer_to, payload, request.correlation)

    def _request(self, received: IncomingMessage, addressed: Addressed) -> Request:
        stream, what = addressed.stream, addressed.what
        place = ("", "") if stream is None else (stream, what)
        # A setting by a plain message shows in its state topic; only a request has an answer by default.
        usual = self._topics.answer(what) if stream is None else ""
        is_long = len(received.correlation) > _CORRELATION_MAX
        answer_to, correlation, name = usual, b"" if is_long else received.correlation, ""
        try:
            if received.response_topic:
                check_answer_topic(received.response_topic, self._topics, what if stream is None else "set")
                answer_to = received.response_topic
            if is_long:
                raise CommandError(f"more than {_CORRELATION_MAX} bytes of correlation data")
            if stream is None:
                command, name = request_command(what, received.payload)
            else:
                command = set_command(stream, what, received.payload)
        except CommandError as error:
            name = id_of(received.payload) if stream is None else ""
            return Request(None, str(error), place, answer_to, correlation, name)
        is_known = bool(correlation or name)
        mark = (received.topic, answer_to, correlation, name, received.payload) if is_known else None
        return Request(command, "", place, answer_to, correlation, name, mark)

    def _is_repeated(self, request: Request, mark: _Mark) -> bool:
        """Return True if the request was received before; if it has been answered, send that answer again."""
        now = time.monotonic()
        with self._lock:
            at, answer = self._known.get(mark, (-math.inf, b""))
            if now - at < self._remembered_s:
                if answer and request.answer_to:
                    self._answer(request.answer_to, answer, request.correlation)
                return True
            self._known[mark] = now, b""
            self._known.move_to_end(mark)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
            return False

    def _refuse_retained(self, topic: str) -> None:
        if topic not in self._logged and len(self._logged) < _RETAINED_LOGGED:
            self._logged.add(topic)
            log.warning(
                "command refused: %s is retained by the broker, and would be executed at every start; "
                "delete it: mosquitto_pub -r -n -t TOPIC",
                quoted(topic),
            )
