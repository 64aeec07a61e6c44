"""Checks before the switch: signature, files and board before a bundle is unpacked, then a test in its slot.

The test runs the new version's own code as the daemon's user, while the old version keeps running.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

from agent.board.firmware import UNDER_VOLTAGE, read_supply
from agent.errors import NO_JSON, ConfigError, UpdateError
from agent.storage.files import make_folder, remove, write_like
from agent.structs import from_json
from agent.update.bundle import Description, Target, check_files, listed, read_description
from agent.update.bundle.signing import verify
from agent.update.install.journal import Update
from agent.update.install.slots import CONFIG, ModelSets, Paths, Slots, parse_slot, read_file
from agent.update.run import output_of, run

_SPACE_FACTOR = 4
"""Size of a slot relative to its bundle: wheels are compressed, and Python compiles their contents."""
_RESERVE_MB = 64
"""Space left free for the event queue and the system's log, MB."""
_PYTHONS = ("3.11", "3.12", "3.13")
_TEST_S = 600.0
"""Timeout of a test: on a slow or busy board the golden answers of all models may take minutes."""
_PYTHON_S = 20.0
_CHECKED = "config/checked.toml"


class BoardFacts(Struct, frozen=True, kw_only=True):
    """Properties of a board that decide whether a bundle can be installed.

    Attributes:
        arch: such as `aarch64`. glibc: such as `2.36`; empty: another libc.
        pythons: installed versions, such as `3.11`.
        profile: of the board, such as `pi4b`; empty: none fits, or the bundle names no boards.
        free_mb: on the disk of the slots, MB (2^20 bytes).
        is_underpowered: the supply is too weak at this moment.
        counter: the highest that was committed.
        has_current: a version runs, which a bundle of models needs.
    """

    arch: str
    glibc: str
    pythons: frozenset[str]
    profile: str
    free_mb: int
    is_underpowered: bool
    counter: int
    has_current: bool


def verify_bundle(where: Paths, counter: int) -> dict[str, object]:
    """Verify the incoming bundle's signature, then its files, then that this board can take it.

    Args:
        where: paths of the board.
        counter: the highest that was committed.

    Returns:
        the fields of the update that are known now.

    Raises:
        TrustError, BundleError, UpdateError: the bundle is refused.
        StorageError: a disk error.
    """
    signer = verify(where.incoming, where.allowed_signers, where.revoked_keys)
    wanted, slots = read_description(where.incoming), Slots(where.home)
    check_files(where.incoming, wanted)
    running = slots.target("current")
    profile = _profile() if wanted.target and wanted.target.boards else ""
    check_board(wanted, read_facts(where.home, profile, counter, has_current=running is not None))
    return {
        "version": wanted.version,
        "counter": wanted.counter,
        "kind": wanted.kind,
        "signer": signer.principal,
        "bundle": listed(where.incoming).sha256,
        "from_version": slots.version(running) if running else "",
    }


def _profile() -> str:
    from agent.board.identity import read_board
    from agent.config.load import AUTO, choose

    try:
        profile = choose(AUTO, read_board())
    except ConfigError:
        return ""
    return profile.name if profile else ""


def read_facts(home: Path, profile: str, counter: int, *, has_current: bool) -> BoardFacts:
    """Read the facts of this board; `home` is the folder of the slots, the others are facts already."""
    supply, (libc, version) = read_supply(), platform.libc_ver()
    return BoardFacts(
        arch=platform.machine(),
        glibc=version if libc == "glibc" else "",
        pythons=frozenset(version for version in _PYTHONS if find_python(version)),
        profile=profile,
        free_mb=_free_mb(home),
        is_underpowered=supply is not None and UNDER_VOLTAGE in supply.now,
        counter=counter,
        has_current=has_current,
    )


def find_python(version: str) -> str:
    """Return the path of the system's Python of a version, such as `3.11`; empty: there is none."""
    places = os.pathsep.join(("/usr/bin", "/usr/local/bin", os.environ.get("PATH", "")))
    paths = (shutil.which(name, path=places) for name in (f"python{version}", "python3"))
    return next((path for path in paths if path and _has_version(path, version)), "")


