"""Commands as strangers send them: topics and payloads in, commands or refusals in plain words out. No I/O.

A command is well-formed here; whether there is such a stream, zone or variant, only the house knows.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct

from agent.comms.topics import Topics
from agent.errors import CommandError
from agent.text import plain

Verb = Literal["set", "snapshot", "record", "reload", "doctor", "status"]
Value = bool | float | str | None
Given = bool | int | float | str | None

ZONE = "zone/"
DEFAULT = "default"
"""As a value: what the configuration file says."""
LONGEST_RECORD_S = 600.0
_LONGEST = 128
"""Characters of a name, a value or an id."""
_SHOWN = 40
_OTHERS = ("$", "homeassistant/")
"""Beginnings of topics that mean something to others: nobody may have us write there."""


class Command(Struct, frozen=True):
    """Describe one command to carry out.

    Attributes:
        verb: see the guide page `commands`.
        stream: the stream that the command concerns; empty: the device.
        what: the setting to change: `enabled`, `threshold`, `variant` or `zone/NAME`.
        value: the new value: on or off as a truth value, a number or a name; None: what the file says.
        seconds: length of the recording.
    """

    verb: Verb
    stream: str = ""
    what: str = ""
    value: Value = None
    seconds: float = 0.0


class _Body(Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON of a request."""

    id: str = ""


class _Id(Struct, frozen=True):
    """Read only the id of a request that is refused, for the answer."""

    id: str = ""


class _OfStream(_Body, frozen=True, forbid_unknown_fields=True, kw_only=True):
    stream: str


class _Set(_OfStream, frozen=True, forbid_unknown_fields=True, kw_only=True):
    what: str
    value: Given


class _Record(_OfStream, frozen=True, forbid_unknown_fields=True, kw_only=True):
    seconds: Given


_BODIES: Mapping[str, type[_Body]] = {
    "set": _Set,
    "snapshot": _OfStream,
    "record": _Record,
    "reload": _Body,
    "doctor": _Body,
    "status": _Body,
}


def shown(text: str) -> str:
    """A stranger's text for people and logs: in quotes, short, without control characters."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


def shown_payload(payload: bytes) -> str:
    """A stranger's payload for people and logs, see `shown`."""
    return shown(payload[: 4 * _SHOWN].decode(errors="replace"))


def set_command(stream: str, what: str, payload: bytes) -> Command:
    """The command of a message on `<stream>/set/<what>`.

    Raises:
        CommandError: it is none, with the reason.
    """
    try:
        text = payload.decode().strip()
    except UnicodeDecodeError:
        raise CommandError(f"{shown(what)}: the payload is not UTF-8") from None
    if len(text) > _LONGEST:
        raise CommandError(f"{shown(what)}: {len(text)} characters are no value")
    if what == "snapshot":
        return Command("snapshot", stream)
    if what == "record":
        return Command("record", stream, seconds=_seconds(text))
    return _setting(stream, what, text)


def request_command(verb: str, payload: bytes) -> tuple[Command, str]:
    """The command of a message on `cmd/<verb>`, and its `id`.

    Raises:
        CommandError: it is none, with the reason.
    """
    kind = _BODIES.get(verb)
    if kind is None:
        raise CommandError(f"no command {shown(verb)}; there are: {', '.join(_BODIES)}")
    body = _decoded(verb, payload, kind)
    return _command(verb, body), body.id


def id_of(payload: bytes) -> str:
    """The `id` of a request that may be refused for something else; empty: it has none that can be sent back."""
    try:
        name = msgspec.json.decode(payload, type=_Id).id
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ""
    return name if len(name) <= _LONGEST else ""


