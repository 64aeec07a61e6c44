"""Prove that no update harms a board: power cuts in every state, and bundles that must not be committed."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import report
from contained import Contained
from cuts import ALL, Cutter, plan
from emulated import Emulated
from goods import A, B, Goods, Target
from hearing import Hearing
from machine import ROOT, Board, BoardError, sh, wait_for
from msgspec import Struct
from refusals import Refusals
from results import Results, Row
from scenes import Scene, scenes
from settling import DEVICE, deliver, is_well, settle
from snapshots import Camera, Shot, load, store

from agent.cli.bundle import read_gate
from agent.update.bundle import HealthGate
from tests.support.mosquitto import Mosquitto, free_port

HOME = ROOT / "build/prove_update"
BOARDS = ROOT / "build/virtual_board"


class Kind(Struct, frozen=True):
    """Differences between the kinds of boards.

    Attributes:
        arch, python: that bundles are for.
        health: gate of a trial: what is emulated is slow, and now and then far slower.
    """

    arch: str
    python: str
    health: tuple[str, ...]


_EMULATED = Kind("aarch64", "3.13", ("steady_s=15", "within_s=300", "p95_factor=20", "p95_floor_ms=500"))
_CONTAINED = ("steady_s=5", "within_s=40", "p95_factor=2", "p95_floor_ms=1")


class Proof:
    """Proof of one kind of board."""

    def __init__(self, args: argparse.Namespace, kind: Kind, name: str) -> None:
        self.args, self.kind, self.name = args, kind, name
        HOME.mkdir(parents=True, exist_ok=True)
        _tell("building the bundles")
        self.goods = Goods(HOME / f"{name}.goods", Target(kind.arch, kind.python, kind.health))
        self.a, self.b = self.goods.bundle(A, 1), self.goods.bundle(B, 2)
        digest = hashlib.sha256(self.a.read_bytes() + self.b.read_bytes())
        self.stamp = digest.hexdigest()
        self.results = Results(HOME / f"{name}.results", self.stamp)

    def keep(self, row: Row) -> None:
        """Store a row and print it."""
        self.results.add(row)
        mark = "" if row.proved else "NOT PROVED: "
        _tell(f"{row.name}: {row.met}: {row.outcome}: {mark}{row.why} ({row.seconds:.0f} s, {row.events} events)")

    def refusals(self, board: Board) -> None:
        """Run every scene that is not proved yet, on a healthy board."""
        player = Refusals(board, self.goods, self.b, A)
        for scene in self.scenes_left:
            _tell(f"{scene.name} …")
            row = player.play(scene)
            self.keep(row)
            if row.outcome.startswith("committed") and scene.state != "committed":
                raise BoardError(f"{scene.name}: was committed, and what comes after it needs version {A}")

    @property
    def scenes_left(self) -> list[Scene]:
        """Return the scenes that are not proved yet."""
        proved = {row.name for row in self.results if row.proved}
        every = scenes(read_gate("--health", self.kind.health, HealthGate))
        return [scene for scene in every if f"{self.name}: {scene.name}" not in proved]


def contained(args: argparse.Namespace) -> Results:
    """Prove a board in a container, without power cuts: they would lose no written data."""
    python = "{}.{}".format(*json.loads(_python_of_system()))
    proof = Proof(args, Kind("x86_64", python, _CONTAINED), Contained.name)
    board = Contained(HOME / "container")
    board.down()
    for part in ("disk", "own", "work"):
        shutil.rmtree(HOME / "container" / part, ignore_errors=True)
    if not proof.scenes_left:
        return proof.results
    try:
        board.up()
        board.small_disk()
        with Mosquitto(HOME / "broker") as broker:
            took = settle(board, proof.goods, proof.a, broker.port)
            proof.keep(_installed(board, took))
            proof.refusals(board)
    finally:
        board.down()
    return proof.results


def emulated(args: argparse.Namespace) -> Results:
    """Prove the emulated board."""
    proof = Proof(args, _EMULATED, Emulated.name)
    board = Emulated(BOARDS / "board", BOARDS / "image")
    port = HOME / "port"
    if not port.exists():
        port.write_text(str(free_port()))
    try:
        # The board's snapshots know the port.
        with Mosquitto(HOME / "broker", port=int(port.read_text())) as broker:
            hearing = Hearing(broker, DEVICE)
            shots = _snapshots(proof, board, broker.port, hearing)
            if args.only != "refusals":
                _cuts(proof, board, hearing, shots)
            if args.only != "cuts" and proof.scenes_left:
                board.start(shots[0].name)
                board.go_on()
                board.wait_ssh()
                wait_for("version A is well", lambda: is_well(board, A), 400)
                proof.refusals(board)
    finally:
        if board.pid:
            board.cut()
    return proof.results


def _snapshots(proof: Proof, board: Emulated, port: int, hearing: Hearing) -> list[Shot]:
    """Load the snapshots, or take them."""
    path = HOME / f"{proof.name}.snapshots"
    shots = load(path, proof.stamp)
    if board.pid:
        board.cut()
    if shots and {shot.name for shot in shots} <= set(board.snapshots()):
        return shots
    _tell("booting the board, and installing version A on it …")
    path.unlink(missing_ok=True)
    board.fresh()
    board.up()
    took = settle(board, proof.goods, proof.a, port)
    proof.keep(_installed(board, took))
    place = deliver(board, proof.b)
    wait_for("version A is well", lambda: is_well(board, A), 400)
    sh(board, "sync")
    _tell("taking snapshots of an update without faults …")
    shots = Camera(board, hearing).shoot(place)
    board.cut()
    store(path, proof.stamp, shots)
    for shot in shots:
        _tell(f"{shot.name}: at {shot.at_s:.1f} s, for {shot.length_s:.1f} s; event {shot.known}")
    return shots


def _installed(board: Board, took: float) -> Row:
    return Row(
        name=f"{board.name}: install",
        group="install",
        planned="scripts/install --bundle",
        met="committed",
        outcome="A runs, camera and microphone infer",
        proved=True,
        seconds=round(took, 1),
    )


def _cuts(proof: Proof, board: Emulated, hearing: Hearing, shots: list[Shot]) -> None:
    cutter = Cutter(board, hearing)
    if not proof.results.of("disk"):
        proof.keep(cutter.prove_disk(shots[0]))
    for number, cut in enumerate(plan(shots, proof.args.cuts)):
        if cut.name in proof.results:
            continue
        _tell(f"{cut.name}, {cut.delay_s:.2f} s after {cut.shot.name}{', twice' if cut.second_s else ''} …")
        proof.keep(cutter.play(cut))
        if number % 10 == 9:
            board.tidy()


def _python_of_system() -> str:
    """Return the target of the board in a container, which has this machine's files."""
    import subprocess

    command = ["/usr/bin/python3", "-c", "import sys; print(list(sys.version_info[:2]))"]
    return subprocess.check_output(command, text=True)


def _tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> None:
    args = _arguments()
    began = time.monotonic()
    try:
        results = contained(args) if args.board == "container" else emulated(args)
    except BoardError as error:
        sys.exit(f"prove_update: {error}")
    report.show(results)
    cuts = args.cuts if args.board == "qemu" and args.only != "refusals" else 0
    report.conclude(results, args.board, cuts, args.only, time.monotonic() - began)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/virtual_board/prove_update", description=__doc__)
    parser.add_argument("--board", choices=("qemu", "container"), default="qemu", help="default: %(default)s")
    parser.add_argument("--cuts", type=int, default=ALL, help="power cuts (default: %(default)s)")
    parser.add_argument("--only", choices=("cuts", "refusals"), help="this part alone")
    return parser.parse_args()


if __name__ == "__main__":
    main()
