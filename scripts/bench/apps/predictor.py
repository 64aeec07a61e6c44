"""Errors of the board predictor on published times, each network predicted by a fit that has not seen it.

The times are those of `scripts/build_models/board_times.toml`, of ncnn and XNNPACK; the fit is the one of
`scripts/build_models/board_rates.py`. A network is left out with all its sizes and kinds of arithmetic, on every
board. The share of times within the interval that a prediction tells is counted as well,
and how far Amdahl's law is off with two threads. Nothing
is measured here, and --quick changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import common
import numpy as np
from board_predictor import with_threads
from board_rates import KINDS, Miss, leave_one_out, read_scaling, read_times, spread_of

MEDIAN, WORST = 0.20, 0.60
ASKED = ("pi4b", "pi5", "sd855", "sd865")
"""Boards that the targets are for."""
OTHERS = ("pi3b", "pi-zero2w")
SHOWN = 8
"""Worst errors that are printed."""


def main() -> None:
    common.arguments(__doc__ or "").parse_args()
    misses = leave_one_out(read_times())
    ncnn = [one for one in misses if one.time.engine == "ncnn"]
    asked = [one for one in ncnn if one.time.board in ASKED]
    figures = {"times": float(len(asked)), "networks": float(len({one.time.family for one in asked}))}
    figures |= summary("", asked)
    for board in (*ASKED, *OTHERS):
        figures |= summary(f"{board}_", [one for one in ncnn if one.time.board == board])
    for kind in KINDS[:3]:
        figures |= summary(f"{kind}_", [one for one in asked if one.time.kind == kind])
    figures |= summary("xnnpack_", [one for one in misses if one.time.engine == "xnnpack"])
    figures["within_interval"] = within(asked)
    figures["two_threads_worst"] = max(
        abs(with_threads(one, four, 2) / two - 1) for _, four, two, one in read_scaling()
    )
    for one in sorted(asked, key=lambda miss: -abs(miss.error))[:SHOWN]:
        time = one.time
        print(f"{time.board} {time.kind} {time.threads} threads, {time.network}: {time.ms} ms, told {one.ms:.1f}")
    meets = figures["median"] <= MEDIAN and figures["worst"] <= WORST
    targets = {"median": f"<= {MEDIAN}", "worst": f"<= {WORST}"}
    common.conclude("apps/predictor", figures, targets, meets)


def summary(name: str, misses: Sequence[Miss]) -> dict[str, float]:
    """Median, ninth decile and worst of the errors."""
    errors = np.abs([one.error for one in misses])
    found = {"median": np.median(errors), "p90": np.quantile(errors, 0.9), "worst": errors.max()}
    print(f"{name or 'asked':12} {len(misses):3} times: " + ", ".join(f"{k} {v:.1%}" for k, v in found.items()))
    return {f"{name}{key}": float(value) for key, value in found.items()}


def within(misses: Sequence[Miss]) -> float:
    """Share of times within the interval for four of five, of spreads that other networks gave."""
    inside = []
    for one in misses:
        kinds = ("int8",) if one.time.kind == "int8" else ("float32", "float16")
        others = [
            other
            for other in misses
            if other.time.board == one.time.board
            and other.time.kind in kinds
            and other.time.family != one.time.family
        ]
        limit = 1.2816 * (spread_of(others) if others else 0.25)
        inside.append(abs(np.log(one.ms / one.time.ms)) <= limit)
    return float(np.mean(inside))


if __name__ == "__main__":
    main()
