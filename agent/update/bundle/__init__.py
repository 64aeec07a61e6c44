"""Bundles, the signed files that update boards: build, sign, verify, inspect and unpack them."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from agent.config.wording import plain_fault
from agent.errors import BundleError, reason_of
from agent.storage import tar
from agent.storage.tar import ExpectedMember, open_regular
from agent.structs import convert

Seconds = Annotated[float, Meta(ge=0, le=86_400)]


class HealthGate(Struct, frozen=True, forbid_unknown_fields=True):
    """Conditions for the commit of a trial.

    Attributes:
        steady_s: time that every stream has to be healthy without a break, s.
        within_s: time after which an unhealthy trial is rolled back, s.
        p95_factor: allowed ratio of the 95th percentile of the inference time to the one before.
        p95_floor_ms: percentiles below this always pass, ms.
        memory_mb: limit of the daemon's memory, MB.
    """

    steady_s: Seconds = 60.0
    within_s: Seconds = 300.0
    p95_factor: Annotated[float, Meta(ge=1, le=100)] = 1.5
    p95_floor_ms: Annotated[float, Meta(ge=0, le=60_000)] = 5.0
    memory_mb: Annotated[float, Meta(gt=0, le=1_000_000)] = 400.0


class ShadowGate(Struct, frozen=True, forbid_unknown_fields=True):
    """Conditions for new models that run beside those in use; `HealthGate` limits their inference time.

    Attributes:
        agreement: least mean F1 of the new model's answers against those of the one in use.
        compared: answers of each stream, with a result of either model, to compare.
        every: compare one in `every` inferred pictures.
        within_s: time after which undecided models are refused, s.
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
        arch: as printed by `uname -m`.
        python: version that the wheels are for, such as `3.11`.
        glibc: oldest version.
        boards: names of board profiles; empty: any.
    """

    arch: Literal["aarch64", "x86_64", "armv7l"]
    python: Annotated[str, Meta(pattern=PYTHON)]
    glibc: Annotated[str, Meta(pattern=GLIBC)] = "2.34"
    boards: Annotated[list[Word], Meta(max_length=64)] = []


class Migration(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A change of the board's configuration that the new version needs; see `agent.update.install.stage.migrate`.

    Attributes:
        key: dotted, such as `streams.front.threads`.
        to: new name of a renamed key, dotted.
        value: of a key that is set.
    """

    op: Literal["rename", "set", "remove"]
    key: Annotated[str, Meta(pattern=_KEY, max_length=200)]
    to: Annotated[str, Meta(max_length=200)] = ""
    value: str | int | float | bool | None = None


class BundleFile(Struct, frozen=True, forbid_unknown_fields=True):
    """Hash and size, in bytes, of a file of a bundle."""

    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    size: Annotated[int, Meta(ge=0, le=TOTAL_MAX)]