def _has_version(path: str, version: str) -> bool:
    """Run this Python: a version manager's shim may lead nowhere."""
    command = [path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        done = run(command, path, _PYTHON_S, UpdateError)
    except UpdateError:
        return False
    return done.returncode == 0 and done.stdout.strip() == version


def _free_mb(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free // 1024**2


def check_board(wanted: Description, facts: BoardFacts) -> None:
    """Raise UpdateError with all objections if this board cannot take the bundle."""
    if wrong := list(objections(wanted, facts)):
        raise UpdateError("; ".join(wrong))


def objections(wanted: Description, facts: BoardFacts) -> Iterator[str]:
    """Yield each reason why the bundle cannot be installed on this board."""
    if wanted.target is not None:
        yield from _target_objections(wanted.target, wanted.kind, facts)
    if wanted.kind == "models" and not facts.has_current:
        yield "a bundle of models needs a version that runs: install a full bundle first"
    if wanted.counter <= facts.counter:
        yield (
            f"counter {wanted.counter} is not above {facts.counter}, which this board has had: older versions "
            "are refused; `vedette update rollback` returns to the version before"
        )
    size_mb = sum(file.size for file in wanted.files.values()) // 1024**2
    needed_mb = size_mb * (_SPACE_FACTOR if wanted.kind == "full" else 1) + _RESERVE_MB
    if facts.free_mb < needed_mb:
        yield f"the update needs {needed_mb} MB, {facts.free_mb} MB are free: make room"
    if facts.is_underpowered:
        yield "the power supply is too weak at this moment (under-voltage): an update may be interrupted"


def _target_objections(target: Target, kind: str, facts: BoardFacts) -> Iterator[str]:
    if target.arch != facts.arch:
        yield f"the bundle is for {target.arch}, this board is {facts.arch}"
    if target.boards and facts.profile not in target.boards:
        board = facts.profile or "of no known kind"
        yield f"the bundle is for {', '.join(target.boards)}, this board is {board}"
    if kind == "full" and target.python not in facts.pythons:
        found = ", ".join(sorted(facts.pythons)) or "none"
        yield f"the bundle needs Python {target.python}, this board has {found}"
    if kind == "full" and _number(facts.glibc) < _number(target.glibc):
        yield f"the bundle needs glibc {target.glibc}, this board has {facts.glibc or 'another libc'}"


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def rehearse(where: Paths, update: Update) -> None:
    """Test golden answers and configuration in the slot of an update; raise UpdateError if a test fails."""
    slot = Slots(where.home).path(parse_slot(update.slot))
    check_models(where, slot, update.counter)
    check_config(where, slot, update.counter)


def check_models(where: Paths, slot: Path, number: int) -> None:
    """Have the version in a slot answer the golden inputs of a set of models; raise UpdateError if that fails."""
    done = _run_version(where, slot, "update", "selftest", str(ModelSets(slot).path(number)))
    if done.returncode:
        raise UpdateError(f"the self-test of the new version fails: {output_of(done)}")


def check_config(where: Paths, slot: Path, number: int) -> None:
    """Have the version in a slot check the configuration that it would run on, with a set of models.

    A problem that the running version finds in its own configuration too, such as a missing model, is accepted if
    a daemon starts with it.

    Raises:
        UpdateError: the version finds another problem, or would not start.
    """
    if not where.config.exists():
        return
    slots = Slots(where.home)
    running = slots.target("current")
    found, loads = _problems(where, slot, _write_checked(where, slot, number))
    remove(slot / _CHECKED)
    if not found:
        return
    if not loads:
        raise UpdateError(f"no daemon would start on the configuration: {'; '.join(found)}")
    known, _ = _problems(where, slots.path(running), where.config) if running else ([], True)
    if new := [problem for problem in found if problem not in known]:
        raise UpdateError(f"the new version refuses the configuration: {'; '.join(new)}")


def _write_checked(where: Paths, slot: Path, number: int) -> Path:
    """Write the configuration with the paths of the new models, which `current/models` does not lead to yet."""
    migrated, running = slot / CONFIG, Slots(where.home).target("current")
    # In the running slot the migrated file is as old as its version; the board's own is in use.
    is_new = migrated.exists() and (running is None or slot != Slots(where.home).path(running))
    config = read_file(migrated if is_new else where.config)
    config = config.replace(f"{where.home}/current/models/".encode(), f"{ModelSets(slot).path(number)}/".encode())
    config = config.replace(f"{where.home}/current/".encode(), f"{slot}/".encode())
    checked = slot / _CHECKED
    make_folder(checked.parent)
    write_like(checked, config, where.config)
    return checked


def _problems(where: Paths, slot: Path, config: Path) -> tuple[list[str], bool]:
    """Return the problems without their places in the file, and True if a daemon would start nevertheless."""
    done = _run_version(where, slot, "config", "check", "--json", str(config))
    try:
        result: dict[str, Any] = from_json(done.stdout, dict[str, Any])
        found, loads = (
            [_without_place(str(one), config) for one in result["problems"]],
            bool(result.get("loads", True)),
        )
    except (KeyError, TypeError, *NO_JSON) as error:
        raise UpdateError(f"{slot.name}: cannot check a configuration: {output_of(done)}") from error
    return found, loads


def _run_version(where: Paths, slot: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(slot / "venv/bin/vedette"), *words]
    return run(command, "the new version", _TEST_S, UpdateError, cwd="/", **_daemon_user(where))


def _daemon_user(where: Paths) -> dict[str, Any]:
    """Run as the daemon's user, never root: the bundle's code and models are unproven."""
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/nonexistent"}
    try:
        owner = where.daemon_state.stat()
    except OSError:
        return {"env": environment}
    if os.geteuid() or not owner.st_uid:
        return {"env": environment}
    return {"env": environment, "user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}


def _without_place(problem: str, config: Path) -> str:
    """`FILE:LINE: what` and `FILE: what` → `what`."""
    if not problem.startswith(str(config)):
        return problem
    place, _, what = problem.removeprefix(str(config)).partition(": ")
    return what if not place or place.removeprefix(":").isdigit() else problem
