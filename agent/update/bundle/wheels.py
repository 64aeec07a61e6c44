"""Wheels of a bundle: build Vedette's own from its sources, and download its locked dependencies for the board.

Markers of the lock file are evaluated for the board.
"""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Mapping
from email.message import Message
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import BundleError, reason_of
from agent.storage.files import make_folder, write_atomic
from agent.update.bundle import Target
from agent.update.run import run

if TYPE_CHECKING:
    from packaging.requirements import Requirement


LOCK = "requirements.lock"
_OWN = Path(__file__).parent.parent.parent.parent
"""The clone, or `site-packages` of an installed vedette."""


def find_clone() -> Path:
    """Return the clone that this vedette runs from, else the working folder if it is a clone.

    Raises:
        BundleError: there is no clone.
    """
    for folder in (_OWN, Path.cwd()):
        own = (LOCK, "agent/__main__.py", "agent/__init__.py")
        if _project(folder).get("name") == "vedette" and all((folder / name).is_file() for name in own):
            return folder
    raise BundleError(
        "this vedette does not run from a clone: run it in a clone, or give --wheel FILE and --lock FILE"
    )


def _project(clone: Path) -> dict[str, Any]:
    """Return the table `[project]` of a clone; empty if there is none."""
    try:
        table = tomllib.loads((clone / "pyproject.toml").read_text(encoding="utf-8")).get("project")
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


_EPOCH = "1580601600"
"""Time of every file in our own wheel: 2020-02-02, the default of hatchling."""
_OLDEST_GLIBC = 17
"""Minor version of glibc 2, of `manylinux2014`: there are no newer wheels for older versions."""
_PATIENCE_S = 1800.0
_METADATA_MAX = 4 << 20

Tell = Callable[[str], None]


def check_means(target: Target, wheel: Path | None, lock: Path | None, extras: Iterable[str] = ()) -> Path:
    """Check everything that does not take long, and return the lock file.

    Args:
        target: the board.
        wheel: Vedette's own; None: it will be built.
        lock: lock file of its dependencies; None: that of the clone.
        extras: of Vedette; pip would only warn of unknown ones.

    Raises:
        BundleError: a package is not installed, there is no clone, or an option does not fit.
    """
    clone = find_clone() if wheel is None or lock is None else None
    for name in ("packaging", "pip", *(() if wheel else ("hatchling",))):
        if find_spec(name) is None:
            how = f"{sys.executable} -m ensurepip" if name == "pip" else "pip install '.[bundle]' in the clone"
            raise BundleError(f"no {name} in this environment: {how}")
    from packaging.utils import canonicalize_name

    known = metadata(wheel).get_all("Provides-Extra", []) if wheel else _extras_of(find_clone())
    for extra in extras:
        if canonicalize_name(extra) not in map(canonicalize_name, known):
            raise BundleError(
                f"--extra {extra}: no such extra of Vedette; there are: {', '.join(known) or 'none'}"
            )
    platforms(target)
    if wheel is not None:
        check_python(wheel, target)
    if lock is None:
        assert clone is not None  # else `find_clone` has raised
        return clone / LOCK
    return lock


def _extras_of(clone: Path) -> list[str]:
    return list(_project(clone).get("optional-dependencies", {}))


def own_wheel(folder: Path) -> Path:
    """Build Vedette's own wheel from the clone into a folder, reproducibly; raise BundleError if that fails."""
    clone = find_clone()
    make_folder(folder)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": _EPOCH}
    done = run(command, "hatchling", _PATIENCE_S, BundleError, cwd=clone, env=environment)
    found = list(folder.glob("*.whl"))
    if done.returncode or not found:
        raise BundleError(f"{clone}: its wheel cannot be built: {_last(done)}")
    return found[0]


