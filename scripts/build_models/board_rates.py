"""Fit what boards take for classes of operations on published times, and write boards.json.

The logarithm of each published time is explained by a sum over classes of work, whose costs are those of a board,
its arithmetic and its number of threads: a board that has few networks for a class is drawn towards what the
others have in common. XNNPACK's arithmetic is a kind of its own beside ncnn's. Errors count by Student's t
distribution, so that a network that a library does not run well on one board draws little. Networks that are left
out of the fit, each with all its sizes and kinds of arithmetic, give the errors. How classes and spreads were
chosen, those errors were in sight. numpy alone.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from board_networks import work_of
from board_predictor import CLASSES, row_of
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_HERE = Path(__file__).parent
OUT = _HERE / "boards.json"
KINDS = ("float32", "float16", "int8", "xnnpack float32", "xnnpack int8")
"""Kinds of arithmetic, in ncnn but for those of XNNPACK."""
_PRIOR = (0.1, 0.04, 0.12, 0.2, 0.4, 0.5, 0.3, 0.5, 0.5, 0.3, 0.02)
"""Costs of `CLASSES` on a Cortex-A72 to begin with, ms: 10 GMAC/s, half of that for large kernels, and 4 GB/s for
weights of 4 bytes and half of that for values that are read and written in other orders."""
_SHARES = (
    (1.0,) * 11,
    (*(0.5,) * 10, 1.0),
    (*(0.6,) * 5, 0.25, *(1.0,) * 5),
    (1.0,) * 11,
    (*(0.4,) * 5, *(0.25,) * 5, 1.0),
)
"""What a kind takes of it to begin with: half the bytes and twice the lanes of half floats; a quarter of the
bytes of INT8, which is multiplied in 16 bits. ncnn converts between INT8 layers, XNNPACK does not."""
_SPREADS = {"base": 0.7, "kind": 1.0, "board": 3.0, "own": 0.3}
"""Standard deviations, of logarithms, of: the costs from `_PRIOR`; those of a kind of arithmetic from its share
of all; the speeds of boards; and the costs of one board from those."""
_OVERHEAD, _XNNPACK = 0.2, 0.5
"""That of a kind for `operations`, since starting one does not depend on the arithmetic; and for XNNPACK, of
which few times are published."""
_CLOCK = {("xnnpack", "pi4b"): 1.8 / 1.5}
"""A table's clock as a share of the one that is predicted for: XNNPACK's Pi 4B ran at 1.5 GHz, ncnn's at 1.8
GHz."""
_NOISE, _FREEDOM = 0.12, 4.0
"""Standard deviation of the logarithm of a time, and degrees of freedom of the t distribution."""
_ROUNDS = 60
_FEW, _NONE = 0.15, 0.35
"""Assumed spreads of XNNPACK's times about the fit: of cores of which some are published, of MobileNets, and
of others, on one of which TFLite without XNNPACK takes 1.6 and 2.1 times as long (scripts/bench/README.md)."""
_SAME_CORE = "orangepi5"
"""Board with a Pi 5's cores and clock, whose float times are in single precision."""


class Time(NamedTuple):
    """One published time.

    Attributes:
        engine: library.
        board, kind, threads: of the run.
        network: name, without `_int8`.
        ms: of one inference.
    """

    engine: str
    board: str
    kind: str
    threads: int
    network: str
    ms: float

    @property
    def group(self) -> tuple[str, str, int]:
        return self.board, self.kind, self.threads

    @property
    def family(self) -> str:
        """Name of the network at every size."""
        return self.network.removesuffix("_416").removesuffix("_small")


def read_times() -> list[Time]:
    """Return the published times."""
    found = []
    for table in tomllib.loads((_HERE / "board_times.toml").read_text("utf-8"))["tables"]:
        for line in table["times"].strip().splitlines():
            name, *figures = line.split()
            kind = "int8" if name.endswith("_int8") else table["floats"]
            for threads, ms in zip(table["threads"], map(float, figures), strict=True):
                network = name.removesuffix("_int8")
                found.append(Time(table["engine"], table["board"], kind, threads, network, ms))
    return found


def read_scaling() -> list[tuple[str, float, float, float]]:
    """Return names of networks with their times with 4, 2 and 1 threads on one board, ms."""
    table = tomllib.loads((_HERE / "board_times.toml").read_text("utf-8"))["scaling"]
    lines = (line.split() for line in table["times"].strip().splitlines())
    return [(name, *map(float, figures)) for name, *figures in lines]


@cache
def row(network: str, winograd: bool = True) -> Floats:
    """Return the work of a network by `CLASSES`."""
    return np.array(row_of(work_of(network), winograd=winograd))


