"""`bundle.toml`, the first member of a bundle: what it holds, for which boards, and when it is healthy."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from agent.errors import BundleError, reason_of

# The gates of a bundle: what it has to show on a board before it may stay there.

Seconds = Annotated[float, Meta(ge=0, le=86_400)]


class HealthGate(Struct, frozen=True, forbid_unknown_fields=True):
    """Conditions for the commit of a trial.

    Attributes:
        steady_s: so long every stream has to be well.
        within_s: after so long a trial that is not is rolled back.
        p95_factor: the 95th percentile of an inference may take so many times as long as before.
        p95_floor_ms: below this it is not looked at.
        memory_mb: that the daemon may take.
    """

    steady_s: Seconds = 60.0
    within_s: Seconds = 300.0
    p95_factor: Annotated[float, Meta(ge=1, le=100)] = 1.5
    p95_floor_ms: Annotated[float, Meta(ge=0, le=60_000)] = 5.0
    memory_mb: Annotated[float, Meta(gt=0, le=1_000_000)] = 400.0


class ShadowGate(Struct, frozen=True, forbid_unknown_fields=True):
    """Conditions for new models that run beside those in use.

    How long an inference may take is said by `HealthGate.p95_factor` and `p95_floor_ms`.

    Attributes:
        agreement: mean F1 of the new model's answers against those of the one in use, at least.
        compared: so many answers, in which either has found something, of each stream.
        every: of the pictures that are inferred, each so many-th is compared.
        within_s: after so long they are refused.
    """

    agreement: Annotated[float, Meta(ge=0, le=1)] = 0.9
    compared: Annotated[int, Meta(ge=1, le=1_000_000)] = 100
    every: Annotated[int, Meta(ge=1, le=10_000)] = 5
    within_s: Annotated[float, Meta(gt=0, le=604_800)] = 3600.0


NAME = "bundle.toml"
SCHEMA = 1
SIZE_MAX = 1 << 20
"""Largest `bundle.toml`, bytes: a file's entry takes 150."""
FILES_MAX = 4096
TOTAL_MAX = 2 << 30
"""Largest total size of all files, bytes."""
_LINE_MAX, _DOTS_MAX = 1024, 64
"""Limits of a line of `bundle.toml`, bytes and dots: tomllib's time grows with the square of a dotted
key's length."""

