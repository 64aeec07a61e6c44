"""JSON Schema of configuration and manifest files; each key is described by its struct's docstring."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

_HEAD = "Attributes:"
_ENTRY = re.compile(r"    (\w+(?:, \w+)*): (.*)")
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def config_schema() -> dict[str, Any]:
    """Return the schema of `vedette.toml`; every key has a `description`."""
    from agent.config import Config

    return _schema("Vedette configuration", Config)


def manifest_schema() -> dict[str, Any]:
    """Return the schema of a model's manifest, with the options of every decoder and front end."""
    from agent.compute.decode import decoder
    from agent.compute.infer import audio_input
    from agent.compute.manifest import Manifest

    decoders = {name: decoder.options_kind(name) for name in decoder.DECODERS}
    frontends = {name: audio_input.options_kind(name) for name in audio_input.FRONTENDS}
    made = _schema("Vedette model manifest", Manifest, *decoders.values(), *frontends.values())
    output, audio = made["$defs"]["OutputManifest"], made["$defs"]["AudioManifest"]
    labels = output["properties"]["labels"]
    file = {"type": "string", "description": "a text file beside the manifest, one label a line"}
    output["properties"]["labels"] = {
        "description": labels.pop("description"),
        "default": labels.pop("default"),
        "anyOf": [labels, file],
    }
    output["properties"]["decoder"]["enum"] = ["", *decoders]
    output["allOf"] = list(_options_by("decoder", decoders))
    audio["properties"]["frontend"]["enum"] = list(frontends)
    audio["allOf"] = list(_options_by("frontend", frontends))
    return made


def _options_by(key: str, kinds: Mapping[str, type[Struct]]) -> Iterator[dict[str, Any]]:
    """Yield a rule for each name: where `key` has it, `options` is that name's struct."""
    for name, kind in kinds.items():
        yield {
            "if": {"properties": {key: {"const": name}}, "required": [key]},
            "then": {"properties": {"options": {"$ref": f"#/$defs/{kind.__name__}"}}},
        }


def _schema(title: str, root: type[Struct], *others: type[Struct]) -> dict[str, Any]:
    (top, *_), definitions = msgspec.json.schema_components((root, *others), ref_template="#/$defs/{name}")
    structs = structs_by_name()
    for name, table in definitions.items():
        table["description"], texts = described(structs[name])
        for key, text in texts.items():
            table["properties"][key]["description"] = text
    return {"$schema": _DIALECT, "title": title, **top, "$defs": definitions}


def structs_by_name() -> dict[str, type[Struct]]:
    """Return every struct of this program that has been imported."""

    def below(kind: type[Struct]) -> Iterator[type[Struct]]:
        for inner in kind.__subclasses__():
            yield inner
            yield from below(inner)

    return {kind.__name__: kind for kind in below(Struct) if kind.__module__.startswith("agent.")}


def described(struct: type[Struct]) -> tuple[str, dict[str, str]]:
    """Read a struct's docstring, and those of the structs that it extends.

    Returns:
        The description of the struct, and of each field by name; fields that share an entry share its text.
    """
    texts: dict[str, str] = {}
    for kind in reversed(struct.__mro__):
        if issubclass(kind, Struct) and kind is not Struct:
            texts |= _entries((inspect.cleandoc(kind.__doc__ or "")).partition(f"\n{_HEAD}\n")[2])
    about = (inspect.getdoc(struct) or "").partition(f"\n{_HEAD}\n")[0]
    return " ".join(about.split()), texts


def _entries(attributes: str) -> dict[str, str]:
    texts: dict[str, str] = {}
    keys: list[str] = []
    for line in attributes.splitlines():
        if (entry := _ENTRY.fullmatch(line)) is not None:
            keys = entry[1].split(", ")
            texts |= dict.fromkeys(keys, entry[2])
        elif line.strip():
            texts |= {key: f"{texts[key]} {line.strip()}" for key in keys}
    return texts
