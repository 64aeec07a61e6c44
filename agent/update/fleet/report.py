"""Report of a rollout: one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path

from agent.errors import FleetError, reason_of
from agent.text import local_time
from agent.update.fleet.board import BoardOutcome, count_by_kind
from agent.update.fleet.rollout import RolloutProgress

_COLOURS = {
    "updated": "#1a7f37",
    "current": "#57606a",
    "refused": "#9a6700",
    "rolled_back": "#bc4c00",
    "failed": "#cf222e",
    "unreachable": "#8250df",
    "waiting": "#8c959f",
}
_BEGINNING = b"<!doctype html>"
_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1f2328 }}
body {{ max-width: 70rem; margin: 2rem auto; padding: 0 1rem }}
h1 {{ font-size: 1.5rem }} h2 {{ font-size: 1.1rem; margin-top: 2rem }} code {{ font-size: .85em }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #d0d7de }}
td.n, th.n {{ text-align: right; font-variant-numeric: tabular-nums }}
.kind {{ color: #fff; border-radius: .7em; padding: .05em .6em; white-space: nowrap }}
.bar {{ display: flex; height: 1.1rem; border-radius: .3rem; overflow: hidden; margin: 1rem 0 }}
</style></head><body>
"""


def render(progress: RolloutProgress) -> str:
    """Render the page."""
    return "".join(_parts(progress, f"Rollout of {progress.begun.version or progress.begun.file}"))


def check_free(path: Path) -> None:
    """Refuse to overwrite a file that is not a report; raise FleetError then."""
    try:
        with path.open("rb") as file:
            begins = file.read(len(_BEGINNING))
    except FileNotFoundError:
        return
    except OSError as error:
        raise FleetError(f"{path}: cannot be read: {reason_of(error)}; name another --report") from error
    if begins not in (b"", _BEGINNING):
        raise FleetError(f"{path}: exists and is not a report of a rollout: name another --report")


def verdict(progress: RolloutProgress) -> str:
    """Summarise a rollout in a sentence."""
    count = sum(len(batch) for batch in progress.begun.batches)
    if progress.complete:
        return "the board has it" if count == 1 else f"all {count} boards have it"
    left = sum(len(batch) for batch in progress.left)
    lack = "the board does" if count == 1 else f"{left} of {count} boards {'does' if left == 1 else 'do'}"
    if progress.reason:
        return f"stopped: {progress.reason}; {lack} not have it"
    return f"{'' if progress.done else 'running or interrupted: '}{lack} not have it yet"


def _parts(progress: RolloutProgress, title: str) -> Iterator[str]:
    begun = progress.begun
    yield _HEAD.format(title=escape(title))
    yield f"<h1>{escape(title)}</h1>\n<p><b>{escape(verdict(progress))}</b></p>\n"
    yield (
        f"<p>{escape(begun.file)}, counter {begun.counter}, begun {local_time(begun.at)}<br>"
        f"<code>sha256 {escape(begun.bundle)}</code></p>\n"
    )
    yield _bar(progress)
    for number, batch in enumerate(begun.batches):
        yield f"<h2>{'Canary' if number == 0 else f'Batch {number}'}</h2>\n<table>\n"
        yield (
            '<tr><th>board<th>outcome<th>runs<th class="n">time<th class="n">daemon down<th class="n">sent'
            '<th class="n">of the bundle<th>reason\n'
        )
        for name in batch:
            yield _row(name, progress.outcomes.get(name))
        yield "</table>\n"
    yield "</body></html>\n"


def _bar(progress: RolloutProgress) -> str:
    kinds: dict[str, int] = dict(count_by_kind(progress.outcomes.values()).items())
    if waiting := sum(len(batch) for batch in progress.begun.batches) - len(progress.outcomes):
        kinds["waiting"] = waiting
    pieces = (f'<div style="flex:{count};background:{_COLOURS[kind]}"></div>' for kind, count in kinds.items())
    told = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in kinds.items())
    return f'<div class="bar">{"".join(pieces)}</div>\n<p>{told}</p>\n'


def _row(name: str, one: BoardOutcome | None) -> str:
    kind = one.kind if one else "waiting"
    cells = [f"<td>{escape(name)}", f'<td><span class="kind" style="background:{_COLOURS[kind]}">']
    cells.append(f"{kind.replace('_', ' ')}</span>")
    if one is None:
        return f"<tr>{''.join(cells)}<td><td><td><td><td><td>\n"
    down = "" if one.downtime_s is None else f"{one.downtime_s:.1f} s"
    numbers = (f"{one.seconds:.0f} s", down, size(one.sent), f"{one.sent / max(1, one.size):.1%}")
    cells.append(f"<td>{escape(one.version)}")
    cells += [f'<td class="n">{number}' for number in numbers]
    return f"<tr>{''.join(cells)}<td>{escape(one.reason)}\n"


def size(count: int) -> str:
    """Format a number of bytes; kB and MB are powers of 1000."""
    if count < 1_000_000:
        return f"{count / 1000:.0f} kB"
    return f"{count / 1_000_000:.1f} MB"
