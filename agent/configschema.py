"""The JSON Schema of the configuration, with what the structs' docstrings say of each key: for editors."""

from __future__ import annotations

import inspect
import re
from typing import Any

import msgspec
from msgspec import Struct

from agent import config

_HEAD = "Attributes:"
_ENTRY = re.compile(r"    (\w+(?:, \w+)*): (.*)")


def schema() -> dict[str, Any]:
    """The schema; every key has a `description`."""
    made = msgspec.json.schema(config.Config)
    for name, room in made["$defs"].items():
        struct = getattr(config, name, None)
        if not (inspect.isclass(struct) and issubclass(struct, Struct)):
            continue
        about, told = described(struct)
        room["description"] = about
        for key, text in told.items():
            room["properties"][key]["description"] = text
    return made


def described(struct: type[Struct]) -> tuple[str, dict[str, str]]:
    """What a docstring says of a struct, and of each of its fields; several that share an entry have the same."""
    about, _, attributes = (inspect.getdoc(struct) or "").partition(f"\n{_HEAD}\n")
    told: dict[str, str] = {}
    keys: list[str] = []
    for line in attributes.splitlines():
        if (entry := _ENTRY.fullmatch(line)) is not None:
            keys = entry[1].split(", ")
            told |= dict.fromkeys(keys, entry[2])
        elif line.strip():
            told |= {key: f"{told[key]} {line.strip()}" for key in keys}
    return " ".join(about.split()), told
