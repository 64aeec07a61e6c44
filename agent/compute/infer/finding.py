"""Looks for what may run a model on this board: device nodes and libraries, by the rows of `delegates`.

Nothing is loaded: a library may end the process that loads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.parse import parse_qsl

from msgspec import Struct

from agent.compute.infer.backend import Plan
from agent.compute.infer.delegates import ROWS, Row
from agent.compute.infer.libraries import Libraries, why_not
from agent.errors import BackendError

EXTERNAL = "external:"
_GPUS, _RENDER = ("gpu", "gpu-f32"), "dev/dri/renderD*"
"""Rows that name no device, since Vulkan looks for it, and the nodes that Mesa's drivers open."""


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


def candidates(names: Sequence[str] = (), root: Path = Path("/"), *, besides: Sequence[str] = ()) -> list[Found]:
    """Every row, found or not; or those that are named, in that order.

    Args:
        names: of rows, or `external:PATH?key=value`.
        root: of the file system.
        besides: other words that the caller takes, for the error.

    Raises:
        BackendError: there is no such row.
    """
    rows = {row.name: row for row in ROWS}
    libraries = Libraries(root)
    found = []
    for name in names or rows:
        if name.startswith(EXTERNAL):
            found.append(_external(name, libraries))
        elif name in rows:
            found.append(_looked_for(rows[name], root, libraries))
        else:
            known = (*besides, *rows, f"{EXTERNAL}PATH?key=value")
            raise BackendError(f"no backend {name!r}; known: {', '.join(known)}")
    return found


def device_nodes(name: str = "", root: Path = Path("/")) -> list[Path]:
    """List the device nodes on this board of one row of `delegates`, or of every row.

    Args:
        name: of the row; empty: all.
        root: of the file system.
    """
    patterns = [pattern for row in ROWS if name in ("", row.name) for pattern in row.devices]
    found: list[Path] = []
    for pattern in dict.fromkeys((*patterns, _RENDER) if name in ("", *_GPUS) else patterns):
        glob, _, text = pattern.partition("=")
        paths = [path for path in sorted(root.glob(glob)) if not text or _begins(path, text)]
        found += paths if pattern.startswith("dev/") else map(partial(_usb_node, root), paths)
    return list(dict.fromkeys(path for path in found if path.is_char_device()))


def _usb_node(root: Path, attribute: Path) -> Path:
    """Return the node of the USB device that an attribute in sysfs belongs to."""
    try:
        bus, device = (int((attribute.parent / name).read_text()) for name in ("busnum", "devnum"))
    except (OSError, ValueError):
        return attribute
    return root / f"dev/bus/usb/{bus:03d}/{device:03d}"


def _looked_for(row: Row, root: Path, libraries: Libraries) -> Found:
    def missing(what: str) -> Found:
        return Found(row.name, row.title, missing=f"{what}: {row.hint}" if row.hint else what)

    if row.devices and not any(_exists(pattern, root) for pattern in row.devices):
        return missing(f"no device ({', '.join('/' + pattern for pattern in row.devices)})")
    helper = ""
    for name in row.needs:
        helper = helper or libraries.path(name)
    if row.needs and not helper:
        return missing(f"no {' or '.join(row.needs)}")
    if helper and (why := why_not(Path(helper))):
        return missing(f"{helper}: {why}")
    if row.kind == "accelerator":
        plan = Plan(row.name, row.kind, row.library, row.settings)
        return Found(row.name, row.title, plan, _parts(row, root, helper))
    library = helper if helper.endswith(row.library) else libraries.path(row.library)
    if not library:
        return missing(f"no {row.library}")
    if why := why_not(Path(library)):
        return missing(f"{library}: {why}")
    settings = {key: value.format(library=helper) for key, value in row.settings.items()}
    return Found(
        row.name, row.title, Plan(row.name, row.kind, library, settings), _parts(row, root, helper, library)
    )


def _external(name: str, libraries: Libraries) -> Found:
    path, _, query = name.removeprefix(EXTERNAL).partition("?")
    title = f"external delegate {path}"
    library = libraries.path(path)
    if not library:
        return Found(name, title, missing=f"{path}: no such file")
    if why := why_not(Path(library)):
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
