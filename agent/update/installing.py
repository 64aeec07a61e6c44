"""Installing: an environment of Python's own in a slot, out of a bundle's wheels and without a network."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from agent.errors import UpdateError

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