class Fit:
    """Costs by class of the groups of boards, kinds of arithmetic and threads, in both libraries."""

    def __init__(self, times: Sequence[Time]) -> None:
        self._groups = sorted({one.group for one in times})
        self._group = np.array([self._groups.index(one.group) for one in times])
        self._kind = np.array([_kind(one.kind, one.engine) for one in times])
        self._rows = np.array([row(one.network, one.engine == "ncnn") for one in times])
        self._measured = np.log([one.ms / _CLOCK.get((one.engine, one.board), 1.0) for one in times])
        classes, groups = len(CLASSES), len(self._groups)
        kinds = len(KINDS) * classes
        sizes = {"base": classes, "kind": kinds, "board": groups, "own": groups * classes}
        ends = np.cumsum(list(sizes.values()))
        self._at = {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}
        self._sigmas = np.concatenate([np.full(size, _SPREADS[name]) for name, size in sizes.items()])
        sigmas = self._sigmas[self._at["kind"]].reshape(-1, classes)
        sigmas[3:] = _XNNPACK
        sigmas[:, CLASSES.index("operations")] = _OVERHEAD
        self._centre = np.zeros(int(ends[-1]))
        self._centre[self._at["base"]] = np.log(_PRIOR)
        self._centre[self._at["kind"]] = np.log(_SHARES).ravel()
        self._weights = np.ones(len(times))
        self._values = self._solve()

    def costs(self, board: str, kind: str, threads: int, engine: str = "ncnn") -> Floats:
        """Return the costs by `CLASSES`, ms."""
        group = np.array([self._groups.index((board, kind, threads))])
        found: Floats = np.exp(self._logs(self._values, group, np.array([_kind(kind, engine)]))[0])
        return found

    def _logs(self, values: Floats, group: NDArray[Any], kind: NDArray[Any]) -> Floats:
        count = len(CLASSES)
        own = values[self._at["own"]].reshape(-1, count)[group]
        kinds = values[self._at["kind"]].reshape(-1, count)[kind]
        speeds = values[self._at["board"]][group][:, None]
        found: Floats = values[self._at["base"]] + kinds + own + speeds
        return found

    def _errors(self, values: Floats) -> tuple[Floats, Floats]:
        """Return all weighted errors, of times and of spreads, and each class's share of each time."""
        parts = self._rows * np.exp(np.clip(self._logs(values, self._group, self._kind), -15, 10))
        total = parts.sum(1)
        times = (np.log(total) - self._measured) / _NOISE * self._weights
        return np.concatenate([times, (values - self._centre) / self._sigmas]), parts / total[:, None]

    def _slopes(self, shares: Floats) -> Floats:
        """Return the derivatives of the errors by the values."""
        count, classes = len(self._rows), len(CLASSES)
        slopes = np.zeros((count + len(self._centre), len(self._centre)))
        scale, places = self._weights / _NOISE, np.arange(count)
        for number in range(classes):
            one = shares[:, number] * scale
            slopes[places, number] = one
            slopes[places, self._at["kind"].start + self._kind * classes + number] = one
            slopes[places, self._at["own"].start + self._group * classes + number] = one
        slopes[places, self._at["board"].start + self._group] = scale
        slopes[count + np.arange(len(self._centre)), np.arange(len(self._centre))] = 1 / self._sigmas
        return slopes

    def _solve(self) -> Floats:
        """Minimise by Levenberg and Marquardt's method; the weights follow the errors."""
        values, damping = self._centre.copy(), 1e-2
        errors, shares = self._errors(values)
        for number in range(_ROUNDS):
            if number and number % 5 == 0:
                plain = errors[: len(self._rows)] / self._weights
                self._weights = 1 / np.sqrt(1 + plain**2 / _FREEDOM)
                errors, shares = self._errors(values)
            slopes = self._slopes(shares)
            normal, gradient = slopes.T @ slopes, slopes.T @ errors
            for _ in range(40):
                step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), gradient)
                after, shares_after = self._errors(values - step)
                if after @ after < errors @ errors:
                    values, errors, shares = values - step, after, shares_after
                    damping = max(damping / 5, 1e-9)
                    break
                damping *= 4
        return values


def _kind(kind: str, engine: str) -> int:
    return KINDS.index(kind if engine == "ncnn" else f"{engine} {kind}")


