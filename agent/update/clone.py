"""The clone that Vedette's own wheel and its lock file are taken from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import agent
from agent.errors import BundleError

LOCK = "requirements.lock"
_OWN = Path(__file__).parent.parent.parent
"""Of a vedette that runs from its clone; of an installed one it is `site-packages`."""
_VERSION = re.compile(r'^__version__ = "([^"]*)"', re.MULTILINE)


def find_clone() -> Path:
    """The clone that this vedette runs from; of one that was installed, the working folder, if that is a clone.

    Raises:
        BundleError: there is none, or it is one of another version.
    """
    if _is_clone(_OWN):
        return _OWN
    here = Path.cwd()
    if not _is_clone(here):
        raise BundleError(
            "this vedette does not run from a clone: run it in a clone, or give its wheel by --wheel, its lock "
            "file by --lock"
        )
    found = _VERSION.search((here / "agent" / "__init__.py").read_text(encoding="utf-8", errors="replace"))
    if (version := found[1] if found else "unknown") != agent.__version__:
        raise BundleError(
            f"{here}: a clone of version {version}, and this vedette is {agent.__version__}: pip install "
            "'.[bundle]' there"
        )
    return here


def extras_of(clone: Path) -> list[str]:
    """Names of the extras that its `pyproject.toml` has."""
    return list(_project(clone).get("optional-dependencies", {}))


def _is_clone(folder: Path) -> bool:
    own = (LOCK, "agent/__main__.py", "agent/__init__.py")
    return _project(folder).get("name") == "vedette" and all((folder / name).is_file() for name in own)


def _project(clone: Path) -> dict[str, Any]:
    """The table `[project]`; empty: it cannot be read, or there is none."""
    try:
        table = tomllib.loads((clone / "pyproject.toml").read_text(encoding="utf-8")).get("project")
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}
