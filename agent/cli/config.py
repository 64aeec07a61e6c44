"""`vedette config`: check, show, describe."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.options import DEFAULT_CONFIG
from agent.cli.output import print_json
from agent.errors import StorageError
from agent.text import plain

if TYPE_CHECKING:
    from msgspec import Struct

    from agent.config import Config
    from agent.structs import Keys


_FILE = click.argument("file", type=click.Path(path_type=Path), default=DEFAULT_CONFIG)


@click.group()
def config() -> None:
    """Check, show or describe the configuration."""


@config.command()
@_FILE
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Also list the keys that take effect only after a restart.")
def check(file: Path, as_json: bool, verbose: bool) -> None:
    """Check FILE and its models. Exits with 1 on any error.

    Opens the model of every stream, and sources that are files or folders; no camera, microphone or broker.
    """
    from agent.config.load import RESTART, RULE, names
    from agent.daemon.check import can_start, problems, remarks, warnings

    found, unwise = problems(file), warnings(file)
    if as_json:
        verdict: dict[str, Any] = {
            "file": str(file),
            "ok": not found,
            "loads": not found or can_start(file),
            "problems": found,
        }
        verdict["warnings"] = unwise
        verdict["wait_for_restart"] = names(RESTART)
        verdict["remarks"] = [] if found else remarks(file)
        print_json(verdict)
    else:
        for problem in found:
            click.echo(plain(problem), err=True)
        for warning in unwise:
            click.echo(f"warning: {plain(warning)}", err=True)
        if not found:
            click.echo(plain(f"{file}: fine\n{RULE}" if verbose else f"{file}: fine", keep="\n"))
            for remark in remarks(file):
                click.echo(plain(remark), err=True)
    sys.exit(bool(found))


@config.command()
@_FILE
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of TOML.")
@click.option("--secrets", is_flag=True, help="Show passwords and keys in the sources' URIs.")
def show(file: Path, as_json: bool, secrets: bool) -> None:
    """Print the configuration in effect: FILE with defaults, board profile and commands filled in.

    What is left to a model, such as thresholds, `vedette models inspect` shows.
    The URI of a network source may hold a password, so only its host is shown. Only with --secrets can the
    output replace FILE.
    """
    from agent.config.load import dump, load

    read = load(file)
    used, by_command = _with_overrides(read.config)
    shown = used if secrets else masked(used)
    if as_json:
        print_json(shown)
    else:
        remarks = {**read.remarks(), **by_command, **_hidden(used, shown)}
        click.echo(dump(shown, {keys: plain(remark) for keys, remark in remarks.items()}), nl=False)


def _with_overrides(config: Config) -> tuple[Config, dict[Keys, str]]:
    """Apply the overrides that commands have set on this board. Return also a remark for each."""
    from agent.daemon.overrides import OverridesFile
    from agent.storage.state import folder_of

    try:
        found = OverridesFile(folder_of(config.storage, Path("/"))).read()
    except StorageError as error:
        click.echo(f"settings made by commands are not shown: {plain(str(error))}", err=True)
        return config, {}
    kept, _ = found.still_valid(config)
    return kept.apply_to(config), kept.remarks(config)


@config.command()
def schema() -> None:
    """Print the JSON Schema of the configuration, with a description of every key, for editors."""
    print_json(config_schema(), indent=2)


def masked(config: Config) -> Config:
    """Return the configuration with the URIs of sources as the log shows them: of network sources only the host.

    A password in an address at any other key is masked, too.
    """
    from msgspec.structs import replace

    from agent.comms.mqtt.endpoint import shown_host
    from agent.config.source_uri import mask

    found: Config = _without_logins(config)
    streams = {
        name: replace(stream, source=mask(config.streams[name].source)) for name, stream in found.streams.items()
    }
    mqtt = replace(found.mqtt, host=shown_host(config.mqtt.host))
    return replace(found, streams=streams, mqtt=mqtt)


def _without_logins(value: Any) -> Any:
    from msgspec import Struct
    from msgspec.structs import replace

    from agent.text import without_login

    if isinstance(value, Struct):
        return replace(value, **{name: _without_logins(getattr(value, name)) for name in value.__struct_fields__})
    if isinstance(value, dict):
        return {key: _without_logins(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_without_logins, value))
    return without_login(value) if isinstance(value, str) else value


def _hidden(config: Config, shown: Config) -> dict[Keys, str]:
    """Return a remark for each source whose URI is masked."""
    return {
        ("streams", name, "source"): "only the host; --secrets shows the whole URI"
        for name, stream in config.streams.items()
        if stream.source != shown.streams[name].source
    }


_HEAD = "Attributes:"
_ENTRY = re.compile(r"    (\w+(?:, \w+)*): (.*)")
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def config_schema() -> dict[str, Any]:
    """Return the schema of `vedette.toml`; every key has a `description`."""
    from agent.config import Config

    return _schema("Vedette configuration", Config)


def manifest_schema() -> dict[str, Any]:
    """Return the schema of a model's manifest, with the options of every decoder and front end."""
    from agent.compute import decode
    from agent.compute.infer import audio_input
    from agent.compute.manifest import FEATURES, Manifest

    decoders = {name: decode.options_kind(name) for name in (*decode.DECODERS, FEATURES)}
    frontends = {name: kind for name, (kind, _) in audio_input.BUILDERS.items()}
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
    import msgspec

    (top, *_), definitions = msgspec.json.schema_components((root, *others), ref_template="#/$defs/{name}")
    structs = structs_by_name()
    for name, table in definitions.items():
        table["description"], texts = described(structs[name])
        for key, text in texts.items():
            table["properties"][key]["description"] = text
    return {"$schema": _DIALECT, "title": title, **top, "$defs": definitions}


def structs_by_name() -> dict[str, type[Struct]]:
    """Return every struct of this program that has been imported."""
    from msgspec import Struct

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
    from msgspec import Struct

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
