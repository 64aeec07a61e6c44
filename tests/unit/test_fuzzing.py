"""The fuzzer finds and keeps seeded faults, and reports nothing else."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from agent.errors import ConfigError, VedetteError

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "scripts" / "fuzzing"))

from fuzz import NAMES, judge
from mutation import Mutator
from target import Target
from targets import TARGETS
from worker import Book, judged


def test_every_target_is_in_the_list_that_is_printed() -> None:
    assert tuple(TARGETS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_first_inputs_are_right(name: str) -> None:
    target = TARGETS[name]
    seeds = target.seeds()
    assert seeds
    for data in seeds:
        target.run(data)


def test_the_same_seed_makes_the_same_inputs_and_they_differ_from_what_they_are_made_of() -> None:
    given = [b'{"a": [1, 2]}', b"x" * 50]

    def made(seed: int) -> list[bytes]:
        mutator = Mutator(given, [b"null"], random.Random(seed))
        return [mutator.next() for _ in range(300)]

    assert made(1) == made(1) != made(2)
    assert len(set(made(1)) - set(given)) > 200
    assert any(b"null" in data for data in made(1))


def parser(data: bytes) -> None:
    if data == b"refused":
        raise ConfigError("no")
    if data == b"allowed":
        raise KeyError("k")
    if data.startswith(b"bug"):
        raise IndexError("out of range")


def test_only_what_should_not_be_raised_is_a_finding_and_each_place_once(tmp_path: Path) -> None:
    book = Book(tmp_path)
    try_one = judged(Target("a parser", parser, list), (VedetteError, KeyError), book)
    for data in (b"right", b"refused", b"allowed", b"bug 1", b"bug 2"):
        try_one(data)
    book.tell()
    told = judge("parser", tmp_path, 0)
    assert told.executions == 5
    ((what, path),) = told.findings.items()
    assert what.startswith("IndexError at ")
    assert path.read_bytes() == b"bug 1"
    assert "out of range" in path.with_name(f"{path.name}.txt").read_text()


@pytest.mark.parametrize("kind", ["crash", "timeout", "oom"])
def test_what_ended_the_process_is_a_finding(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"{kind}-0123").write_bytes(b"x")
    assert list(judge("parser", tmp_path, 77).findings) == [f"the process ended: {kind}"]


def test_the_input_of_the_moment_is_kept_when_the_process_ends_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "current").write_bytes(struct.pack("<I", 3) + b"abcdef")
    (tmp_path / "book.json").write_text(json.dumps({"executions": 9, "seconds": 1.0, "errors": {}}))
    told = judge("parser", tmp_path, -14)
    assert [path.read_bytes() for path in told.findings.values()] == [b"abc"]
    assert told.executions == 9


def test_a_process_that_did_nothing_is_a_finding_too(tmp_path: Path) -> None:
    assert list(judge("parser", tmp_path, 1).findings) == ["the process ended with 1"]
    assert judge("parser", tmp_path, 0).findings == {}


def test_a_target_is_fuzzed_in_a_process_of_its_own(tmp_path: Path) -> None:
    worker = Path(__file__).parent.parent.parent / "scripts" / "fuzzing" / "worker.py"
    code = subprocess.run([sys.executable, str(worker), "uri", "1", str(tmp_path), "3"], check=False).returncode
    told = judge("uri", tmp_path, code)
    assert told.findings == {}
    assert told.executions > 100
