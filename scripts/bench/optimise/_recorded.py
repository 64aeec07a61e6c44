"""Figures of long runs, kept in recorded.json with the commit, the command and the processor that they are of."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from common import ROOT, processor

FILE = Path(__file__).with_name("recorded.json")


_nets: dict[str, str] = {}


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=False, capture_output=True, text=True).stdout.strip()


_COMMIT = _git("log", "-1", "--format=%H", "--", "agent", "scripts", f":!{FILE}")
_CHANGED = _git("status", "--porcelain", "--untracked-files=no", "--", "agent", "scripts", f":!{FILE}")
"""Of the code as it was when the run began: its newest commit, and what was changed since."""


def begins_with(name: str, content: bytes) -> None:
    """Tell of which trained net this run's figures are."""
    _nets[name] = hashlib.sha256(content).hexdigest()[:16]


def record(name: str, figures: dict[str, Any]) -> None:
    """Keep the figures of this run alone under a name: with its command, but for where the data lies.

    Raises:
        SystemExit: the code is not that of a commit.
    """
    if _CHANGED or not _COMMIT:
        raise SystemExit("--record keeps the figures of a commit: commit what was changed in agent/ and scripts/")
    bench = Path(sys.argv[0]).resolve().relative_to(ROOT / "scripts" / "bench").with_suffix("")
    given = sys.argv[1:]
    if "--data" in given:
        at = given.index("--data")
        del given[at : at + 2]
    command = shlex.join(["scripts/bench/run", str(bench), *given])
    entry = {
        "commit": _COMMIT,
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "on": processor(),
        **({"nets": _nets} if _nets else {}),
        "figures": figures,
    }
    text = json.dumps(dict(sorted({**_all(), name: entry}.items())), indent=2)
    FILE.write_text(f"{text}\n", encoding="utf-8")


def name_of(bench: str, given: Namespace) -> str:
    """The name for figures of a net."""
    return f"{bench}/{given.net}"


def show(prefix: str) -> dict[str, Any]:
    """Print what is kept under names that begin so, and return the figures by name."""
    found = {name: entry for name, entry in _all().items() if name.startswith(prefix)}
    for name, entry in found.items():
        of = f"commit {entry.get('commit', 'not known')[:12]} on {entry['on']}"
        print(f"recorded {entry['date']}, {of} by `{entry['command']}`: {name} {entry['figures']}")
    return {name: entry["figures"] for name, entry in found.items()}


def _all() -> dict[str, Any]:
    return dict(json.loads(FILE.read_text(encoding="utf-8"))) if FILE.is_file() else {}
