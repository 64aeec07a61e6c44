"""What MLPerf LoadGen has written of a scenario: its detailed log has a line of JSON for each thing it knows."""

from __future__ import annotations

import json
from pathlib import Path

from msgspec import Struct

from agent.errors import VedetteError

DETAIL = "mlperf_log_detail.txt"
_LINE = ":::MLLOG "


class Scenario(Struct, frozen=True):
    """What LoadGen found.

    Attributes:
        name: `SingleStream`: one inference after the other, each on its own; `Offline`: many at once.
        result: LoadGen's own word, `VALID` or `INVALID`, for the seconds that were asked for.
        why: it is not valid, in LoadGen's words. too_short: it did not take the seconds that were asked for.
        inferences: number of them.
        per_s: inferences per second.
        p50_ms, p90_ms, p99_ms: latency; None: Offline has none.
        required_s: what MLPerf asks for, s.
    """

    name: str
    result: str
    why: str
    too_short: bool
    inferences: int
    per_s: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    required_s: float


def read_log(folder: Path, scenario: str, required_s: float) -> Scenario:
    """What LoadGen found.

    Args:
        folder: with its log files.
        scenario: its name.
        required_s: see `Scenario`.

    Raises:
        VedetteError: there is no result.
    """
    try:
        lines = (folder / DETAIL).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    entries = (json.loads(line.removeprefix(_LINE)) for line in lines if line.startswith(_LINE))
    told = {entry["key"]: entry["value"] for entry in entries}
    if "result_validity" not in told:
        raise VedetteError(f"{folder}: LoadGen has written no result there: is the disk full?")
    offline = scenario == "Offline"
    why = [told.get("result_invalid_reason", "")]
    why += [] if told["early_stopping_met"] else [told["early_stopping_result"]]
    p50, p90, p99 = (
        None if offline else told[f"result_{rank}.00_percentile_latency_ns"] / 1e6 for rank in (50, 90, 99)
    )
    return Scenario(
        scenario,
        told["result_validity"],
        " ".join(" ".join(why).replace("*", "").split()),
        not told["result_min_duration_met"],
        told["effective_samples_per_query"] if offline else told["result_query_count"],
        told["result_samples_per_second"] if offline else told["result_qps_with_loadgen_overhead"],
        p50,
        p90,
        p99,
        required_s,
    )
