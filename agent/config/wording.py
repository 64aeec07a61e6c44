"""Words for what is wrong with the keys and values of a file; loaded when something is."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Struct

from agent.structs import Keys, dotted
from agent.text import without_login

_LONGEST = 80
"""Most characters of a wrong value that a message quotes."""
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "date": "a date",
    "time": "a time",
    "datetime": "a date with time",
    "null": "nothing",
}
"""Words for the types in msgspec's messages."""
_TYPE = re.compile(r"(Expected |, got )`?([a-z |]+)`?")


SYNONYMS = {
    "threshold": "decode.score_threshold",
    "confidence": "decode.score_threshold",
    "iou": "decode.iou_threshold",
    "labels": "decode.labels",
    "classes": "decode.labels",
    "fps": "capture.max_fps",
    "snapshots": "publish.snapshot",
    "recording": "clips.record",
    "url": "source",
    "camera": "source",
    "cameras": "streams",
    "broker": "host",
    "server": "host",
    "topic": "prefix",
    "coral": "edgetpu",
    "tpu": "edgetpu",
    "human": "person",
    "people": "person",
    "bike": "bicycle",
    "motorbike": "motorcycle",
}
"""Key, backend or label that is meant by a word that people write; a dotted one is a key of a table."""
_KNOWN_SHOWN = 40
_LIKE = 0.72
"""Least likeness of a name that is proposed: `hots` and `host` have 0.75, `record` and `decode` 0.67."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?` if a known name is meant or close, in any case, else the known names."""
    names = sorted(known)
    if not names:
        return "; no key is known there"
    meant = SYNONYMS.get(name.lower(), "")
    table, _, key = meant.rpartition(".")
    if key in names:
        meant = key
    elif not table or "source" not in names:  # dotted keys are those of a stream
        by_lower = {one.lower(): one for one in names}
        close = difflib.get_close_matches(name.lower(), by_lower, 1, _LIKE)
        close += [one for one in by_lower if one.startswith(name.lower())]
        meant = by_lower[close[0]] if close else ""
    more = " …" if names[_KNOWN_SHOWN:] else ""
    return f"; did you mean {meant!r}?" if meant else f"; known: {', '.join(names[:_KNOWN_SHOWN])}{more}"


def unknown_key(keys: Keys, fields: Mapping[str, Any]) -> str:
    """Return what is wrong with an unknown key: the same key of another table, or the nearest, is proposed."""
    key = str(keys[-1])
    elsewhere = [f"{table}.{key}" for table, kind in fields.items() if key in _names(kind)]
    is_plain = len(elsewhere) == 1 and key not in SYNONYMS
    proposal = f"; did you mean {elsewhere[0]!r}?" if is_plain else nearest(key, fields)
    return f"unknown key `{dotted(keys)}`{proposal}"


def _names(kind: Any) -> Iterator[str]:
    """Yield the keys of a table, or of one that may be left out."""
    for one in _kinds(kind):
        if isinstance(one, type) and issubclass(one, Struct):
            yield from one.__struct_fields__


def in_words(what: str, data: Any, kind: Any, steps: Sequence[str]) -> str:
    """Describe a wrong value, with the possible values or characters if those are known.

    Args:
        what: msgspec's message.
        data: that was checked.
        kind: type of `data`.
        steps: path from `data` to the value: keys, indices, and `...` for any key of a mapping.
    """
    for step in steps:
        data, kind = _inner(data, step), _kind_inside(kind, step)
    kinds = _kinds(kind)
    choices = [str(choice) for one in kinds if get_origin(one) is Literal for choice in get_args(one)]
    if choices and isinstance(data, str | dict):
        return f"expected one of {', '.join(choices)}{_shown(data)}"
    if "matching regex" in what:
        hints = [meta.extra["use"] for one in kinds for meta in getattr(one, "__metadata__", ()) if meta.extra]
        return f"{''.join(hints[:1]) or plain_fault(what)}{_shown(data)}"
    return plain_fault(what) + (_shown(data) if what.startswith("Expected") and ", got " not in what else "")


def plain_fault(what: str) -> str:
    """Return msgspec's message about a wrong value without the names of Python's types.

    For example, ``Expected `int`, got `str` `` becomes `expected a whole number; found text`.
    """
    what = what.replace("Object missing required field", "missing key")
    what = what.replace("Object contains unknown field", "unknown key")
    what = _TYPE.sub(lambda found: f"{found[1]}{_type_names(found[2])}", what).replace(", got ", "; found ")
    return what if what[1:2].isupper() else f"{what[:1].lower()}{what[1:]}"


def _type_names(types: str) -> str:
    return " or ".join(_TYPES.get(one, one) for one in types.split(" | ") if one != "null" or types == "null")


def _shown(data: Any) -> str:
    """Quote the value that was found, if it fits in a line."""
    if isinstance(data, str):
        return f"; found {without_login(data)[:_LONGEST]!r}"
    if isinstance(data, int | float):
        return f"; found {str(data)[:_LONGEST]}"
    return "; found a table" if isinstance(data, dict) else ""


def _inner(data: Any, step: str) -> Any:
    """Return an element of a list or a table, or None if its key is unknown."""
    if isinstance(data, list) and step.isdigit():
        return data[int(step)]
    return data.get(step) if isinstance(data, dict) else None


def _kinds(kind: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the one type."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _kind_inside(kind: Any, step: str) -> Any:
    """Return the type of an element or a field, or None if it is unknown."""
    for one in _kinds(kind):
        arguments = get_args(one)
        if step == "..." and get_origin(one) is dict:
            return arguments[1]
        if step.isdigit() and get_origin(one) is tuple:
            return arguments[0] if arguments[-1] is ... else arguments[int(step)]
        if isinstance(one, type) and issubclass(one, Struct):
            fields = {field.encode_name: field.type for field in msgspec.structs.fields(one)}
            if step in fields:
                return fields[step]
    return None
