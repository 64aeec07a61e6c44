"""One target in a process of its own: guided by coverage with atheris, where it is installed, else by chance."""

from __future__ import annotations

import hashlib
import json
import mmap
import random
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from target import Target

ROOT = Path(__file__).parent.parent.parent
LONGEST = 65536
"""Bytes of an input; seeds may be longer."""
HANGS_S = 20
"""For one input; then it counts as a finding."""


class Book:
    """Progress of a fuzzing process, in files because the process may end at any moment."""

    def __init__(self, folder: Path, counts: Mapping[str, int] | None = None) -> None:
        self._folder, self._began = folder, time.monotonic()
        self._counts = {} if counts is None else counts
        self.executions, self._errors = 0, dict[str, str]()
        self._told_at = 0.0

    def count(self) -> None:
        """One more input was tried."""
        self.executions += 1
        if self.executions % 64 == 0 and time.monotonic() > self._told_at + 0.5:
            self.tell()

    def tell(self) -> None:
        """Write it down."""
        self._told_at = time.monotonic()
        told = {
            "executions": self.executions,
            "seconds": self._told_at - self._began,
            "errors": self._errors,
            "counts": dict(self._counts),
        }
        (self._folder / "book.json").write_text(json.dumps(told), encoding="utf-8")

    def finding(self, error: BaseException, data: bytes) -> None:
        """An error that may not be: kept with its input, once for each place that it comes from."""
        frames = [f for f in traceback.extract_tb(error.__traceback__) if str(ROOT / "agent") in f.filename]
        place = f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].lineno}" if frames else "outside"
        key = f"{type(error).__name__} at {place}"
        if key in self._errors:
            return
        name = f"{type(error).__name__}-{hashlib.sha256(data).hexdigest()[:12]}"
        self._errors[key] = name
        (self._folder / name).write_bytes(data)
        text = "".join(traceback.format_exception(error))
        (self._folder / f"{name}.txt").write_text(text, encoding="utf-8", errors="replace")
        self.tell()


def judged(target: Target, allowed: tuple[type[Exception], ...], book: Book) -> Callable[[bytes], None]:
    """The target as a function that only notes what it should not have raised."""

    def try_one(data: bytes) -> None:
        book.count()
        try:
            target.run(data)
        except allowed:
            pass
        except Exception as error:
            book.finding(error, data)

    return try_one


def main(name: str, seconds: str, folder: str, seed: str) -> None:
    """Fuzz a target for so long."""
    try:
        import atheris
    except ImportError:
        atheris = None
    sys.path.insert(0, str(ROOT))
    if atheris is None:
        import targets
    else:
        with atheris.instrument_imports(include=["agent"]):
            import targets
    from agent.errors import VedetteError

    target = targets.TARGETS[name]
    book = Book(Path(folder), target.counts)
    atheris = atheris if target.guided else None
    try_one = judged(target, (VedetteError, *target.allowed), book)
    for data in target.seeds():
        try_one(data)
    if atheris is None:
        _by_chance(target, try_one, float(seconds), Path(folder), int(seed))
        book.tell()
    else:
        _by_coverage(atheris, target, try_one, int(float(seconds)), Path(folder), seed)


def _by_coverage(
    atheris: ModuleType, target: Target, try_one: Callable[[bytes], None], seconds: int, folder: Path, seed: str
) -> None:
    """Libfuzzer's loop; it ends the process, and keeps what ends it as a file."""
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(target.seeds()):
        (corpus / f"seed{number}").write_bytes(data)
    words = ['"' + "".join(rf"\x{byte:02x}" for byte in token) + '"' for token in target.tokens]
    longest = max([LONGEST, *map(len, target.seeds())])
    options = [
        f"-max_total_time={max(1, seconds)}",
        f"-max_len={longest}",
        f"-timeout={HANGS_S}",
        f"-seed={seed}",
    ]
    options += ["-rss_limit_mb=4096", f"-artifact_prefix={folder}/", "-verbosity=0"]
    if words:
        (folder / "words").write_text("\n".join([*words, ""]))
        options.append(f"-dict={folder / 'words'}")
    atheris.Setup([sys.argv[0], *options, str(corpus)], try_one)
    atheris.Fuzz()


def _by_chance(target: Target, try_one: Callable[[bytes], None], seconds: float, folder: Path, seed: int) -> None:
    """Mutations of the seeds. The input of the moment lies in a file, for when the process dies of it."""
    from mutation import Mutator

    mutator, until = Mutator(target.seeds(), target.tokens, random.Random(seed)), time.monotonic() + seconds
    file = folder / "current"
    with file.open("wb+") as current:
        current.truncate(4 + 16 * LONGEST)
        now = mmap.mmap(current.fileno(), 0)
        while time.monotonic() < until:
            data = mutator.next()[: len(now) - 4]
            now[: 4 + len(data)] = struct.pack("<I", len(data)) + data
            signal.alarm(HANGS_S)  # nobody handles it: it ends the process
            try_one(data)
        signal.alarm(0)
        now.close()
    file.unlink()


if __name__ == "__main__":
    main(*sys.argv[1:])