class Boards:
    """Costs of every board, arithmetic and number of threads, also of those that only other figures tell of."""

    def __init__(self, times: Sequence[Time]) -> None:
        self._fit = Fit([one for one in times if one.board != "sd865"])
        self._sd865 = self._ratio([one for one in times if one.board == "sd865"])

    def _ratio(self, times: Sequence[Time]) -> float:
        """Return a Snapdragon 865's time as a share of an 855+'s, which its few published times tell."""
        found = [np.log(one.ms / (row(one.network) @ self._fit.costs("sd855", *one.group[1:]))) for one in times]
        return float(np.exp(np.median(found)))

    def costs(self, board: str, kind: str, threads: int, engine: str = "ncnn") -> Floats:
        """Return the costs by `CLASSES`, ms."""
        if board == "sd865":
            return self._sd865 * self.costs("sd855", kind, threads, engine)
        if kind == "float32" and board in ("pi5", "sd855"):
            clocks = {"pi5": 1.0, "sd855": 2.4 / 2.96}
            scaling = 1.0 if threads == 1 else self.costs(board, "float16", 4) / self.costs(board, "float16", 1)
            return self._fit.costs(_SAME_CORE, "float32", 1, engine) * clocks[board] * scaling
        return self._fit.costs(board, kind, threads, engine)

    def predicted(self, one: Time) -> float:
        """Return the predicted time of a published one, ms."""
        costs = self.costs(*one.group, one.engine)
        return float(row(one.network, one.engine == "ncnn") @ costs) * _CLOCK.get((one.engine, one.board), 1.0)


class Miss(NamedTuple):
    """A published time and what was predicted without its network, ms."""

    time: Time
    ms: float

    @property
    def error(self) -> float:
        return self.ms / self.time.ms - 1.0


def leave_one_out(times: Sequence[Time], families: Sequence[str] = ()) -> list[Miss]:
    """Predict each time by a fit that has not seen its network; `families`: only these."""
    found = []
    for family in families or sorted({one.family for one in times}):
        boards = Boards([one for one in times if one.family != family])
        found += [Miss(one, boards.predicted(one)) for one in times if one.family == family]
    return found


def spread_of(misses: Sequence[Miss]) -> float:
    """Return the standard deviation of the logarithm of the errors, by the quantiles that hold four of five."""
    logs = np.abs([np.log(one.ms / one.time.ms) for one in misses])
    return float(np.quantile(logs, 0.8) / 1.2816)


TITLES: dict[str, tuple[str, str]] = {
    "pi-zero2w": ("Raspberry Pi Zero 2 W, four Cortex-A53 at 1.0 GHz", "ncnn's table"),
    "pi3b": ("Raspberry Pi 3B+, four Cortex-A53 at 1.4 GHz", "ncnn's and XNNPACK's tables"),
    "pi4b": ("Raspberry Pi 4B, four Cortex-A72 at 1.8 GHz", "ncnn's and XNNPACK's tables"),
    "pi5": (
        "Raspberry Pi 5, four Cortex-A76 at 2.4 GHz",
        "ncnn's benchmark on one; in float an Orange Pi 5's",
    ),
    "sd855": ("Snapdragon 855+, Kryo 485 at 2.96 and 2.42 GHz", "ncnn's table"),
    "sd865": (
        "Snapdragon 865, QRB5165, Kryo 585 at 2.84 and 2.42 GHz",
        "an 855+'s rates, to scale with four published times",
    ),
}


def describe(times: Sequence[Time], misses: Sequence[Miss]) -> dict[str, Any]:
    """Return the contents of boards.json."""
    boards, found = Boards(times), {}
    for name, (title, basis) in TITLES.items():
        costs = {}
        kinds: tuple[Literal["int8", "float32"], ...] = ("int8", "float32")
        for kind in kinds:
            costs[kind] = {
                "single": _rounded(boards.costs(name, kind, 1, "xnnpack")),
                "four": _rounded(boards.costs(name, kind, 4, "xnnpack")),
                "spread": round(_spread(name, kind, misses), 3),
                "basis": basis,
            }
        found[name] = {"title": title, "costs": costs}
    return found


def _spread(board: str, kind: str, misses: Sequence[Miss]) -> float:
    """Return the spread of a board's predictions: ncnn's errors on it, and what is not known of XNNPACK."""
    kinds = ("int8",) if kind == "int8" else ("float32", "float16")
    known = "sd855" if board == "sd865" else board
    some = [
        one for one in misses if one.time.engine == "ncnn" and one.time.board == known and one.time.kind in kinds
    ]
    xnnpack = spread_of([one for one in misses if one.time.engine == "xnnpack"])
    unseen = _FEW if board in ("pi3b", "pi4b") else _NONE
    return float(np.hypot(spread_of(some), max(xnnpack, unseen)))


def _rounded(costs: Floats) -> list[float]:
    return [float(f"{one:.4g}") for one in costs]


def main() -> None:
    times = read_times()
    misses = leave_one_out(times)
    text = json.dumps(describe(times, misses), indent=1)
    text = re.sub(r"\[[^\[\]]*\]", lambda match: " ".join(match[0].split()), text)
    OUT.write_text(text + "\n", encoding="utf-8")
    errors = np.abs([one.error for one in misses])
    print(f"{len(misses)} times, each predicted without its network: median error {np.median(errors):.1%}")
    print(f"wrote {OUT}", file=sys.stderr)


if __name__ == "__main__":
    main()