class Description(Struct, frozen=True, forbid_unknown_fields=True):
    """Description of a bundle, `bundle.toml`.

    Attributes:
        schema: always `SCHEMA`.
        name: such as `vedette`.
        version: for people.
        counter: has to be above the board's.
        kind: `full`: a version of Vedette with its dependencies; `models`: models only.
        target: None, for models only: any board.
        shadow: None: new models replace those in use without a comparison.
        migrations: in the order of their application.
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

    def paths_in(self, folder: str, ending: str) -> list[str]:
        """Return the sorted paths of the files in a folder, such as `models`, with this ending."""
        return sorted(path for path in self.files if path.startswith(f"{folder}/") and path.endswith(ending))

    @property
    def models(self) -> list[str]:
        """Names of the models: each has `models/NAME.tflite`, `models/NAME.toml` and `golden/NAME.npz`."""
        return [
            path.removeprefix("models/").removesuffix(".tflite") for path in self.paths_in("models", ".tflite")
        ]


def parse(data: bytes) -> Description:
    """Parse `bundle.toml`.

    Raises:
        BundleError: it is not TOML, or a key is unknown, missing or wrong; names the key.
    """
    table = _toml(data)
    if (schema := table.get("schema", SCHEMA)) != SCHEMA or isinstance(schema, bool):
        raise BundleError(
            f"{NAME}: `schema`: expected {SCHEMA}, found {schema!r:.40}: made for another version of Vedette; "
            "build the bundle with this version"
        )
    files = table.get("files")
    for path, entry in files.items() if isinstance(files, dict) else ():
        _converted(entry, BundleFile, f'files."{path[:200]}"')
    description: Description = _converted(table, Description)
    check_description(description)
    return description


def render(description: Description) -> bytes:
    """Render `bundle.toml`, reproducibly; raise BundleError if it is not valid."""
    import tomli_w

    description = _converted(
        msgspec.to_builtins(description), Description
    )  # equal values give equal text: 60 and 60.0
    table = without_files(description)
    files = msgspec.to_builtins(description.files)
    rendered = tomli_w.dumps({**table, "files": dict(sorted(files.items()))}).encode()
    parse(rendered)  # as a board will
    return rendered


def without_files(description: Description) -> dict[str, Any]:
    """Return what `bundle.toml` says besides its files."""
    table: dict[str, Any] = msgspec.to_builtins(description)
    return {key: value for key, value in table.items() if key != "files" and value not in (None, [])}


def check_description(description: Description) -> None:
    """Refuse a description whose parts do not fit together.

    Raises:
        BundleError: an invalid path; two paths that differ in case only; too many bytes; a model without its
            manifest or golden answers; a full bundle without target or wheels; an incomplete migration.
    """
    for path in description.files:
        check_path(path, f"{NAME}: `files`")
    _check_together(description)
    _check_models(description)
    for number, migration in enumerate(description.migrations):
        _check_migration(migration, f"{NAME}: `migrations[{number}]`")


def check_path(path: str, where: str) -> None:
    """Raise BundleError if a path in a bundle is not valid; `where` it comes from is for the error."""
    if not _PATH.fullmatch(path):
        raise BundleError(
            f"{where}: {path[:200]!r} is not a path in a bundle: use wheels/…, models/…, golden/… or config/…"
            " and a name of up to 100 letters, digits and ._+!-, with a letter or digit first"
        )


def _check_together(description: Description) -> None:
    twins = [path for path, times in Counter(path.lower() for path in description.files).items() if times > 1]
    if twins:
        raise BundleError(f"{NAME}: `files`: {twins[0]!r} occurs twice, with different case only")
    total = sum(file.size for file in description.files.values())
    if total > TOTAL_MAX:
        raise BundleError(f"{NAME}: `files`: {total} bytes together, of at most {TOTAL_MAX}")
    if description.health.steady_s > description.health.within_s:
        raise BundleError(f"{NAME}: `health.within_s`: shorter than `health.steady_s`: no trial could succeed")
    wheels = description.paths_in("wheels", "")
    if description.kind == "full" and not (wheels and description.target):
        raise BundleError(f"{NAME}: `{'files' if description.target else 'target'}`: a full bundle needs it")
    if description.kind == "models" and (wheels or description.paths_in("config", "") or not description.models):
        raise BundleError(
            f"{NAME}: `kind`: a bundle of models has models, and neither wheels nor a configuration"
        )
    if description.kind == "full" and description.shadow:
        raise BundleError(f"{NAME}: `shadow`: only models can run beside those in use, not a version of Vedette")
    if description.kind == "models" and description.migrations:
        raise BundleError(f"{NAME}: `migrations`: a bundle of models changes no configuration")


def _check_models(description: Description) -> None:
    names = {
        ending: {path.partition("/")[2].removesuffix(ending) for path in description.paths_in(folder, ending)}
        for folder, ending in (("models", ".tflite"), ("models", ".toml"), ("golden", ".npz"))
    }
    for name in sorted(set().union(*names.values())):
        for ending, found in names.items():
            if name not in found:
                raise BundleError(
                    f"{NAME}: `files`: model {name!r} has no {ending} in the bundle; build it again"
                )


def _check_migration(migration: Migration, where: str) -> None:
    if (migration.op == "rename") != bool(re.match(_KEY, migration.to)):
        raise BundleError(f"{where}: `to`: expected the new, dotted name of a renamed key, and only there")
    if (migration.op == "set") != (migration.value is not None):
        raise BundleError(f"{where}: `value`: expected the value of a key that is set, and only there")


def _toml(data: bytes) -> dict[str, Any]:
    if len(data) > SIZE_MAX:
        raise BundleError(f"{NAME}: {len(data)} bytes, of at most {SIZE_MAX}")
    for number, line in enumerate(data.split(b"\n"), 1):
        if len(line) > _LINE_MAX or line.count(b".") > _DOTS_MAX:
            raise BundleError(f"{NAME}:{number}: too long a line: not made by `vedette bundle build`")
    try:
        return tomllib.loads(data.decode())
    except RecursionError:
        raise BundleError(f"{NAME}: brackets nested too deeply") from None
    except ValueError as error:  # of TOML, of UTF-8, or a number with too many digits
        raise BundleError(f"{NAME}: not TOML: {reason_of(error)}") from error


def _converted(value: Any, kind: type[Any], at: str = "") -> Any:
    try:
        return convert(value, kind)
    except msgspec.ValidationError as error:
        found = _AT.match(str(error))
        what, path = (found["what"], found["path"] or "") if found else (str(error), "")
        key = ".".join(part for part in (at, path) if part)
        raise BundleError(f"{NAME}: {f'`{key}`: ' if key else ''}{plain_fault(what)}") from error


SUFFIX = ".vedette"
_BEGINNING = NAME.encode().ljust(100, b"\0")
"""Name in the first tar header. A file that begins differently is reported as not a bundle, not as damaged."""
_LIMITS = tar.ArchiveLimits(FILES_MAX + 1, TOTAL_MAX + SIZE_MAX)


def listed(path: Path) -> BundleFile:
    """Return hash and size of a file; raise BundleError if it cannot be read."""
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256")
        return BundleFile(digest.hexdigest(), file.tell())


def write(path: Path, description: Description, sources: Mapping[str, Path]) -> None:
    """Write a bundle, reproducibly: the same description and files give the same bytes.

    Args:
        path: replaced atomically.
        description: lists the files.
        sources: path of each file.

    Raises:
        BundleError: the description is not valid, or a file cannot be read.
        StorageError: the bundle cannot be written.
    """
    rendered = render(description)

    def members() -> Iterable[tuple[str, int, Iterable[bytes]]]:
        yield NAME, len(rendered), [rendered]
        for name, entry in sorted(description.files.items()):
            with open_regular(sources[name]) as file:
                yield name, entry.size, iter(lambda: file.read(tar.CHUNK), b"")

    tar.write_tarball(path, members())


def read_description(path: Path) -> Description:
    """Read the description of a bundle. Do not trust it before the signature is verified.

    Raises:
        BundleError: the file is not a bundle, or its description is not valid.
    """
    with _prefixed_errors(path):
        return parse(_first(path))


def check_files(path: Path, description: Description) -> None:
    """Raise BundleError unless the files are those of the description: each once, with its size and hash."""
    with _prefixed_errors(path):
        tar.check(path, _expected(path, description), _LIMITS)


def unpack(path: Path, description: Description, folder: Path) -> None:
    """Unpack a bundle with its `bundle.toml` into a new folder: all files are on disk then, or none.

    Args:
        path: of the bundle.
        description: from `read_description`.
        folder: to create.

    Raises:
        BundleError: see `check_files`. StorageError: the folder exists, or a disk error.
    """
    with _prefixed_errors(path):
        tar.unpack(path, _expected(path, description), folder, _LIMITS)


def _expected(path: Path, description: Description) -> dict[str, ExpectedMember]:
    """Return the expected members, including the `bundle.toml` that was read."""
    own = _first(path)
    if parse(own) != description:
        raise BundleError(f"{NAME}: has changed since it was read")
    first = ExpectedMember(hashlib.sha256(own).hexdigest(), len(own))
    return {NAME: first} | {
        name: ExpectedMember(file.sha256, file.size) for name, file in description.files.items()
    }


def _first(path: Path) -> bytes:
    with open_regular(path) as file:
        begins = file.read(len(_BEGINNING))
        if begins != _BEGINNING[: len(begins)]:
            raise BundleError(f"does not begin with {NAME}: not a bundle")
        first = next(islice(tar.walk(file, _LIMITS), 1), None)
        if first is None or first.name != NAME or first.size > SIZE_MAX:
            raise BundleError(f"does not begin with {NAME}: not a bundle")
        return b"".join(tar.chunks(file, first))


@contextmanager
def _prefixed_errors(path: Path) -> Iterator[None]:
    """Begin the text of a BundleError with the path."""
    try:
        yield
    except BundleError as error:
        raise error if str(error).startswith(f"{path}: ") else type(error)(f"{path}: {error}") from error
