"""Looks for what may run a model on this board: device nodes and libraries, by the rows of `delegates`.

Nothing is loaded: a library may end the process that loads it.
"""

from __future__ import annotations

import ctypes.util
import struct
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qsl

from msgspec import Struct

from agent.compute.infer.backend import Plan
from agent.compute.infer.delegates import ROWS, Row
from agent.errors import BackendError

EXTERNAL = "external:"
_FOLDERS = ("usr/local/lib", "usr/lib/*-linux-gnu*", "usr/lib", "usr/lib64", "lib")
_MACHINES = {3: "x86", 40: "ARM (32-bit)", 62: "x86-64", 183: "ARM (64-bit)", 243: "RISC-V"}
"""ELF's numbers: https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.eheader.html"""


class Found(Struct, frozen=True):
    """A row on this board.

    Attributes:
        name, title: of the row.
        plan: how to open it; None: it is not here.
        parts: paths of the files whose change makes every measurement old.
        missing: why it is not here, and what to do.
    """

    name: str
    title: str
    plan: Plan | None = None
    parts: tuple[str, ...] = ()
    missing: str = ""


def candidates(names: Sequence[str] = (), root: Path = Path("/")) -> list[Found]:
    """Every row, found or not; or those that are named, in that order.

    Args:
        names: of rows, or `external:PATH?key=value`.
        root: of the file system.

    Raises:
        BackendError: there is no such row.
    """
    rows = {row.name: row for row in ROWS}
    found = []
    for name in names or rows:
        if name.startswith(EXTERNAL):
            found.append(_external(name, root))
        elif name in rows:
            found.append(_looked_for(rows[name], root))
        else:
            known = ("auto", "cpu", "null", *rows, f"{EXTERNAL}PATH?key=value")
            raise BackendError(f"no backend {name!r}; known: {', '.join(known)}")
    return found


def _looked_for(row: Row, root: Path) -> Found:
    def missing(what: str) -> Found:
        return Found(row.name, row.title, missing=f"{what}: {row.hint}" if row.hint else what)

    if row.devices and not any(_exists(pattern, root) for pattern in row.devices):
        return missing(f"no device ({', '.join('/' + pattern for pattern in row.devices)})")
    helper = ""
    for name in row.needs:
        helper = helper or _file(name, root)
    if row.needs and not helper:
        return missing(f"no {' or '.join(row.needs)}")
    if row.kind == "accelerator":
        plan = Plan(row.name, row.kind, row.library, row.settings)
        return Found(row.name, row.title, plan, _parts(row, root, helper))
    library = helper if helper.endswith(row.library) else _file(row.library, root)
    if not library:
        return missing(f"no {row.library}")
    if why := _foreign(Path(library)):
        return missing(f"{library}: {why}")
    settings = {key: value.format(library=helper) for key, value in row.settings.items()}
    return Found(
        row.name, row.title, Plan(row.name, row.kind, library, settings), _parts(row, root, helper, library)
    )


def _external(name: str, root: Path) -> Found:
    path, _, query = name.removeprefix(EXTERNAL).partition("?")
    title = f"external delegate {path}"
    library = _file(path, root)
    if not library:
        return Found(name, title, missing=f"{path}: no such file")
    if why := _foreign(Path(library)):
        return Found(name, title, missing=f"{path}: {why}")
    plan = Plan(name, "delegate", library, dict(parse_qsl(query, keep_blank_values=True)))
    return Found(name, title, plan, (library,))


def _parts(row: Row, root: Path, *libraries: str) -> tuple[str, ...]:
    more = (str(path) for pattern in row.parts for path in sorted(root.glob(pattern)))
    return tuple(dict.fromkeys(path for path in (*libraries, *more) if path))


def _exists(pattern: str, root: Path) -> bool:
    """Whether a glob matches, or, with `FILE=text`, a file that begins so."""
    pattern, _, text = pattern.partition("=")
    return any(not text or _begins(path, text) for path in root.glob(pattern))


def _begins(path: Path, text: str) -> bool:
    try:
        return path.read_text(errors="replace").startswith(text)
    except OSError:
        return False


def _file(name: str, root: Path) -> str:
    """Path of a library by its path or its name; empty when there is none."""
    if "/" in name:
        path = root / name.lstrip("/")
        return str(path) if path.is_file() else ""
    for folder in _FOLDERS:
        for path in sorted(root.glob(f"{folder}/{name}")):
            return str(path)
    stem = name.removeprefix("lib").partition(".so")[0]
    return (ctypes.util.find_library(stem) or "") if root == Path("/") else ""


def _foreign(path: Path) -> str:
    """Why the loader cannot load this file on this machine; empty if it may."""
    try:
        with path.open("rb") as file:
            head = file.read(20)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if head[:4] != b"\x7fELF" or len(head) < 20:
        return "is no shared library"
    (theirs,) = struct.unpack("<H", head[18:20])
    with Path("/proc/self/exe").open("rb") as file:
        (ours,) = struct.unpack("<H", file.read(20)[18:])
    if theirs == ours:
        return ""
    known = _MACHINES.get(theirs, f"machine {theirs}"), _MACHINES.get(ours, f"machine {ours}")
    return f"is for {known[0]}, and this is {known[1]}"