def _decoded(verb: str, payload: bytes, kind: type[_Body]) -> _Body:
    try:
        body = msgspec.json.decode(payload.strip() or b"{}", type=kind)
    except RecursionError:
        raise CommandError(f"{verb}: the JSON is nested too deeply") from None
    except (msgspec.MsgspecError, ValueError) as error:  # a ValueError: not UTF-8, or far too many digits
        raise CommandError(f"{verb}: {_in_words(error)}") from None
    for name in ("id", "stream", "what", "value"):
        if isinstance(text := getattr(body, name, None), str) and len(text) > _LONGEST:
            raise CommandError(f"{verb}: `{name}` has {len(text)} characters, at most {_LONGEST} are taken")
    return body


def _in_words(error: Exception) -> str:
    if not isinstance(error, msgspec.MsgspecError):
        return "the payload is not UTF-8"
    return plain(str(error)[:_LONGEST])  # it names a stranger's keys


def _command(verb: str, body: Any) -> Command:
    if isinstance(body, _Set):
        return _setting(body.stream, body.what, body.value)
    if isinstance(body, _Record):
        return Command("record", body.stream, seconds=_seconds(body.seconds))
    if isinstance(body, _OfStream):
        return Command("snapshot", body.stream)
    return Command(msgspec.convert(verb, Verb))


def _setting(stream: str, what: str, given: Given) -> Command:
    read = _READERS.get("zone" if what.startswith(ZONE) and len(what) > len(ZONE) else what)
    if read is None:
        if what == "rung":
            raise CommandError("'rung' is called 'variant' now: set that")
        known = ", ".join(name if name != "zone" else "zone/NAME" for name in _READERS)
        near = difflib.get_close_matches(what, _NEAR, 1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise CommandError(f"{shown(what)} cannot be set; {meant}there are: {known}")
    if given is None or given == DEFAULT:
        return Command("set", stream, what)
    return Command("set", stream, what, read(given, what))


def _switch(given: Given, what: str) -> bool:
    words = {"on": True, "off": False}
    if isinstance(given, bool):
        return given
    if isinstance(given, str) and given.lower() in words:
        return words[given.lower()]
    raise CommandError(f"{shown(what)} is on or off, not {shown(str(given))}")


def _share(given: Given, what: str) -> float:
    number = _number(given)
    if number is None or not 0.0 <= number <= 1.0:
        raise CommandError(f"{what} is a number from 0 to 1, not {shown(str(given))}")
    return number + 0.0  # of -0.0, too


def _name(given: Given, what: str) -> str:
    if not isinstance(given, str) or not given:
        raise CommandError(f"{what} is the name of one, or auto, not {shown(str(given))}")
    return given


def _seconds(given: Given) -> float:
    number = _number(given)
    if number is None or not 1.0 <= number <= LONGEST_RECORD_S:
        raise CommandError(f"record takes 1 to {LONGEST_RECORD_S:.0f} seconds, not {shown(str(given))}")
    return number


def _number(given: Given) -> float | None:
    """As JSON has numbers: no NaN, no infinity, no underscores; None: it is none."""
    if isinstance(given, str):
        try:
            given = msgspec.json.decode(given.encode(), type=float)
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
    "zone": _switch,
}
_NEAR = (*(name for name in _READERS if name != "zone"), "snapshot", "record")
"""Whole words that may have been meant."""


def check_answer_topic(topic: str, topics: Topics, verb: str) -> None:
    """Refuse to answer where an answer would do something: command a device, or speak in somebody's name.

    Args:
        topic: that the sender has named.
        topics: of this device.
        verb: that it answers; empty: a setting.

    Raises:
        CommandError: names what may be used.
    """
    own = topics.answer(verb or "set")
    if topic == own or topic.startswith(f"{own}/"):
        inside = False
    else:
        inside = topic.startswith((f"{topics.prefix}/", *_OTHERS)) or topic == topics.prefix
    if not topic or inside or len(topic) > 10 * _LONGEST or set(topic) & set("+#\0"):
        raise CommandError(f"no answer is sent to {shown(topic)}; take one beneath {own}/, or outside our topics")
