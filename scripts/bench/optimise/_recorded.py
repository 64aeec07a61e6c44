"""Figures of long runs, kept in recorded.json with the command that repeats them."""

from __future__ import annotations

import json
import shlex
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from common import ROOT, processor

FILE = Path(__file__).with_name("recorded.json")


def record(name: str, figures: dict[str, Any]) -> None:
    """Keep the figures of this run under a name, with its command, but for where the data lies."""
    bench = Path(sys.argv[0]).resolve().relative_to(ROOT / "scripts" / "bench").with_suffix("")
    given = sys.argv[1:]
    if "--data" in given:
        at = given.index("--data")
        del given[at : at + 2]
    command = shlex.join(["scripts/bench/run", str(bench), *given])
    entry = {"command": command, "date": time.strftime("%Y-%m-%d"), "on": processor(), "figures": figures}
    text = json.dumps(dict(sorted({**_all(), name: entry}.items())), indent=2)
    FILE.write_text(f"{text}\n", encoding="utf-8")


def name_of(bench: str, given: Namespace) -> str:
    """The name for figures of a net on a set of pictures; CIFAR-10 is not named."""
    return f"{bench}/{given.net}" if given.dataset == "cifar" else f"{bench}/{given.dataset}/{given.net}"


def show(prefix: str) -> dict[str, Any]:
    """Print what is kept under names that begin so, and return the figures by name."""
    found = {name: entry for name, entry in _all().items() if name.startswith(prefix)}
    for name, entry in found.items():
        print(f"recorded {entry['date']} on {entry['on']} by `{entry['command']}`: {name} {entry['figures']}")
    return {name: entry["figures"] for name, entry in found.items()}


def _all() -> dict[str, Any]:
    return dict(json.loads(FILE.read_text(encoding="utf-8"))) if FILE.is_file() else {}