def metadata(wheel: Path) -> Message:
    """Read the METADATA of a wheel; raise BundleError if the file is not a wheel."""
    try:
        with zipfile.ZipFile(wheel) as file:
            info = next(
                one for one in file.infolist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", one.filename)
            )
            if info.file_size > _METADATA_MAX:
                raise BundleError(f"{wheel}: {info.file_size} bytes of METADATA: not a wheel")
            return email.message_from_bytes(file.read(info))
    except (OSError, StopIteration, zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise BundleError(f"{wheel}: not a wheel: {reason_of(error)}") from error


def fetch(wheel: Path, lock: Path, target: Target, extras: Iterable[str], folder: Path, tell: Tell) -> None:
    """Download the locked dependencies of a wheel for a board, each checked by its hash; nothing is run or built.

    Args:
        wheel: to read the dependencies from.
        lock: the lock file.
        target: the board.
        extras: of the wheel.
        folder: for the downloaded wheels.
        tell: called with the names of the packages.

    Raises:
        BundleError: there is no wheel for the board or no network, or a wheel differs from the locked one.
    """
    try:
        locked = Lock(lock.read_text(encoding="utf-8"), str(lock))
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{lock}: cannot be read: {reason_of(error)}; give it by --lock FILE") from error
    make_folder(folder)
    wanted, done = _needs(wheel, frozenset(extras), target), dict[str, frozenset[str]]()
    while new := {name: more for name, more in wanted.items() if name not in done or not more <= done[name]}:
        pins = [locked.pin(name, target) for name in sorted(new) if name not in done]
        if pins:
            packages = ", ".join(pin.partition(" ")[0] for pin in pins)
            tell(f"fetching for {describe_target(target)}: {packages}")
            _download(pins, target, folder)
        for name, more in new.items():
            done[name] = done.get(name, frozenset()) | more
            for other, others in _needs(_wheel_of(name, folder), done[name], target).items():
                wanted[other] = wanted.get(other, frozenset()) | others


def check_python(wheel: Path, target: Target) -> None:
    """Refuse a wheel for another Python or processor than the target's; raise BundleError then."""
    from packaging.specifiers import SpecifierSet
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    wants = metadata(wheel).get("Requires-Python", "")
    if not SpecifierSet(wants).contains(f"{target.python}.0"):
        raise BundleError(f"{wheel.name}: needs Python {wants}; --python {target.python} is not")
    try:
        tags = parse_wheel_filename(wheel.name)[3]
    except InvalidWheelFilename as error:
        raise BundleError(f"{wheel}: not the name of a wheel: {error}") from error
    if not any(tag.platform == "any" or tag.platform.endswith(target.arch) for tag in tags):
        raise BundleError(f"{wheel.name}: not for {target.arch}")


def _needs(wheel: Path, extras: frozenset[str], target: Target) -> dict[str, frozenset[str]]:
    return needed(metadata(wheel).get_all("Requires-Dist", []), sorted(extras), target)


def _wheel_of(name: str, folder: Path) -> Path:
    from packaging.utils import parse_wheel_filename

    return next(wheel for wheel in sorted(folder.glob("*.whl")) if parse_wheel_filename(wheel.name)[0] == name)


def platforms(target: Target) -> list[str]:
    """Return the platform tags for a board, newest first; raise BundleError if its glibc is too old."""
    major, _, minor = target.glibc.partition(".")
    if major != "2" or int(minor) < _OLDEST_GLIBC:
        raise BundleError(f"--glibc {target.glibc}: wheels are made for 2.{_OLDEST_GLIBC} and newer")
    newer = [f"manylinux_2_{number}_{target.arch}" for number in range(int(minor), _OLDEST_GLIBC - 1, -1)]
    return [*newer, f"manylinux2014_{target.arch}"]


def _download(pins: list[str], target: Target, folder: Path) -> None:
    listed = folder.with_name("fetch.txt")
    write_atomic(listed, "".join(f"{pin}\n" for pin in pins).encode())
    abi = f"cp{target.python.replace('.', '')}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar=off", "--retries=2", "--timeout=20"]
    command += ["--implementation=cp", f"--python-version={target.python}"]
    command += [f"--abi={one}" for one in (abi, "abi3", "none")]
    command += [f"--platform={one}" for one in platforms(target)]
    command += ["--dest", str(folder), "--requirement", str(listed)]
    done = run(command, "pip download", _PATIENCE_S, BundleError, cwd=folder)
    if done.returncode:
        raise BundleError(
            f"wheels for {describe_target(target)} were not fetched: {_last(done)}: is there a network, and "
            "a wheel for the board in the index? else use another --python or --glibc, or lock another version"
        )


def _last(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or [f"exit code {done.returncode}"])[-1].strip()


class Lock:
    """The packages of a lock file."""

    def __init__(self, text: str, path: str) -> None:
        """Parse a lock file of `uv pip compile --generate-hashes` or `pip-compile`.

        Args:
            text: of the file.
            path: of the file, for errors.

        Raises:
            BundleError: a package has no version or no hash.
        """
        self._path = path
        self._lines: dict[str, list[tuple[Requirement, str]]] = {}
        for line in text.replace("\\\n", " ").splitlines():
            line = line.partition(" #")[0].strip()
            if line and not line.startswith(("#", "-")):
                self._add(line)

    def _add(self, line: str) -> None:
        from packaging.requirements import InvalidRequirement, Requirement
        from packaging.utils import canonicalize_name

        spec, *hashes = (part.strip() for part in line.split("--hash="))
        try:
            requirement = Requirement(spec)
        except InvalidRequirement as error:
            raise BundleError(f"{self._path}: {spec!r}: {str(error).splitlines()[0]}") from error
        if not hashes or not str(requirement.specifier).startswith("=="):
            raise BundleError(f"{self._path}: {spec!r}: no hash or no version: run scripts/lock")
        locked = f"{requirement.name}{requirement.specifier} " + " ".join(f"--hash={one}" for one in hashes)
        self._lines.setdefault(canonicalize_name(requirement.name), []).append((requirement, locked))

    def pin(self, name: str, target: Target) -> str:
        """Return the line of pip for a package, with its hashes; raise BundleError if none is for the board."""
        from packaging.utils import canonicalize_name

        name, environment = canonicalize_name(name), _environment(target)
        for requirement, line in self._lines.get(name, []):
            if requirement.marker is None or requirement.marker.evaluate(environment):
                return line
        raise BundleError(f"{self._path}: {name} is not locked for {describe_target(target)}: run scripts/lock")


def needed(requirements: Iterable[str], extras: Iterable[str], target: Target) -> dict[str, frozenset[str]]:
    """Return the packages that a wheel needs on a board.

    Args:
        requirements: lines `Requires-Dist` of the wheel.
        extras: of the wheel.
        target: the board.

    Returns:
        the required extras of each package, by its normalised name.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: dict[str, frozenset[str]] = {}
    for requirement in map(Requirement, requirements):
        environments = [{**_environment(target), "extra": extra} for extra in ("", *extras)]
        marker = requirement.marker
        if marker is None or any(marker.evaluate(one) for one in environments):
            name = canonicalize_name(requirement.name)
            found[name] = found.get(name, frozenset()) | requirement.extras
    return found


def describe_target(target: Target) -> str:
    """Describe a target."""
    return f"{target.arch}, Python {target.python}, glibc {target.glibc}"


def _environment(target: Target) -> Mapping[str, str]:
    """Return what differs from this machine, for markers.

    https://packaging.python.org/specifications/dependency-specifiers
    """
    python = f"{target.python}.0"
    return {
        "extra": "",
        "implementation_version": python,
        "platform_machine": target.arch,
        "python_full_version": python,
        "python_version": target.python,
    }
