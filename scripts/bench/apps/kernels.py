"""Cycles of XNNPACK's inner loops for a multiply-add, by llvm-mca on the library of LiteRT's aarch64 wheel.

The library has no names of functions, so loops are found in its disassembly: short, closed by one jump back, and
with multiply-adds of vectors. Of each kind of arithmetic those with the fewest cycles for a multiply-add are what
large products of matrices run. Their time on a Cortex-A72, without any memory, is compared with the fitted cost
of `scripts/build_models/board_rates.py`, which should not be below it. Needs llvm-objdump and llvm-mca (Debian:
llvm) and the registry of PyPI; --wheel takes a wheel that is there already.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import common
from board_predictor import CLASSES, find_board

PACKAGE = "ai-edge-litert==2.3.0"
LIBRARY = "ai_edge_litert/libpywrap_litert_common.so"
BOARD, CORE, CLOCK = "pi4b", "cortex-a72", 1.8
"""Of which llvm-mca has a model of its own: LLVM 14 takes a Cortex-A76 for an A57, and an A53's does not see
that its loads go beside its products. Clock in GHz."""
SHORTEST, LONGEST = 6, 160
"""Instructions of a loop."""
BEST = 0.1
"""Share of the loops of a kind, by cycles for a multiply-add, that stands for large products."""
KINDS = {
    "int8": re.compile(r"\t(smlal2?|smull2?)\t.*\.8h"),
    "float32": re.compile(r"\tfmla\t.*\.4s"),
}
LANES = {"int8": 8, "float32": 4}
REST = re.compile(r"\t(sdot|udot|fcmla|bfdot)\t")
"""Multiply-adds that the core does not have."""
_LINE = re.compile(r"^\s*([0-9a-f]+):\s+(\S.*)$")
_JUMP = re.compile(r"^(?:b\.\w+|cbnz|cbz|tbnz|tbz)\s.*0x([0-9a-f]+)")


class Loop(NamedTuple):
    """A loop: its kind, multiply-adds of one turn, and instructions."""

    kind: str
    products: int
    text: tuple[str, ...]


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--wheel", type=Path, help=f"the aarch64 wheel of {PACKAGE}")
    given = parser.parse_args()
    for tool in ("llvm-objdump", "llvm-mca"):
        if shutil.which(tool) is None:
            sys.exit(f"no {tool}: sudo apt-get install llvm")
    with tempfile.TemporaryDirectory() as name:
        library = unpacked(given.wheel or fetched(Path(name)), Path(name))
        loops = list(dict.fromkeys(found(library)))
    figures = {f"loops_{kind}": float(sum(one.kind == kind for one in loops)) for kind in KINDS}
    kinds: tuple[Literal["int8", "float32"], ...] = ("int8", "float32")
    for kind in kinds:
        figures |= compared(kind, loops)
    meets = all(value <= 1.0 for name, value in figures.items() if name.endswith("_of_fit"))
    targets = {f"{kind}_of_fit": "<= 1, the fitted cost is not below what the loops take" for kind in KINDS}
    common.conclude("apps/kernels", figures, targets, meets)


def fetched(folder: Path) -> Path:
    """Download the wheel."""
    platform = (
        "--platform",
        "manylinux_2_27_aarch64",
        "--python-version",
        "3.11",
        "--only-binary=:all:",
        "--no-deps",
    )
    command = [sys.executable, "-m", "pip", "download", "--quiet", *platform, "-d", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    return next(folder.glob("*.whl"))


def unpacked(wheel: Path, folder: Path) -> Path:
    """Extract the library that holds XNNPACK."""
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(LIBRARY, folder))


def found(library: Path) -> Iterator[Loop]:
    """Yield the loops with multiply-adds of vectors."""
    command = ["llvm-objdump", "-d", "--no-show-raw-insn", "--mattr=+dotprod,+fullfp16", str(library)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    lines: list[tuple[int, str]] = []
    for line in process.stdout:
        if not (match := _LINE.match(line)):
            continue
        address, text = int(match[1], 16), match[2].split("//")[0].split("<")[0].rstrip()
        lines.append((address, text))
        if jump := _JUMP.match(text.replace("\t", " ")):
            count = (address - int(jump[1], 16)) // 4 + 1
            if SHORTEST <= count <= min(LONGEST, len(lines)):
                yield from loop_of([one for _, one in lines[-count:]])
        del lines[:-LONGEST]


def loop_of(texts: list[str]) -> Iterator[Loop]:
    """Yield a loop if it has no other jump and enough multiply-adds of one kind."""
    body = texts[:-1]
    if any(re.match(r"(b|bl|ret|br|blr|b\.\w+|cbn?z|tbn?z)\b", one) for one in body):
        return
    if any(REST.search("\t" + one) for one in body):
        return
    for kind, pattern in KINDS.items():
        count = sum(bool(pattern.search("\t" + one)) for one in body)
        if count >= 4 and count * 5 >= len(body):
            yield Loop(kind, count * LANES[kind], tuple(body))
            return


def compared(kind: Literal["int8", "float32"], loops: list[Loop]) -> dict[str, float]:
    """Return cycles for a multiply-add, and what they are of the fitted cost with one thread."""
    some = sorted(cycles(one) / one.products for one in loops if one.kind == kind)
    best = some[int(len(some) * BEST)]
    fitted = find_board(BOARD).costs[kind].single[CLASSES.index("point")]
    print(
        f"{kind}: {best:.3f} cycles, {best / CLOCK:.3f} ms a million on a {CORE}; fitted {fitted:.3f}", flush=True
    )
    return {f"{kind}_cycles": best, f"{kind}_of_fit": best / CLOCK / fitted}


def cycles(loop: Loop) -> float:
    """Return the cycles of a turn by llvm-mca."""
    command = ["llvm-mca", "-mtriple=aarch64", f"-mcpu={CORE}", "-iterations=100"]
    done = subprocess.run(command, input="\n".join(loop.text), capture_output=True, text=True, check=False)
    match = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    return int(match[1]) / 100 if match else float("inf")


if __name__ == "__main__":
    main()
