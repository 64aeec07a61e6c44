"""Conversion to structs from several threads."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta, Struct, defstruct

from agent.structs import convert, from_json, from_msgpack, json_decoder

_MANY = """
import sys, threading
from typing import Annotated
from msgspec import Meta, defstruct, field
from agent.structs import convert, from_json, from_msgpack, json_decoder

def make(number):
    inner = defstruct(f"I{number}", [(f"f{k}", Annotated[int, Meta(ge=k)] | None, None) for k in range(12)])
    kinds = [Annotated[dict[str, inner], Meta(max_length=k + 1)] for k in range(8)]
    return defstruct(f"S{number}", [(f"g{k}", kind, field(default_factory=dict)) for k, kind in enumerate(kinds)])

ways = (
    lambda kind: convert({"g0": {"a": {"f1": 3}}}, kind),
    lambda kind: from_json('{"g0": {"a": {"f1": 3}}}', kind),
    lambda kind: from_msgpack(b"\\x81\\xa2g0\\x81\\xa1a\\x81\\xa2f1\\x03", kind),
    lambda kind: json_decoder(kind).decode('{"g0": {"a": {"f1": 3}}}'),
)

def run(way, kind):
    barrier.wait()
    assert way(kind).g0["a"].f1 == 3
    count.append(1)

sys.setswitchinterval(1e-6)
count = []
for number in range(200):
    kind, barrier = make(number), threading.Barrier(len(ways))
    threads = [threading.Thread(target=run, args=(way, kind)) for way in ways]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
print(len(count))
"""

_FORKED = """
import os, sys, threading
from msgspec import defstruct
from agent.structs import convert

def prepare():
    for number in range(100_000):
        if ended.is_set():
            return
        convert({}, defstruct(f"S{number}", [(f"f{k}", int | None, None) for k in range(20)]))

sys.setswitchinterval(1e-6)
ended = threading.Event()
thread = threading.Thread(target=prepare)
thread.start()
for number in range(100):
    if (child := os.fork()) == 0:
        os._exit(0 if convert({"a": 1}, defstruct("Child", [("a", int)])).a == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0
ended.set()
thread.join()
print("fine")
"""


def printed(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_threads_that_meet_a_type_at_once_do_not_end_the_process() -> None:
    assert printed(_MANY) == "800"


def test_a_process_forked_meanwhile_can_convert() -> None:
    assert printed(_FORKED) == "fine"


class _Part(Struct, forbid_unknown_fields=True):
    size: Annotated[int, Meta(ge=0)]
    kind: Literal["screw", "nut"] = "nut"


def test_each_way_gives_the_struct_or_says_what_is_wrong() -> None:
    made = _Part(3, "screw")
    assert convert({"size": 3, "kind": "screw"}, _Part) == made
    assert convert({"size": "3", "kind": "screw"}, _Part, strict=False) == made
    assert from_json(msgspec.json.encode(made), _Part) == made
    assert from_msgpack(msgspec.msgpack.encode(made), _Part) == made
    assert json_decoder(tuple[_Part, ...]).decode(b'[{"size": 3, "kind": "screw"}]') == (made,)
    for wrong in ({"size": -1}, {"size": "3"}, {"size": 1, "kind": "bolt"}, {"size": 1, "x": 1}):
        with pytest.raises(msgspec.ValidationError):
            convert(wrong, _Part)
    with pytest.raises(msgspec.DecodeError):
        from_json(b"{", _Part)


def test_a_type_that_cannot_be_converted_to_is_refused_each_time() -> None:
    bad = defstruct("Bad", [("both", int | Annotated[bool, Meta(ge=1)])])
    for _ in range(2):
        with pytest.raises(TypeError):
            convert({}, bad)
