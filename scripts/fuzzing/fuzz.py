"""Feeds each parser what nobody would write, for as long as it is told, and says what was tried and found.

Only Vedette's own errors may come out of a parser, and what its callers expect besides: see `targets.py`. Each
target runs in a process of its own, since a fault in a library in C ends it; what remains is kept as a finding
as well.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
KEPT = ROOT / "build" / "fuzz"
_WRITTEN = ("config", "profile", "manifest", "wakeword", "uri")
_SENT = ("watch", "commands", "finish")
_BINARIES = ("model", "answer", "sound", "bundle")
NAMES = (*_WRITTEN, *_SENT, *_BINARIES)
_LEFT_S = 120.0
"""For starting, and for the last input, beyond the time of a target."""


class Told(NamedTuple):
    """Results of one target.

    Attributes:
        name: of the target.
        executions: inputs that were tried.
        seconds: it took for that.
        findings: files with an input, by what happened.
        counts: what came of inputs, besides.
    """

    name: str
    executions: int
    seconds: float
    findings: dict[str, Path]
    counts: dict[str, int]


def main() -> None:
    """Fuzz what was asked for; exit 1 on a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--minutes", type=float, default=5.0, help="for all targets together")
    parser.add_argument("--seed", type=int, help="of what is by chance; default: another one each time")
    args = parser.parse_args()
    if unknown := set(args.targets) - set(NAMES):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are: {', '.join(NAMES)}")
    chosen = args.targets or list(NAMES)
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1, 1 << 30)
    print(f"seed {seed}", flush=True)
    found = 0
    for name in chosen:
        told = fuzz(name, args.minutes * 60.0 / len(chosen), seed)
        found += len(told.findings)
        rate = told.executions / max(told.seconds, 1e-9)
        print(
            f"{name:10} {told.executions:>10,} inputs, {rate:>8,.0f}/s, {len(told.findings)} findings", flush=True
        )
        for what, count in sorted(told.counts.items(), key=lambda pair: -pair[1]):
            print(f"    {count:>8,} {what}", flush=True)
        for what, path in told.findings.items():
            print(f"    {what}: {path}", flush=True)
    sys.exit(found > 0)


def fuzz(name: str, seconds: float, seed: int) -> Told:
    """One target in its process."""
    folder = KEPT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, str(HERE / "worker.py"), name, f"{seconds}", str(folder), f"{seed}"]
    with (folder / "output.txt").open("wb") as output:
        try:
            code = subprocess.run(
                command, stdout=output, stderr=output, timeout=seconds + _LEFT_S, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
    return judge(name, folder, code)


def judge(name: str, folder: Path, code: int) -> Told:
    """Evaluate the files that a process has left behind."""
    book: dict[str, Any] = {"executions": 0, "seconds": 0.0, "errors": {}}
    if (folder / "book.json").exists():
        book = json.loads((folder / "book.json").read_text(encoding="utf-8"))
    findings = {what: folder / file for what, file in book["errors"].items()}
    artifacts = [path for kind in ("crash", "timeout", "oom", "leak") for path in folder.glob(f"{kind}-*")]
    findings |= {f"the process ended: {path.name.partition('-')[0]}": path for path in artifacts}
    if (current := folder / "current").exists():
        data = current.read_bytes()
        current.write_bytes(data[4 : 4 + struct.unpack("<I", data[:4])[0]])
        findings["the process ended, or hung"] = current
    if code and not findings:
        findings[f"the process ended with {code}"] = folder / "output.txt"
    return Told(name, book["executions"], book["seconds"], findings, book.get("counts", {}))


if __name__ == "__main__":
    main()
