"""Compare Vedette on ARM with this machine: models, sound, commands and tests."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
from board import ROOT, Board, run
from compare import KNOWN, Answers, Difference, delegation, difference, differences, outputs, to_blame
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from agent.models.files import bundled

CPUS = ("cortex-a72", "cortex-a76")
_CASES = 5
_WITHIN = {"front end/logmel": 1e-4, "front end/mfcc": 1e-4, "sound/resampled": 1.0}
"""Largest allowed difference: of rows in natural logarithms, of samples in the last bit."""
_GPU = "libLiteRtWebGpuAccelerator.so"
_RUNTIME = "libpywrap_litert_common.so"
_WITHOUT_GPU = {"cortex-a72": ("SIGILL", "libvulkan")}
"""Words of which the error has to contain one."""
_TARGETS = {
    "operations_unexplained": "0",
    "last_bits": "<= 1",
    "logmel": "<= 1e-4",
    "mfcc": "<= 1e-4",
    "resampled": "<= 1",
    "tests_failed": "0",
}
"""Required figures of each processor."""


class Row(Struct, frozen=True):
    """Result of one check.

    Attributes:
        cpu, what: of the table. found: in words. proved: whether it holds.
        figures: to be reported.
    """

    cpu: str
    what: str
    found: str
    proved: bool
    figures: dict[str, float] = {}


def main() -> None:
    args = _arguments()
    build = args.root.parent
    ours = _answers(build / "here.npz", 1 if args.quick else _CASES)
    rows: list[Row] = []
    for cpu in args.cpu or (CPUS[:1] if args.quick else CPUS):
        board = Board(args.root, cpu)
        rows += _compared(board, ours, build / f"{cpu}.npz", 1 if args.quick else _CASES)
        rows += [_started(board, "--help"), _started(board, "models", "list"), _apart(board)]
        rows += [] if args.quick else [_tested(board)]
    if not args.json:
        _show(rows)
    _conclude(rows)


def _conclude(rows: list[Row]) -> None:
    every = [(row.cpu, name, value) for row in rows for name, value in row.figures.items()]
    figures = {f"{cpu}_{name}": float(f"{value:.4g}") for cpu, name, value in every}
    targets = {f"{cpu}_{name}": _TARGETS[name] for cpu, name, _ in every if name in _TARGETS}
    figures["not_proved"], targets["not_proved"] = sum(not row.proved for row in rows), "0"
    meets = not figures["not_proved"]
    print(json.dumps({"bench": "arm_check", "figures": figures, "targets": targets, "meets": meets}))
    sys.exit(not meets)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/arm_check", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument(
        "--cpu", action="append", help=f"as QEMU calls it, may be repeated; else {', '.join(CPUS)}"
    )
    parser.add_argument("--json", action="store_true", help="no table, only the closing line")
    parser.add_argument(
        "--quick", action="store_true", help=f"end within 60 s: one input, {CPUS[0]} only, no tests"
    )
    return parser.parse_args()


def _tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text} …", file=sys.stderr, flush=True)


def _answers(path: Path, cases: int, board: Board | None = None) -> Answers:
    """Return the answers of a board or of this machine."""
    who = board.cpu if board else "this machine"
    _tell(f"{who}: models and sound")
    program = [str(ROOT / "scripts" / "virtual_board" / "answers.py"), str(path.resolve()), str(cases)]
    if board:
        status, said = board.python(*program, shown=True)
    else:
        status, said = run([sys.executable, *program], dict(os.environ))
    if status:
        raise SystemExit(f"{who} gave no answers (status {status}):\n{said[-2000:]}")
    with np.load(path) as file:
        answers = dict(file)
    path.unlink()
    return answers


def _compared(board: Board, ours: Answers, path: Path, cases: int) -> list[Row]:
    theirs = _answers(path, cases, board)
    return [
        _delegated(board.cpu, ours, theirs),
        _identical(board.cpu, "inputs are the same", differences("/input ", ours, theirs)),
        _operations(board.cpu, ours, theirs),
        _outputs(board.cpu, ours, theirs),
        _identical(board.cpu, "the recording is the same", differences("sound/as it lies there", ours, theirs)),
        *(_near(board.cpu, name, ours, theirs) for name in _WITHIN),
    ]


def _delegated(cpu: str, ours: Answers, theirs: Answers) -> Row:
    here, there = delegation(ours), delegation(theirs)
    found = ", ".join(f"{taken}/{nodes} of {variant}" for variant, nodes, taken in there)
    return Row(cpu, "XNNPACK runs as many operations as here", found, here == there and all(n for *_, n in there))


def _identical(cpu: str, what: str, found: list[Difference]) -> Row:
    wrong = [str(one) for one in found if one.different]
    return Row(cpu, what, "; ".join(wrong) or f"{len(found)} of {len(found)} arrays", bool(found) and not wrong)


def _operations(cpu: str, ours: Answers, theirs: Answers) -> Row:
    blamed = to_blame(ours, theirs)
    total = len(differences("/answer", ours, theirs))
    unexplained = [one for title, one in blamed if title not in KNOWN or one.largest > 1]
    titles = dict.fromkeys(title for title, _ in blamed)
    found = [f"{total - len(blamed)} of {total} operations", *(f"{title}, {one}" for title, one in blamed)]
    found += [f"{title}: {KNOWN.get(title, 'why is not known')}" for title in titles]
    figures = {
        "operations": float(total),
        "operations_different": float(len(blamed)),
        "operations_unexplained": float(len(unexplained)),
    }
    what = "each operation answers the same to the same"
    return Row(cpu, what, "\n".join(found), total > 0 and not unexplained, figures)


def _outputs(cpu: str, ours: Answers, theirs: Answers) -> Row:
    every = outputs(ours, theirs)
    wrong = [one for one in every if one.different]
    largest = max((one.largest for one in wrong), default=0.0)
    found = [f"{len(every) - len(wrong)} of {len(every)} outputs", *map(str, wrong)]
    figures = {
        "outputs": float(len(every)),
        "outputs_different": float(len(wrong)),
        "share_of_values_different": sum(one.different for one in every)
        / max(1, sum(one.values for one in every)),
        "last_bits": largest,
    }
    what = "models answer the same, but for the last bit"
    return Row(cpu, what, "\n".join(found), bool(every) and largest <= 1, figures)


def _near(cpu: str, name: str, ours: Answers, theirs: Answers) -> Row:
    one, within = difference(name, ours, theirs), _WITHIN[name]
    found = f"{one.different} of {one.values} values differ, by at most {one.largest:.2g}"
    figures = {name.rpartition("/")[2]: one.largest}
    return Row(cpu, f"{name} within {within:g}", found, one.largest <= within, figures)


def _started(board: Board, *command: str) -> Row:
    _tell(f"{board.cpu}: vedette {' '.join(command)}")
    status, said = board.python("-m", "agent", *command)
    wanted = bundled() if command[0] == "models" else ("Usage: vedette",)
    proved = status == 0 and all(word in said for word in wanted)
    found = f"{len(said.splitlines())} lines" if proved else f"status {status}: {said[-500:]}"
    return Row(board.cpu, f"vedette {' '.join(command)}", found, proved)


def _apart(board: Board) -> Row:
    """The GPU's library is loaded by another process, and this one outlives that."""
    _tell(f"{board.cpu}: backend gpu")
    status, said = board.python(str(ROOT / "scripts" / "virtual_board" / "apart.py"))
    what = "backend gpu fails in a process of its own"
    if status:
        return Row(board.cpu, what, f"the process ended with status {status}: {said[-500:]}", False)
    told = json.loads(said.splitlines()[-1])
    why = told["said"].replace("\0", "")  # QEMU's last words begin with one
    apart = _RUNTIME in told["loaded"] and _GPU not in told["loaded"] and told["unchanged"]
    proved = apart and any(name in why for name in _WITHOUT_GPU.get(board.cpu, ("",)))
    lives = f"it lives on, answers as before: {told['unchanged']}, has {_GPU}: {_GPU in told['loaded']}"
    return Row(board.cpu, what, f"{why or 'it can be used'}\n{lives}", proved)


