"""Staging: a verified bundle is put where it can be tried, beside what runs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import UpdateError, reason_of
from agent.models.files import read
from agent.storage.files import delete_folder, make_folder, rename, write_like
from agent.update.bundle.archive import unpack
from agent.update.bundle.description import NAME, Description
from agent.update.install.paths import Paths
from agent.update.install.preflight import find_python
from agent.update.install.slots import ModelSets, Slot, Slots

if TYPE_CHECKING:
    from agent.update.bundle.description import Migration


# Installing: an environment of Python's own in a slot, out of a bundle's wheels and without a network.

_VENV_S, _PIP_S = 180.0, 1800.0
"""An SD card is slow: LiteRT alone unpacks to 41 MB."""
_TAIL = 300
_FULL_MB = 4
_QUIET = ("--disable-pip-version-check", "--no-cache-dir", "--no-input", "--quiet")


def install(python: str, venv: Path, wheels: Sequence[Path]) -> None:
    """Make an environment and install wheels into it.

    Args:
        python: the interpreter to build on.
        venv: the folder to make.
        wheels: all that is to be installed; nothing else is looked for.

    Raises:
        UpdateError: it cannot be done; says what pip said.
    """
    made = "the environment cannot be made (Debian's is in python3-venv)"
    sees = _has_picamera(python)
    _run(
        [python, "-I", "-m", "venv", *(["--system-site-packages"] if sees else []), str(venv)],
        _VENV_S,
        made,
        venv.parent,
    )
    pip = [str(venv / "bin/python"), "-I", "-m", "pip"]
    # Which wheels fit was settled where the bundle was built: some tell of fewer Pythons than they run on.
    how = ("install", "--no-index", "--no-deps", "--ignore-requires-python", *_QUIET)
    _run([*pip, *how, *map(str, wheels)], _PIP_S, "the wheels cannot be installed", venv.parent)
    if not sees:  # it would find fault with the system's packages, too
        _run([*pip, "check", "--disable-pip-version-check"], _PIP_S, "a wheel is missing", venv.parent)


def _has_picamera(python: str) -> bool:
    """A Pi's own camera needs Picamera2, which comes with the system and from nowhere else."""
    asks = "import importlib.util, sys; sys.exit(importlib.util.find_spec('picamera2') is None)"
    try:
        return subprocess.run([python, "-I", "-c", asks], timeout=_VENV_S, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _run(command: list[str], patience_s: float, what: str, folder: Path) -> None:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=patience_s,
            check=False,
            cwd="/",
            env={
                "PATH": "/usr/bin:/bin",
                "LANG": "C.UTF-8",
                "PIP_CONFIG_FILE": "/dev/null",
                "PIP_ROOT_USER_ACTION": "ignore",
            },
        )
    except subprocess.TimeoutExpired as error:
        raise UpdateError(f"{what}: not done within {patience_s:.0f} s") from error
    except OSError as error:
        raise UpdateError(f"{what}: {error}") from error
    if done.returncode:
        if shutil.disk_usage(folder).free < _FULL_MB * 1024**2:
            raise UpdateError(f"{what}: No space left on the disk of {folder}: make room")
        said = " ".join((done.stderr or done.stdout).split())[-_TAIL:]
        raise UpdateError(f"{what}: {said or f'exit code {done.returncode}'}")


# Migration of a configuration to a new version: its text stays as its author wrote it, but for what changes.
#
# A rollback needs no rules: it restores a copy of the old text.


