"""Files that hold a password: named in the configuration, read when needed.

In their names `$CREDENTIALS_DIRECTORY` is expanded, which systemd sets for a unit with `LoadCredential=`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from agent.errors import VedetteError, reason_of
from agent.text import has_variable, replace_variable

_VARIABLE = "CREDENTIALS_DIRECTORY"
_OF_UNIT = "/run/credentials/vedette.service"
_LONGEST = 0xFFFF
"""Most bytes of a password in MQTT."""
_ANYBODY = 0o007
_NO_FILE = "is a pipe, a device or a socket, and must be a file"

Wrong = Callable[[str], VedetteError]
"""Makes the error of a message that begins with what follows the key, such as `= /etc/x: Permission denied`."""


def expand(name: str, wrong: Wrong) -> Path:
    """Return the path of a file with `$CREDENTIALS_DIRECTORY` and `~` expanded.

    Raises:
        VedetteError: as `wrong` makes it: the variable is not set, or it is no file.
    """
    try:
        path = Path(_with_folder(name, wrong)).expanduser()
    except RuntimeError as error:  # the home of a user who does not exist
        raise wrong(f"= {name}: {error}; set it to a full path") from error
    with suppress(OSError, ValueError):
        if _is_endless(path.stat()):
            raise wrong(f"= {path}: {_NO_FILE}")
    return path


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


def read_password(path: Path, wrong: Wrong) -> str:
    """Return the first line of a file. No error holds anything of its content.

    Raises:
        VedetteError: as `wrong` makes it: the file cannot be read, or its first line is no password.
    """
    try:
        with open(path, "rb", opener=_opened_at_once) as file:
            if _is_endless(os.fstat(file.fileno())):
                raise wrong(f"= {path}: {_NO_FILE}")
            line = file.read(_LONGEST + 3).partition(b"\n")[0].removesuffix(b"\r")
    except (OSError, ValueError) as error:
        raise wrong(f"= {path}: {reason_of(error)}") from error
    if len(line) > _LONGEST:
        raise wrong(
            f"= {path}: its first line has more than {_LONGEST} bytes, which no password has: is it the file?"
        )
    try:
        text = line.decode("utf-8-sig")  # Windows editors write a byte order mark
    except UnicodeDecodeError as error:
        raise wrong(f"= {path}: not UTF-8 at byte {error.start}") from None
    if not text:
        raise wrong(f"= {path}: its first line is empty, and must be the password")
    if any(char < " " and char != "\t" for char in text):
        raise wrong(f"= {path}: its first line is not text: is it the file?")
    return text


def _opened_at_once(path: str, flags: int) -> int:
    """Open a file without waiting for the writer of a pipe that replaced it after the check."""
    return os.open(path, flags | os.O_NONBLOCK)


def _is_endless(found: os.stat_result) -> bool:
    """Return True for a kind of file whose reader may wait for ever."""
    return any(kind(found.st_mode) for kind in (stat.S_ISFIFO, stat.S_ISCHR, stat.S_ISSOCK))


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
