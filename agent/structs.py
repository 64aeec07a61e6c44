"""Conversion of data to structs, safe in several threads, and paths of keys in such data.

msgspec 0.22 prepares a type when it first meets it, and reads annotations meanwhile, which is Python. A second
thread that meets the same type then uses what is half prepared, and the process ends with SIGSEGV. Here types are
prepared one at a time; what is prepared may be used by any thread.
"""

from __future__ import annotations

import os
import threading
from typing import Any, TypeVar, overload

import msgspec

T = TypeVar("T")
Keys = tuple[str | int, ...]
"""Path of a value: names of keys, and numbers in lists."""

_turn = threading.Lock()
_prepared: set[Any] = set()
# A process that is forked meanwhile would have the lock taken, and a half-prepared type.
os.register_at_fork(before=_turn.acquire, after_in_parent=_turn.release, after_in_child=_turn.release)


def _prepare(kind: Any) -> None:
    if kind not in _prepared:
        with _turn:
            msgspec.json.Decoder(kind)
            _prepared.add(kind)


@overload
def convert(data: Any, kind: type[T], *, strict: bool = True) -> T: ...
@overload
def convert(data: Any, kind: Any, *, strict: bool = True) -> Any: ...
def convert(data: Any, kind: Any, *, strict: bool = True) -> Any:
    """Return data of built-in types as `kind`, see `msgspec.convert`.

    Args:
        data: to be converted.
        kind: any type that msgspec knows; a union or alias, too.
        strict: refuse numbers that are given as text.

    Raises:
        msgspec.ValidationError: the data does not match.
    """
    _prepare(kind)
    return msgspec.convert(data, kind, strict=strict)


@overload
def from_json(data: bytes | bytearray | str, kind: type[T]) -> T: ...
@overload
def from_json(data: bytes | bytearray | str, kind: Any) -> Any: ...
def from_json(data: bytes | bytearray | str, kind: Any) -> Any:
    """Return JSON as `kind`, see `msgspec.json.decode`.

    Raises:
        msgspec.DecodeError: it is no JSON.
        msgspec.ValidationError: it does not match.
    """
    _prepare(kind)
    return msgspec.json.decode(data, type=kind)


@overload
def from_msgpack(data: bytes, kind: type[T]) -> T: ...
@overload
def from_msgpack(data: bytes, kind: Any) -> Any: ...
def from_msgpack(data: bytes, kind: Any) -> Any:
    """Return MessagePack as `kind`, see `msgspec.msgpack.decode`.

    Raises:
        msgspec.DecodeError: it is no MessagePack.
        msgspec.ValidationError: it does not match.
    """
    _prepare(kind)
    return msgspec.msgpack.decode(data, type=kind)


@overload
def json_decoder(kind: type[T]) -> msgspec.json.Decoder[T]: ...
@overload
def json_decoder(kind: Any) -> msgspec.json.Decoder[Any]: ...
def json_decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    """Return a decoder of JSON to `kind`, for what is decoded often."""
    _prepare(kind)
    return msgspec.json.Decoder(kind)


def dotted(keys: Keys) -> str:
    """Return a path of keys as people write it, such as `streams.front.zones[0].name`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")
