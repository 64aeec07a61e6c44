"""Tables of a proof, and its closing line."""

from __future__ import annotations

import json
import sys
from collections import Counter

import cuts
import refusals
from results import Results, Row
from rich.console import Console
from rich.table import Table


def show(results: Results) -> None:
    """Print the cuts by state and outcome, and every refusal with its reason."""
    console = Console(width=160, soft_wrap=False)
    for row in (*results.of("install"), *results.of("disk")):
        console.print(f"{row.name}: {row.planned}: {row.outcome}, {row.seconds:.0f} s")
    if found := results.of(cuts.GROUP):
        console.print(_by_state(found))
        for row in found:
            if not row.proved:
                console.print(f"NOT PROVED  {row.name}, met {row.met}: {row.outcome}: {row.why}", markup=False)
    if found := results.of(refusals.GROUP):
        console.print(_refused(found))


def _by_state(rows: list[Row]) -> Table:
    """Table of the cuts by the state on disk at the boot."""
    table = Table(title="power cuts: state of the update on the disk × what became of the board")
    outcomes = sorted({row.outcome for row in rows})
    for name in ("cut in", *outcomes, "twice", "events", "lost", "well after", "proved"):
        table.add_column(name, justify="left" if name == "cut in" else "right")
    met = sorted({row.met for row in rows}, key=_place)
    for state in met:
        each = [row for row in rows if row.met == state]
        count = Counter(row.outcome for row in each)
        seconds = sorted(row.seconds for row in each)
        table.add_row(
            state,
            *(str(count[outcome] or "") for outcome in outcomes),
            str(sum(row.planned.endswith("twice") for row in each)),
            str(sum(row.events for row in each)),
            str(sum(row.lost for row in each)),
            f"{seconds[len(seconds) // 2]:.0f} s",
            f"{sum(row.proved for row in each)} of {len(each)}",
        )
    return table


def _place(state: str) -> int:
    order = ("none", *dict.fromkeys(state for state, *_ in cuts.SHARES), "rolled_back", "refused")
    return order.index(state) if state in order else len(order)


def _refused(rows: list[Row]) -> Table:
    table = Table("update", "outcome", "reason, as `vedette update history` tells it", "s", "", title="refusals")
    for row in rows:
        mark = "[green]proved[/]" if row.proved else "[bold red]NOT PROVED[/]"
        table.add_row(row.planned, row.outcome, row.why.replace("[", r"\["), f"{row.seconds:.0f}", mark)
    return table


def conclude(results: Results, board: str, wanted: int, only: str | None, took_s: float) -> None:
    """Print the closing line, and exit with 1 if a target is missed.

    Args:
        results: of everything so far.
        board: that it was proved on.
        wanted: power cuts; 0: none.
        only: the part that was asked for; None: all.
        took_s: this run.
    """
    figures: dict[str, float] = {"took_s": round(took_s)}
    targets: dict[str, str] = {}
    if wanted:
        figures |= _of_cuts(results)
        zero = ("boards_that_boot_no_working_version", "events_lost")
        targets |= {"cuts": f">= {wanted}", **dict.fromkeys(zero, "0"), "disk_loses_what_is_not_flushed": "1"}
    if only != "cuts":
        refused = results.of(refusals.GROUP)
        figures |= {"refusals": len(refused), "refusals_not_proved": sum(not row.proved for row in refused)}
        targets["refusals_not_proved"] = "0"
    meets = _meets(figures, wanted)
    print(json.dumps({"bench": f"prove_update {board}", "figures": figures, "targets": targets, "meets": meets}))
    sys.exit(not meets)


def _of_cuts(results: Results) -> dict[str, float]:
    cut = results.of(cuts.GROUP)
    return {
        "cuts": len(cut),
        "cuts_twice": sum(row.planned.endswith("twice") for row in cut),
        "states_cut_in": len({row.met for row in cut}),
        "boards_that_boot_no_working_version": sum(not row.proved for row in cut),
        "events_heard": sum(row.events for row in cut),
        "events_lost": sum(row.lost for row in cut),
        "disk_loses_what_is_not_flushed": sum(row.proved for row in results.of("disk")),
    }


def _meets(figures: dict[str, float], wanted: int) -> bool:
    zero = ("boards_that_boot_no_working_version", "events_lost", "refusals_not_proved")
    if wanted and not figures["disk_loses_what_is_not_flushed"]:
        return False
    return figures.get("cuts", 0) >= wanted and not any(figures.get(name, 0) for name in zero)
