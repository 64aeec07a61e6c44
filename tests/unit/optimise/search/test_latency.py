"""Latency of candidates, on this machine and on a board behind a real sshd."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("torch", reason="candidates need the extra [optimise]")

from agent.compute.infer.benchmark import Measurement, Selection
from agent.compute.infer.session import BackendSpec
from agent.errors import FleetError, ModelError
from agent.optimise.search.latency import BoardMeter, LocalMeter
from tests.support.float_models import classifier, float_file
from tests.support.sshboards import SshBoards

MANIFEST = {
    "input": {"mean": [128.0] * 3, "std": [64.0] * 3},
    "output": {"decoder": "classify", "labels": ["a", "b", "c", "d"]},
}
VERDICT = Selection(
    BackendSpec(),
    BackendSpec(threads=2),
    "latency",
    (Measurement("cpu", threads=1, p50_ms=3.0), Measurement("cpu", threads=2, p50_ms=1.5)),
)
BENCH = """#!/bin/sh
test "$1 $3 $4 $5" = "bench --backend cpu --json" || exit 1
cp "$2" "$(dirname "$2")/net.tflite" {folder}
{answer}
"""


def test_this_machine_is_named_and_measures() -> None:
    meter = LocalMeter(rounds=2)
    assert meter.measure(float_file(classifier(8))) > 0
    assert meter.place == LocalMeter().place
    assert "core" not in meter.place, "workers may have different numbers of cores"


class Board:
    """One sshd, in front of which a program called `ssh` gives the options that a user has in their file."""

    def __init__(self, boards: SshBoards, folder: Path) -> None:
        self.folder = folder
        self.name = next(line.split()[0] for line in (boards.folder / "known_hosts").read_text().splitlines())

    def answers(self, answer: str) -> BoardMeter:
        (self.folder / "vedette").write_text(BENCH.format(folder=self.folder, answer=answer))
        (self.folder / "vedette").chmod(0o755)
        return BoardMeter(self.name, MANIFEST)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    programs = tmp_path / "programs"
    programs.mkdir()
    ssh = shutil.which("ssh")
    runs = f'PATH="{programs}:$PATH" exec sh -c "$SSH_ORIGINAL_COMMAND"'
    with SshBoards(tmp_path, porch=runs) as boards:
        inventory = (tmp_path / "fleet.toml").read_text()
        port = inventory.partition("ansible_port = ")[2].partition(" }")[0]
        options = (
            f"-p {port} -i {tmp_path}/operator -o HostName=127.0.0.1 -o HostKeyAlias=porch "
            f"-o UserKnownHostsFile={tmp_path}/known_hosts -o IdentitiesOnly=yes"
        )
        (programs / "ssh").write_text(f'#!/bin/sh\nexec {ssh} -F none {options} "$@"\n')
        (programs / "ssh").chmod(0o755)
        monkeypatch.setenv("PATH", str(programs), prepend=":")
        yield Board(boards, programs)


def test_a_board_gets_the_model_and_its_bench_is_read(board: Board) -> None:
    (board.folder / "answer.json").write_bytes(msgspec.json.encode(VERDICT))
    meter = board.answers(f"cat {board.folder}/answer.json")
    assert meter.measure(b"content") == 1.5
    assert (board.folder / "net.tflite").read_bytes() == b"content"
    assert "mean = [" in (board.folder / "net.toml").read_text()
    assert meter.place == "board porch"


@pytest.mark.parametrize(
    ("answer", "error", "told"),
    [
        ("echo 'no such operation' >&2; exit 1", ModelError, "porch: vedette bench failed: no such operation"),
        (
            "echo 'vedette: it crashes' >&2; echo later >&2; exit 1",
            ModelError,
            "porch: vedette bench failed: it crashes",
        ),
        ("echo '{}'", FleetError, "no answer of `vedette bench --json`"),
        ("exit 255", FleetError, "porch: cannot be reached"),
    ],
)
def test_what_goes_wrong_on_a_board_is_told(board: Board, answer: str, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        board.answers(answer).measure(b"content")


def test_a_board_is_asked_whether_it_has_vedette(board: Board) -> None:
    meter = board.answers("")
    meter.check()
    (board.folder / "vedette").unlink()
    with pytest.raises(FleetError, match="porch: has no command `vedette`"):
        meter.check()


def test_a_model_that_the_board_refuses_is_told(board: Board) -> None:
    refused = msgspec.structs.replace(VERDICT, measured=(Measurement("cpu", refused="it crashes"),))
    (board.folder / "answer.json").write_bytes(msgspec.json.encode(refused))
    with pytest.raises(ModelError, match="porch: it crashes"):
        board.answers(f"cat {board.folder}/answer.json").measure(b"content")


@pytest.mark.system
def test_a_real_bench_answers_over_ssh(board: Board) -> None:
    board.answers("")
    program = board.folder / "vedette"
    places = os.pathsep.join([str(Path(__file__).parents[4]), *filter(None, sys.path)])
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{places}" exec "{sys.executable}" -m agent "$@"\n')
    try:
        found = BoardMeter(board.name, MANIFEST).measure(float_file(classifier(8)))
    except ModelError as error:
        if "may not run" in str(error):
            pytest.skip(str(error))
        raise
    assert 0 < found < 100


@pytest.mark.parametrize("name", ["", "-oProxyCommand=date"])
def test_an_option_is_no_board(name: str) -> None:
    with pytest.raises(FleetError, match="expected a board"):
        BoardMeter(name, MANIFEST)


def test_a_machine_without_ssh_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FleetError, match="openssh-client"):
        BoardMeter("pi", MANIFEST).measure(b"")
