"""A staged recording: somebody in view and a word together are the situation; each alone, and noise, is not."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

START = datetime(2026, 3, 1, 8, tzinfo=UTC)
EVERY_S = 30.0


def moment(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat()


def event(stream: str, kind: str, label: str, number: int, at: float, first: float, score: float) -> str:
    track = {"id": f"{stream}-x-{number}", "label": label, "score": score, "best_score": score, "hits": 3}
    track |= {"first_seen": moment(first), "last_seen": moment(at)}
    body = {"stream": stream, "kind": kind, "track": track, "captured_at": moment(at)}
    return json.dumps({"topic": f"vedette/porch/{stream}/events", "retained": False, "payload": body})


def text(words: str, at: float) -> str:
    return json.dumps({"text": words, "source": "gate", "at": moment(at)})


def scenes(count: int, seed: int = 1) -> Iterator[tuple[list[str], str]]:
    """Yield the lines of each scene, and its line in the truth; empty: it is no situation."""
    chance = random.Random(seed)
    for number in range(count):
        at = number * EVERY_S
        kind = number % 3  # both, somebody alone, a word alone
        lines = []
        if kind != 2:
            score = chance.uniform(0.6, 0.95)
            lines.append(event("front", "new", "person", number, at, at, score))
            lines.append(event("front", "end", "person", number, at + 4, at, score))
        elif chance.random() < 0.5:  # a shadow
            lines.append(event("front", "new", "person", number, at, at, chance.uniform(0.3, 0.5)))
            lines.append(event("front", "end", "person", number, at + 1, at, 0.4))
        if kind != 1:
            lines.append(text("please HELP", at + 1))
        yield lines, f"{moment(at)},{moment(at + 4)}" if kind == 0 else ""


def write(folder: Path, count: int = 90, seed: int = 1) -> tuple[Path, Path]:
    """Write a recording and its truth; gives their paths."""
    made = list(scenes(count, seed))
    recording, truth = folder / "day.jsonl", folder / "truth.csv"
    recording.write_text("\n".join(line for lines, _ in made for line in lines) + "\n")
    truth.write_text("from,to\n" + "".join(f"{line}\n" for _, line in made if line))
    return recording, truth
