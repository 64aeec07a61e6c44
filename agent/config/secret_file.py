"""Files that hold a password or a key: named in the configuration, read when needed.

In their names `$CREDENTIALS_DIRECTORY` is expanded, which systemd sets for a unit with `LoadCredential=`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from agent.errors import VedetteError, reason_of
from agent.text import has_variable, replace_variable

_VARIABLE = "CREDENTIALS_DIRECTORY"
_OF_UNIT = "/run/credentials/vedette.service"
_LONGEST = 0xFFFF
"""Most bytes of a password in MQTT."""
_ANYBODY = 0o007

Wrong = Callable[[str], VedetteError]
"""Makes the error of a message that begins with what follows the key, such as `= /etc/x: Permission denied`."""


def expand(name: str, wrong: Wrong) -> Path:
    """Return the path of a file with `$CREDENTIALS_DIRECTORY` and `~` expanded.

    Raises:
        VedetteError: as `wrong` makes it: the variable is not set, or the user does not exist.
    """
    try:
        return Path(_with_folder(name, wrong)).expanduser()
    except RuntimeError as error:  # the home of a user who does not exist
        raise wrong(f"= {name}: {error}; set it to a full path") from error


def _with_folder(name: str, wrong: Wrong) -> str:
    if not wants_credentials(name):
        return name
    folder = os.environ.get(_VARIABLE, "")
    if not folder and os.access(_OF_UNIT, os.R_OK | os.X_OK):  # root may see the unit's credentials while it runs
        folder = _OF_UNIT
    if not folder:
        missing = KeyError(_VARIABLE)
        raise wrong(f"= {name}: ${_VARIABLE} is not set; systemd sets it with LoadCredential=") from missing
    return replace_variable(name, _VARIABLE, folder)


def wants_credentials(name: str) -> bool:
    """Return True if a path lies among the unit's credentials, which no other program may read."""
    return has_variable(name, _VARIABLE)


def is_open_to_all(path: Path) -> bool:
    """Return True if every user of this machine may read or change a plain file.

    Devices, pipes and folders hold no password, and their permissions must stay.
    """
    try:
        mode = path.stat().st_mode
        return stat.S_ISREG(mode) and bool(mode & _ANYBODY)
    except (OSError, ValueError):
        return False


def readable(name: str, wrong: Wrong) -> Path:
    """Return the expanded path of a file that can be read. Raises VedetteError, as `wrong` makes it."""
    path = expand(name, wrong)
    _read(path, wrong, 0)
    return path


def read_password(name: str, wrong: Wrong) -> str:
    """Return the first line of a file. No error holds anything of its content.

    Raises:
        VedetteError: as `wrong` makes it: the file cannot be read, or its first line is no password.
    """
    path = expand(name, wrong)
    line = _read(path, wrong, _LONGEST + 3).partition(b"\n")[0].removesuffix(b"\r")
    try:
        text = line.decode("utf-8-sig")  # Windows editors write a byte order mark
    except UnicodeDecodeError:
        text = ""
    if not text or len(line) > _LONGEST or any(char < " " and char != "\t" for char in text):
        raise wrong(f"= {path}: its first line must be the password: text in UTF-8, at most {_LONGEST} bytes")
    return text


def _read(path: Path, wrong: Wrong, size: int) -> bytes:
    try:
        # Without waiting for the writer of a pipe.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise wrong(f"= {path}: is a pipe, a device or a socket, and must be a file")
            return file.read(size)
    except (OSError, ValueError) as error:
        raise wrong(f"= {path}: {reason_of(error)}") from error
