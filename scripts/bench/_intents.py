"""Sentences that people wrote for voice assistants, by what they ask for: packages of Open Voice OS.

Each `.intent` file of a package has the ways to say one thing, a line each; `(a|b)` is a choice and `[a]` may be
left out. Lines with a place for a name or number, `{…}`, are not taken. Licences: Apache-2.0, one BSD-3-Clause.
"""

from __future__ import annotations

import random
import re
import sysconfig
from pathlib import Path

_GROUP = re.compile(r"\(([^()\[\]]*)\)|\[([^()\[\]]*)\]")
LEAST, PER_LINE = 6, 2


def intents(folder: Path | None = None) -> dict[str, list[str]]:
    """Return at least `LEAST` sentences for each intent, in a random order that is always the same."""
    chance = random.Random(0)
    packages = folder or Path(sysconfig.get_path("purelib"))
    found = {}
    for path in sorted(packages.glob("ovos_skill_*/locale/en-us/**/*.intent")):
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
        kept = [line for line in lines if line and not line.startswith("#") and "{" not in line]
        drawn = sorted({_drawn(line, chance) for line in kept for _ in range(PER_LINE)})
        chance.shuffle(drawn)
        if len(drawn) >= LEAST:
            package = path.relative_to(packages).parts[0].removeprefix("ovos_skill_")
            found[f"{package}:{path.stem}"] = drawn
    if not found:
        raise SystemExit(f"{packages}: has no packages ovos_skill_…: scripts/bench/run installs them")
    return found


def _drawn(line: str, chance: random.Random) -> str:
    """Return one of the sentences that a line stands for."""
    while group := _GROUP.search(line):
        options = group[1].split("|") if group[1] is not None else [*group[2].split("|"), ""]
        line = line[: group.start()] + chance.choice(options) + line[group.end() :]
    return " ".join(line.split())