def migrate(text: str, migrations: Iterable[Migration]) -> str:
    """Apply the rules of a bundle, in order, to the text of a configuration.

    `rename` moves a key, also into another table; where the key is not there it does nothing. `set` gives a key a
    value unless it has one. `remove` deletes one, if it is there. `*` in the place of a part of a key stands for
    every table there, such as every stream in `streams.*.rate`.

    Args:
        text: TOML.
        migrations: the rules.

    Raises:
        UpdateError: the text is no TOML, or a rule does not fit it: names the key.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(text)
        for rule in migrations:
            _apply(document, rule)
        return tomlkit.dumps(document)
    except TOMLKitError as error:
        raise UpdateError(f"the configuration cannot be migrated: {reason_of(error)}") from error


def _apply(document: Any, rule: Migration) -> None:
    before = rule.key.split(".")
    for found in list(_tables(document, before[:-1])):
        path = [*found, before[-1]]
        if rule.op == "set":
            _set(document, path, rule.value)
        elif rule.op == "remove":
            _take(document, path)
        elif (value := _take(document, path)) is not None:
            _set(document, _named(rule.to.split("."), found), value, replace=True)


def _tables(document: Any, parts: list[str]) -> Iterable[list[str]]:
    """Paths of the tables that a pattern stands for; one that is not there yet stands for itself."""
    paths: list[list[str]] = [[]]
    for part in parts:
        if part == "*":
            paths = [[*path, name] for path in paths for name in _names(_at(document, path))]
        else:
            paths = [[*path, part] for path in paths]
    return paths


def _names(table: Any) -> list[str]:
    """Return the names of the tables in a table; anything else, such as an array of tables, has none."""
    return [str(name) for name, one in table.items() if isinstance(one, dict)] if isinstance(table, dict) else []


def _named(parts: list[str], found: list[str]) -> list[str]:
    """The path that a renamed key goes to: each `*` is what it stood for at the same place."""
    return [found[at] if part == "*" and at < len(found) else part for at, part in enumerate(parts)]


def _at(document: Any, path: list[str]) -> Any:
    """Return the value at a path; None if there is none."""
    for part in path:
        if not isinstance(document, dict) or part not in document:
            return None
        document = document[part]
    return document


def _take(document: Any, path: list[str]) -> Any:
    table = _at(document, path[:-1])
    return table.pop(path[-1], None) if isinstance(table, dict) else None


def _set(document: Any, path: list[str], value: Any, *, replace: bool = False) -> None:
    import tomlkit

    for at, part in enumerate(path[:-1], 1):
        inside = document.get(part)
        if inside is None:
            document[part] = inside = tomlkit.table()
        if not isinstance(inside, dict):
            raise UpdateError(f"the configuration cannot be migrated: `{'.'.join(path[:at])}` is no table")
        document = inside
    if path[-1] in document and replace:
        raise UpdateError(f"the configuration cannot be migrated: `{'.'.join(path)}` is set already")
    if path[-1] not in document:
        document[path[-1]] = value


UNPACKED = "unpacked"
CONFIG = "config/vedette.toml"
"""The migrated configuration of the board, in the slot, where a bundle changes it."""


def stage_version(where: Paths, wanted: Description, slot: Slot) -> None:
    """Install a full bundle into a spare slot.

    Raises:
        BundleError: its files are not what it says.
        UpdateError: it cannot be installed, or the configuration cannot be migrated.
        StorageError: the disk refuses.
    """
    slots = Slots(where.home)
    home = slots.empty(slot)
    _take_out(where.incoming, wanted, home)
    unpacked = home / UNPACKED
    assert wanted.target is not None  # of every full bundle
    wheels = [unpacked / path for path in wanted.named("wheels", ".whl")]
    install(find_python(wanted.target.python), home / "venv", wheels)
    _place(where, wanted, home)
    slots.make_ready(slot, wanted.version)


def take_files(where: Paths, wanted: Description, home: Path, bundle: Path) -> None:
    """Put what a full bundle has beside its wheels into a slot whose environment is made.

    Raises:
        BundleError: its files are not what it says.
        StorageError: the disk refuses.
    """
    _take_out(bundle, wanted, home)
    _place(where, wanted, home)


def _place(where: Paths, wanted: Description, home: Path) -> None:
    unpacked = home / UNPACKED
    _take_models(home, wanted, unpacked)
    _take_config(where, wanted, home, unpacked)
    rename(unpacked / NAME, home / NAME)
    delete_folder(unpacked)


def stage_models(where: Paths, wanted: Description, slot: Slot) -> None:
    """Put the models of a bundle beside those of the slot that runs.

    Raises:
        BundleError: its files are not what it says.
        StorageError: the disk refuses.
    """
    home = Slots(where.home).path(slot)
    _take_out(where.incoming, wanted, home)
    _take_models(home, wanted, home / UNPACKED, use=False)
    delete_folder(home / UNPACKED)


def _take_out(bundle: Path, wanted: Description, home: Path) -> None:
    delete_folder(home / UNPACKED)
    unpack(bundle, wanted, home / UNPACKED)


def _take_models(home: Path, wanted: Description, unpacked: Path, *, use: bool = True) -> None:
    sets = ModelSets(home)
    sets.begin(wanted.counter)
    for path in (*wanted.named("models", ""), *wanted.named("golden", "")):
        sets.take(unpacked / path, wanted.counter)
    if use:
        sets.point(wanted.counter)


def _take_config(where: Paths, wanted: Description, home: Path, unpacked: Path) -> None:
    """Store the bundle's configurations as examples, and the board's own one migrated to the new version."""
    make_folder(home / "config")
    for path in wanted.named("config", ""):
        example = home / "config" / f"{Path(path).name}.example"
        (unpacked / path).chmod(0o600)  # it may hold passwords of cameras
        rename(unpacked / path, example)
    if wanted.migrations and where.config.exists():
        before = read(where.config)
        try:
            after = migrate(before.decode(), wanted.migrations).encode()
        except UnicodeDecodeError as error:
            raise UpdateError(f"{where.config}: not UTF-8 at byte {error.start}") from error
        if after != before:
            write_like(home / CONFIG, after, where.config)
