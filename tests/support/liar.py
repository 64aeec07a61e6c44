"""A worker process that lies: what a library could send that has taken its process over."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

LIAR = """#!{python}
import os, struct, sys
there, back, life, tensors = map(int, sys.argv[4:])


def get():
    (length,) = struct.unpack("<I", os.read(there, 4))
    while length:
        length -= len(os.read(there, length))


def put(message, length=None):
    os.write(back, struct.pack("<I", len(message) if length is None else length) + message)


def spec(shape, dtype="float32", zero_point=0):
    return '{{"name":"x","shape":%s,"dtype":"%s","zero_point":%d}}' % (shape, dtype, zero_point)


def opened(inputs=spec([1, 4]), offset=0, size=4096):
    region = '{{"inputs":[%s],"outputs":[],"offset":%d,"size":%d}}' % (inputs, offset, size)
    return ('{{"type":"ModelOpened","runtime":"r","nodes":1,"delegated":1,"region":%s}}' % region).encode()


get(), get()
{lie}
while True:
    get()
    put(b"")
"""


def lying(folder: Path, monkeypatch: pytest.MonkeyPatch, lie: str) -> None:
    """Make the next worker processes run `lie`, with `put` and `opened`, instead of answering `OpenModel`."""
    program = folder / "liar"
    program.write_text(LIAR.format(python=sys.executable, lie=lie))
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