def _tested(board: Board) -> Row:
    _tell(f"{board.cpu}: the tests marked numerics")
    marked = [
        str(path) for path in sorted(ROOT.glob("tests/unit/**/test_*.py")) if "mark.numerics" in path.read_text()
    ]
    options = ["-q", "-m", "numerics", "-p", "no:cacheprovider", "-o", "timeout=900"]
    status, said = board.python("-m", "pytest", *options, *marked, shown=True)
    counts = {name: int(count) for count, name in re.findall(r"(\d+) (passed|failed|errors?|skipped)\b", said)}
    wrong = sum(count for name, count in counts.items() if name not in ("passed", "skipped"))
    last = said.strip().splitlines()[-1:] or ["nothing"]
    figures = {"tests": float(counts.get("passed", 0)), "tests_failed": float(wrong)}
    return Row(
        board.cpu, "the tests marked numerics pass", last[0], status == 0 and figures["tests"] > 0, figures
    )


def _show(rows: list[Row]) -> None:
    table = Table("processor", "what", "found", "proved", show_lines=True)
    for row in rows:
        table.add_row(row.cpu, row.what, row.found, "yes" if row.proved else "NO")
    Console(width=None if sys.stdout.isatty() else 140, markup=False).print(table)


if __name__ == "__main__":
    main()
