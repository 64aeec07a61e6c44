"""Put the contents of a bundle into a slot, beside what runs; register a slot that scripts/install has filled."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agent.errors import StorageError, UpdateError, reason_of
from agent.storage.files import delete_folder, make_folder, remove, rename, write_like
from agent.update.bundle import NAME, Description, Migration, check_files, read_description, unpack
from agent.update.bundle.signing import signature_of
from agent.update.install.journal import BEFORE_SWITCH, Journal, State, Update
from agent.update.install.preflight import find_python
from agent.update.install.slots import CONFIG, UNPACKED, ModelSets, Paths, Slot, Slots, parse_slot, read_file
from agent.update.run import output_of, run

_VENV_S, _PIP_S = 180.0, 1800.0
"""Timeouts for a slow SD card: LiteRT alone unpacks to 41 MB."""
_FULL_MB = 4
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PIP_CONFIG_FILE": "/dev/null",
    "PIP_ROOT_USER_ACTION": "ignore",
}
_QUIET = ("--disable-pip-version-check", "--no-cache-dir", "--no-input", "--quiet")


def stage(where: Paths, tell: Callable[[str], None]) -> dict[str, object]:
    """Install the incoming bundle beside what runs, and return the fields of the update that are known now.

    Raises:
        BundleError, UpdateError: the bundle cannot be installed.
        StorageError: a disk error.
    """
    wanted, slots = read_description(where.incoming), Slots(where.home)
    running = slots.target("current")
    if running is None:
        raise UpdateError(f"{where.home}/current: nothing is installed here: run scripts/install first")
    if wanted.kind == "models":
        tell(f"installing {len(wanted.models)} models beside those in use")
        home = slots.path(running)
        _unpack(where.incoming, wanted, home)
        _add_models(wanted, home)
        delete_folder(home / UNPACKED)
        return {"slot": running, "before": running}
    slot = slots.spare()
    tell(f"installing version {wanted.version} into slot {slot}; the present version keeps running")
    home = slots.empty(slot)
    _unpack(where.incoming, wanted, home)
    assert wanted.target is not None  # every full bundle has one
    wheels = [home / UNPACKED / path for path in wanted.paths_in("wheels", ".whl")]
    install(find_python(wanted.target.python), home / "venv", wheels)
    _place_files(where, wanted, home)
    slots.make_ready(slot, wanted.version)
    return {"slot": slot, "before": running}


def discard(where: Paths, update: Update) -> None:
    """Free the disk space that an update has taken beside what runs; call this before the switch only.

    The bundle stays, so that the update may begin again. Ignore disk errors: the next update overwrites the rest.
    """
    slots = Slots(where.home)
    with suppress(StorageError):
        if update.kind == "models" and (running := slots.target("current")):
            delete_folder(slots.path(running) / UNPACKED)
            ModelSets(slots.path(running)).delete(update.counter)
        elif update.kind == "full":
            spare = slots.spare()
            if slots.path(spare).exists() and not slots.proved_version(
                spare
            ):  # else it holds the previous version
                slots.empty(spare)


def delete_incoming(where: Paths, update: Update) -> None:
    """Delete the bundle and unused models. Ignore disk errors: the next update overwrites them."""
    with suppress(StorageError):
        if update.kind == "models" and update.slot and not update.back:
            ModelSets(Slots(where.home).path(parse_slot(update.slot))).delete(update.counter)
        remove(where.incoming, signature_of(where.incoming))


def _unpack(bundle: Path, wanted: Description, home: Path) -> None:
    delete_folder(home / UNPACKED)
    unpack(bundle, wanted, home / UNPACKED)


def _place_files(where: Paths, wanted: Description, home: Path) -> None:
    """Move everything but the wheels to its place."""
    _add_models(wanted, home)
    ModelSets(home).point(wanted.counter)
    _place_config(where, wanted, home)
    rename(home / UNPACKED / NAME, home / NAME)
    delete_folder(home / UNPACKED)


def _add_models(wanted: Description, home: Path) -> None:
    sets = ModelSets(home)
    sets.create(wanted.counter)
    for path in (*wanted.paths_in("models", ""), *wanted.paths_in("golden", "")):
        sets.add(home / UNPACKED / path, wanted.counter)


def _place_config(where: Paths, wanted: Description, home: Path) -> None:
    """Store the bundle's configurations as examples, and the board's own one migrated to the new version."""
    make_folder(home / "config")
    for path in wanted.paths_in("config", ""):
        example = home / "config" / f"{Path(path).name}.example"
        (home / UNPACKED / path).chmod(0o600)  # it may hold passwords of cameras
        rename(home / UNPACKED / path, example)
    if wanted.migrations and where.config.exists():
        before = read_file(where.config)
        try:
            after = migrate(before.decode(), wanted.migrations).encode()
        except UnicodeDecodeError as error:
            raise UpdateError(f"{where.config}: not UTF-8 at byte {error.start}") from error
        if after != before:
            write_like(home / CONFIG, after, where.config)


def adopt(where: Paths, slot: Slot, version: str, bundle: Path | None, source: str = "") -> None:
    """Register a slot that scripts/install has filled, also in the history, and end an update that was not over.

    Args:
        where: paths of the board.
        slot: with a complete environment; no link leads to it yet.
        version: of Vedette in it.
        bundle: it was installed from, with a verified signature; its models are put in place. None: from a clone,
            which has no counter.
        source: file that the bundle is a copy of, for the history; empty: the bundle is no copy.

    Raises:
        BundleError: the files of the bundle differ from its description.
        UpdateError: it brings no version of Vedette.
        StorageError: a disk error.
    """
    slots = Slots(where.home)
    _end_current(where)
    wanted = None if bundle is None else _adopt_files(where, bundle, slots.path(slot))
    running, moment = slots.target("current"), datetime.now(UTC)
    update = Update(
        state="committed",
        version=wanted.version if wanted else version,
        counter=wanted.counter if wanted else 0,
        kind="full",
        file=source or str(bundle or ""),
        slot=slot,
        from_version=slots.version(running) if running else "",
        began_at=moment,
        ended_at=moment,
        reason="installed",
        by="operator",
    )
    Journal(where).add(update)
    if running is not None and running != slot:
        slots.mark_proved(running)  # scripts/install refuses to run during a trial
    slots.make_ready(slot, version)


def _adopt_files(where: Paths, bundle: Path, home: Path) -> Description:
    wanted = read_description(bundle)
    if wanted.kind != "full":
        raise UpdateError(f"{bundle}: brings models only: a board is installed from a full bundle")
    check_files(bundle, wanted)
    ModelSets(home).point(0)
    _unpack(bundle, wanted, home)
    _place_files(where, wanted, home)
    return wanted


def _end_current(where: Paths) -> None:
    """End an update of a former installation, and forget the slots' configurations: both get the board's own."""
    journal = Journal(where)
    remove(
        where.trial,
        where.verdict,
        where.trial_usage,
        where.kept_config,
        where.config_of("a"),
        where.config_of("b"),
    )
    journal.delete_order()
    journal.mend()
    update = journal.read()
    if update is None or update.finished:
        return
    state: State = "refused" if update.state in BEFORE_SWITCH else "rolled_back"
    journal.step(update, state, reason="Vedette was installed anew", by="operator")


def install(python: str, venv: Path, wheels: Sequence[Path]) -> None:
    """Create an environment and install wheels into it, without a network.

    Args:
        python: interpreter of the environment.
        venv: folder to create.
        wheels: everything that is installed.

    Raises:
        UpdateError: venv or pip fails; the message ends with their output.
    """
    has_picamera = _has_picamera(python)
    options = ["--system-site-packages"] if has_picamera else []
    what = "the environment cannot be created (on Debian, install python3-venv)"
    _run([python, "-I", "-m", "venv", *options, str(venv)], _VENV_S, what, venv.parent)
    pip = [str(venv / "bin/python"), "-I", "-m", "pip"]
    # The build of the bundle has chosen the wheels: some declare fewer Python versions than they run on.
    how = ("install", "--no-index", "--no-deps", "--ignore-requires-python", *_QUIET)
    _run([*pip, *how, *map(str, wheels)], _PIP_S, "the wheels cannot be installed", venv.parent)
    if not has_picamera:  # else it would check the system's packages too
        _run([*pip, "check", "--disable-pip-version-check"], _PIP_S, "a wheel is missing", venv.parent)


def _has_picamera(python: str) -> bool:
    """Return True if the system has Picamera2, for a Pi's camera: it is in no package index."""
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('picamera2') is None)"
    what = "the environment cannot be created"
    with suppress(UpdateError):
        return not run([python, "-I", "-c", code], what, _VENV_S, UpdateError).returncode
    return False


