"""The lock file, and the packages of it that a board needs: markers are evaluated for the board."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from msgspec import Struct

from agent.errors import BundleError
from agent.update.bundle.description import Target

if TYPE_CHECKING:
    from packaging.requirements import Requirement


HOW = "pip install '.[bundle]' in the clone"


class Pin(Struct, frozen=True):
    """A package that a board needs, in one version.

    Attributes:
        name: in its normal form, such as `opencv-python-headless`.
        version: as locked.
        line: for pip, without a marker, with hashes.
    """

    name: str
    version: str
    line: str


class Lock:
    """A lock file's packages."""

    def __init__(self, text: str, path: str) -> None:
        """Read it.

        Args:
            text: of the file, as `uv pip compile --generate-hashes` and `pip-compile` write it.
            path: of the file, for messages.

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

        said, *hashes = (part.strip() for part in line.split("--hash="))
        try:
            requirement = Requirement(said)
        except InvalidRequirement as error:
            raise BundleError(f"{self._path}: {said!r}: {str(error).splitlines()[0]}") from error
        if not hashes or not str(requirement.specifier).startswith("=="):
            raise BundleError(f"{self._path}: {said!r}: no hash or no version: make it anew by scripts/lock")
        locked = f"{requirement.name}{requirement.specifier} " + " ".join(f"--hash={one}" for one in hashes)
        self._lines.setdefault(canonicalize_name(requirement.name), []).append((requirement, locked))

    def pin(self, name: str, target: Target) -> Pin:
        """Return the locked version of a package for a board.

        Raises:
            BundleError: it is not locked for such a board.
        """
        from packaging.utils import canonicalize_name

        name, environment = canonicalize_name(name), _environment(target)
        for requirement, line in self._lines.get(name, []):
            if requirement.marker is None or requirement.marker.evaluate(environment):
                return Pin(name, str(requirement.specifier).removeprefix("=="), line)
        raise BundleError(f"{self._path}: {name} is not locked for {about(target)}: make it anew by scripts/lock")


def needed(requirements: Iterable[str], extras: Iterable[str], target: Target) -> dict[str, frozenset[str]]:
    """Return the packages that a wheel needs on a board.

    Args:
        requirements: its lines `Requires-Dist`.
        extras: of it that are wanted.
        target: the board.

    Returns:
        by name in its normal form, the extras of that package that are wanted.
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


def about(target: Target) -> str:
    """Describe a target."""
    return f"{target.arch}, Python {target.python}, glibc {target.glibc}"


def check_installed(*names: str) -> None:
    """Refuse to build without the packages for it.

    Args:
        names: packages to import.

    Raises:
        BundleError: says what to install.
    """
    from importlib.util import find_spec

    for name in names:
        if find_spec(name) is None:
            how = f"{sys.executable} -m ensurepip" if name == "pip" else HOW
            raise BundleError(f"no {name} in this environment: {how}")


def _environment(target: Target) -> Mapping[str, str]:
    """Environment for markers: https://packaging.python.org/specifications/dependency-specifiers"""
    return {
        "extra": "",
        "implementation_name": "cpython",
        "implementation_version": f"{target.python}.0",
        "os_name": "posix",
        "platform_machine": target.arch,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{target.python}.0",
        "python_version": target.python,
        "sys_platform": "linux",
    }
