"""What a measurement depends on: when any of it changes, the measurement is of another board."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from agent.compute.infer.finding import Found
from agent.compute.infer.litert import load_runtime, runtime_version
from agent.health.board import read_board
from agent.manifest import Model


class Seen(Struct, frozen=True):
    """A file whose content is known for as long as the rest stays.

    Attributes:
        size: bytes. modified_ns, changed_ns, inode: as `stat` tells.
        sha256: of the content; empty: it cannot be read.
    """

    size: int
    modified_ns: int
    changed_ns: int
    inode: int
    sha256: str


class Circumstances(Struct, frozen=True):
    """Of a measurement.

    Attributes:
        model: sha256 of its file.
        rungs: that may run.
        golden: what its manifest says of golden inputs.
        runtime: name and version.
        candidates: by name, how each is opened and the sha256 of all its files.
        threads_max: with how many the CPU was tried.
        kernel, cpu: of the board; cores: that could be used.
    """

    model: str
    rungs: tuple[str, ...]
    golden: str
    runtime: str
    candidates: dict[str, str]
    threads_max: int
    kernel: str
    cpu: str
    cores: int

    def differences(self, other: Circumstances) -> list[str]:
        """Names of what is not the same."""
        return [name for name in self.__struct_fields__ if getattr(self, name) != getattr(other, name)]


def circumstances(
    model: Model, found: Sequence[Found], threads_max: int, files: Mapping[str, Seen]
) -> tuple[Circumstances, dict[str, Seen]]:
    """Those of now.

    Args:
        model: to be run.
        found: what may run it.
        threads_max: see `Circumstances`.
        files: known from before; those that look the same are not read again.

    Returns:
        the circumstances, and what is known of the files now.
    """
    board = read_board()
    now = {path: _seen(Path(path), files.get(path)) for one in found for path in one.parts}
    golden = model.manifest.golden
    return Circumstances(
        model.sha256,
        tuple(rung.name for rung in model.manifest.rungs),
        f"{' '.join(golden.files)} {golden.tolerance}",
        runtime_version(load_runtime()[0]),
        {one.name: _digest(one, now) for one in found if one.plan is not None},
        threads_max,
        board.kernel,
        f"{board.cpu}; {hashlib.sha256(' '.join(board.features).encode()).hexdigest()[:16]}",
        board.cores,
    ), now


def _digest(found: Found, files: Mapping[str, Seen]) -> str:
    assert found.plan is not None
    settings = " ".join(f"{key}={value}" for key, value in found.plan.settings.items())
    parts = [found.plan.library, settings, *(f"{path} {files[path].sha256}" for path in found.parts)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _seen(path: Path, before: Seen | None) -> Seen:
    try:
        stat = path.stat()
        now = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        if before is not None and now == (before.size, before.modified_ns, before.changed_ns, before.inode):
            return before
        with path.open("rb") as file:
            return Seen(*now, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError:
        return Seen(0, 0, 0, 0, "")
