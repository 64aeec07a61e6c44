"""Fuzzing targets: the type and its shared parts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent


class Target(NamedTuple):
    """One parser.

    Attributes:
        about: what it reads, in some words.
        run: parses; raises what is allowed, or nothing.
        seeds: inputs that are right.
        allowed: errors that its callers expect, besides Vedette's own.
        guided: whether coverage tells anything: not where it is read in C.
        tokens: words of its language.
        counts: what came of inputs, besides errors; the target counts it itself.
    """

    about: str
    run: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    allowed: tuple[type[Exception], ...] = ()
    tokens: tuple[bytes, ...] = ()
    guided: bool = True
    counts: Mapping[str, int] = {}


FOLDER = Path(tempfile.mkdtemp(prefix="vedette-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
WITHOUT_BOARD = FOLDER / "root"
WITHOUT_BOARD.mkdir()
JSON = (b'"', b"{", b"}", b"[", b"]", b":", b",", b"null", b"true", b"1e308", b"-0", b"\\u0000", b"\\ud800")
TOML = (
    b"[",
    b"]",
    b"[[",
    b"]]",
    b" = ",
    b'"',
    b"'",
    b'"""',
    b"true",
    b"inf",
    b"nan",
    b"1979-05-27T07:32:00Z",
    b".",
)