def _run(command: list[str], patience_s: float, what: str, folder: Path) -> None:
    done = run(command, what, patience_s, UpdateError, cwd="/", env=_ENVIRONMENT)
    if done.returncode:
        if shutil.disk_usage(folder).free < _FULL_MB * 1024**2:
            raise UpdateError(f"{what}: No space left on the disk of {folder}: make room")
        raise UpdateError(f"{what}: {output_of(done)}")


def migrate(text: str, migrations: Iterable[Migration]) -> str:
    """Apply the rules of a bundle, in order, to the text of a configuration; keep its layout and comments.

    `rename` moves a key, also into another table, if it exists. `set` gives a key a value unless it has one.
    `remove` deletes a key if it exists. `*` in a key stands for every table there, such as every stream in
    `streams.*.rate`. A rollback needs no rules: it restores a copy of the old text.

    Args:
        text: TOML.
        migrations: the rules.

    Raises:
        UpdateError: the text is not TOML, or a rule does not fit it; names the key.
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
            _pop(document, path)
        elif (value := _pop(document, path)) is not None:
            _set(document, _named(rule.to.split("."), found), value, replace=True)


def _tables(document: Any, parts: list[str]) -> Iterable[list[str]]:
    """Return the paths of the tables that match; without `*`, a table need not exist yet."""
    paths: list[list[str]] = [[]]
    for part in parts:
        if part == "*":
            paths = [[*path, name] for path in paths for name in _names(_at(document, path))]
        else:
            paths = [[*path, part] for path in paths]
    return paths


def _names(table: Any) -> list[str]:
    return [str(name) for name, one in table.items() if isinstance(one, dict)] if isinstance(table, dict) else []


def _named(parts: list[str], found: list[str]) -> list[str]:
    """Return the new path of a renamed key: each `*` matches the same name as in the old key."""
    return [found[at] if part == "*" and at < len(found) else part for at, part in enumerate(parts)]


def _at(document: Any, path: list[str]) -> Any:
    for part in path:
        if not isinstance(document, dict) or part not in document:
            return None
        document = document[part]
    return document


def _pop(document: Any, path: list[str]) -> Any:
    table = _at(document, path[:-1])
    return table.pop(path[-1], None) if isinstance(table, dict) else None


def _set(document: Any, path: list[str], value: Any, *, replace: bool = False) -> None:
    import tomlkit

    for at, part in enumerate(path[:-1], 1):
        inside = document.get(part)
        if inside is None:
            document[part] = inside = tomlkit.table()
        if not isinstance(inside, dict):
            raise UpdateError(f"the configuration cannot be migrated: `{'.'.join(path[:at])}` is not a table")
        document = inside
    if path[-1] in document and replace:
        raise UpdateError(f"the configuration cannot be migrated: `{'.'.join(path)}` is set already")
    if path[-1] not in document:
        document[path[-1]] = value