WORD = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}\Z"
PYTHON, GLIBC = r"^3\.[0-9]{1,2}\Z", r"^[0-9]{1,2}\.[0-9]{1,3}\Z"
_PATH = re.compile(r"(wheels|models|golden|config)/[A-Za-z0-9][A-Za-z0-9._+!-]{0,99}")
_KEY = r"^[A-Za-z0-9_*-]+(\.[A-Za-z0-9_*-]+)*\Z"
_AT = re.compile(r"^(?P<what>.*?)(?: - at `(?:key in )?\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)

Word = Annotated[str, Meta(pattern=WORD)]


class Target(Struct, frozen=True, forbid_unknown_fields=True):
    """Requirements for the board.

    Attributes:
        arch: as `uname -m` tells it.
        python: version of the interpreter that the wheels are for, such as `3.11`.
        glibc: at least.
        boards: names of board profiles; empty: any.
    """

    arch: Literal["aarch64", "x86_64", "armv7l"]
    python: Annotated[str, Meta(pattern=PYTHON)]
    glibc: Annotated[str, Meta(pattern=GLIBC)] = "2.34"
    boards: Annotated[list[Word], Meta(max_length=64)] = []


class Migration(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A change of the board's configuration that the new version needs.

    Attributes:
        op: what is done with the key.
        key: dotted, such as `streams.front.threads`.
        to: new name of a key that is renamed, dotted.
        value: of a key that is set.
    """

    op: Literal["rename", "set", "remove"]
    key: Annotated[str, Meta(pattern=_KEY, max_length=200)]
    to: Annotated[str, Meta(max_length=200)] = ""
    value: str | int | float | bool | None = None


class BundleFile(Struct, frozen=True, forbid_unknown_fields=True):
    """A file of a bundle.

    Attributes:
        sha256: hex digest.
        size: bytes.
    """

    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    size: Annotated[int, Meta(ge=0, le=TOTAL_MAX)]


class Description(Struct, frozen=True, forbid_unknown_fields=True):
    """Description of a bundle, `bundle.toml`.

    Attributes:
        schema: of this description; always `SCHEMA`.
        name: of what it brings, such as `vedette`.
        version: for people.
        counter: a board refuses one that is lower than its own.
        kind: `full`: a version of Vedette, with its dependencies; `models`: models only.
        target: None, only where it brings models: any board.
        health: see `HealthGate`.
        shadow: see `ShadowGate`; None: new models take the place of those in use at once.
        migrations: in the order in which they are applied.
        files: by path in the bundle: `wheels/…`, `models/…`, `golden/…`, `config/…`.
    """

    schema: int
    name: Word
    version: Word
    counter: Annotated[int, Meta(ge=1, le=2**53)]
    kind: Literal["full", "models"]
    target: Target | None = None
    health: HealthGate = HealthGate()
    shadow: ShadowGate | None = None
    migrations: Annotated[list[Migration], Meta(max_length=256)] = []
    files: Annotated[dict[str, BundleFile], Meta(max_length=FILES_MAX)] = {}

    def named(self, folder: str, ending: str) -> list[str]:
        """Paths of the files of a folder, such as `models`, that end so, sorted."""
        return sorted(path for path in self.files if path.startswith(f"{folder}/") and path.endswith(ending))

    @property
    def models(self) -> list[str]:
        """Names of its models: each has `models/NAME.tflite`, `models/NAME.toml` and `golden/NAME.npz`."""
        return [path.removeprefix("models/").removesuffix(".tflite") for path in self.named("models", ".tflite")]


def parse(data: bytes) -> Description:
    """Read `bundle.toml`.

    Raises:
        BundleError: it is not TOML, or a key is unknown, missing or wrong; the text names the key.
    """
    table = _toml(data)
    if (schema := table.get("schema", SCHEMA)) != SCHEMA or isinstance(schema, bool):
        raise BundleError(
            f"{NAME}: `schema`: expected {SCHEMA}, found {schema!r:.40}: made for another version of Vedette; "
            "update by a bundle that this one knows, or build it with this version"
        )
    files = table.get("files")
    for path, entry in files.items() if isinstance(files, dict) else ():
        _converted(entry, BundleFile, f'files."{path[:200]}"')
    description: Description = _converted(table, Description)
    check(description)
    return description


def render(description: Description) -> bytes:
    """Render `bundle.toml`, reproducibly.

    Raises:
        BundleError: see `check`.
    """
    import tomli_w

    description = _converted(msgspec.to_builtins(description), Description)  # 60 and 60.0 s are the same
    table = {key: value for key, value in msgspec.to_builtins(description).items() if value not in (None, [])}
    files = table.pop("files")
    rendered = tomli_w.dumps({**table, "files": dict(sorted(files.items()))}).encode()
    parse(rendered)  # what no board would read is not written
    return rendered


def check(description: Description) -> None:
    """Refuse a description whose parts do not fit together.

    Raises:
        BundleError: a path that is none of a bundle's, two that only case tells apart, too many bytes, a model
            without its manifest or its golden answers, a full bundle without a target or wheels, a migration
            with too much or too little.
    """
    for path in description.files:
        check_path(path, f"{NAME}: `files`")
    _check_together(description)
    _check_models(description)
    for number, migration in enumerate(description.migrations):
        _check_migration(migration, f"{NAME}: `migrations[{number}]`")


def check_path(path: str, where: str) -> None:
    """Refuse an invalid path of a file in a bundle.

    Args:
        path: in the bundle.
        where: it is said, or the file that is to be there.

    Raises:
        BundleError: says which letters it may have.
    """
    if not _PATH.fullmatch(path):
        raise BundleError(
            f"{where}: {path[:200]!r} is no path of a bundle: wheels/…, models/…, golden/…, config/…, and a name "
            "of at most 100 letters of A-Z, digits and ._+!-, a letter or digit first"
        )


def _check_together(description: Description) -> None:
    twins = [path for path, times in Counter(path.lower() for path in description.files).items() if times > 1]
    if twins:
        raise BundleError(f"{NAME}: `files`: {twins[0]!r} is there twice, told apart by case only")
    total = sum(file.size for file in description.files.values())
    if total > TOTAL_MAX:
        raise BundleError(f"{NAME}: `files`: {total} bytes together, of at most {TOTAL_MAX}")
    if description.health.steady_s > description.health.within_s:
        raise BundleError(f"{NAME}: `health.within_s`: shorter than `health.steady_s`: no trial could succeed")
    wheels = description.named("wheels", "")
    if description.kind == "full" and not (wheels and description.target):
        raise BundleError(f"{NAME}: `{'files' if description.target else 'target'}`: a full bundle needs it")
    if description.kind == "models" and (wheels or description.named("config", "") or not description.models):
        raise BundleError(
            f"{NAME}: `kind`: a bundle of models has models, and neither wheels nor a configuration"
        )
    if description.kind == "full" and description.shadow:
        raise BundleError(f"{NAME}: `shadow`: only models can run beside those in use, not a version of Vedette")
    if description.kind == "models" and description.migrations:
        raise BundleError(f"{NAME}: `migrations`: a bundle of models changes no configuration")


def _check_models(description: Description) -> None:
    names = {
        ending: {path.partition("/")[2].removesuffix(ending) for path in description.named(folder, ending)}
        for folder, ending in (("models", ".tflite"), ("models", ".toml"), ("golden", ".npz"))
    }
    for name in sorted(set().union(*names.values())):
        for ending, found in names.items():
            if name not in found:
                raise BundleError(f"{NAME}: `files`: model {name!r} has no {ending} in the bundle; build it anew")


def _check_migration(migration: Migration, where: str) -> None:
    if (migration.op == "rename") != bool(re.match(_KEY, migration.to)):
        raise BundleError(f"{where}: `to`: the new, dotted name of a key to rename, and of no other")
    if (migration.op == "set") != (migration.value is not None):
        raise BundleError(f"{where}: `value`: what a key is set to, and no other")


def _toml(data: bytes) -> dict[str, Any]:
    if len(data) > SIZE_MAX:
        raise BundleError(f"{NAME}: {len(data)} bytes, of at most {SIZE_MAX}")
    for number, line in enumerate(data.split(b"\n"), 1):
        if len(line) > _LINE_MAX or line.count(b".") > _DOTS_MAX:
            raise BundleError(f"{NAME}:{number}: too long a line: this was not made by `vedette bundle build`")
    try:
        return tomllib.loads(data.decode())
    except RecursionError:
        raise BundleError(f"{NAME}: brackets nested too deeply") from None
    except ValueError as error:  # of TOML, of UTF-8, or a number with too many digits
        raise BundleError(f"{NAME}: not TOML: {reason_of(error)}") from error


def _converted(value: Any, kind: type[Any], at: str = "") -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        found = _AT.match(str(error))
        what, path = (found["what"], found["path"] or "") if found else (str(error), "")
        key = ".".join(part for part in (at, path) if part)
        raise BundleError(f"{NAME}: {f'`{key}`: ' if key else ''}{what[:1].lower()}{what[1:]}") from error
