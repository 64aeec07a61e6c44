"""Run a model at full rate for minutes, and tell the rate that the board can hold for ever.

A board that warms up may show for a minute a rate that it cannot keep: when it is too hot, the kernel or the
firmware slows its processors. The judgement is made of readings alone; see `held_rate`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from math import isfinite
from pathlib import Path
from typing import Literal

from msgspec import Struct

from agent.board.heat import Curve, fit_curve, robust_slope
from agent.board.power_monitor import PowerMonitor
from agent.board.proc import CPUFREQ, read_frequencies
from agent.board.sensors import BoardSensors
from agent.board.thermal import UNDER_VOLTAGE
from agent.compute.infer.chain import ModelChain
from agent.compute.infer.choice import Inputs
from agent.compute.infer.session import BackendSpec, SessionOptions
from agent.compute.infer.worker import PATIENCE_S, WorkerSession
from agent.compute.manifest import Model

FIRST_S = 60.0
"""The rate of the beginning is the mean of so many seconds."""
_HANGS_S, _HANGS = 2.0, 50.0
"""An inference hangs if it takes longer than this, s, and longer than this factor times the first ones."""
_MARGIN_C = 1.0
"""A board that settles so close to its limit reaches it on a warmer day, °C."""
_WARMER_C = 3.0
"""A smaller rise is no heat, °C."""
_STEADY_C_PER_S = 0.005
"""A smaller slope is none: 3 °C in ten minutes, °C/s."""
_DIE_S = 20.0
"""A chip without its board warms up within seconds: this time is left out of the fit, s."""

Basis = Literal["throttled", "settled", "foreseen", "no heat", "unknown"]


class BoardSample(Struct, frozen=True):
    """Readings of the board at a moment.

    Attributes:
        celsius: of the processor's hottest zone, °C; None: unknown.
        limit_c: temperature from which it is throttled, °C; None: unknown.
        mhz: highest frequency that the kernel has requested for any processor; 0: unknown.
        watts: power, W; None: unknown.
        power_from: see `PowerReading.source`; empty: unknown.
        throttled: whether heat, or another limit of the firmware, slows the processors.
        under_voltage: whether the voltage is too low.
    """

    celsius: float | None = None
    limit_c: float | None = None
    mhz: int = 0
    watts: float | None = None
    power_from: str = ""
    throttled: bool = False
    under_voltage: bool = False


class BoardSampler:
    """Reads the board's sensors."""

    def __init__(self, root: Path = Path("/")) -> None:
        """Read nothing yet; `root` is that of the file system."""
        self._frequencies, self._sensors = root / CPUFREQ, BoardSensors(root, supply_every_s=0.0)
        self._power = PowerMonitor(root, every_s=0.0, sensors=self._sensors)

    def read(self) -> BoardSample:
        """Read all of them now. A sensor that cannot be read is unknown."""
        zone, power = self._sensors.hottest(), self._power
        power.poll()
        warnings = power.supply.now if power.supply else ()
        return BoardSample(
            celsius=zone.temperature_c if zone else None,
            limit_c=zone.limit_c if zone else None,
            mhz=max((one.now_mhz for one in read_frequencies(self._frequencies)), default=0),
            watts=power.power.watts if power.power else None,
            power_from=power.power.source if power.power else "",
            throttled=any(what != UNDER_VOLTAGE for what in warnings),
            under_voltage=UNDER_VOLTAGE in warnings,
        )


class RateSample(Struct, frozen=True):
    """One stretch of the run.

    Attributes:
        at_s: time of its end since the run began, s.
        per_s: inferences per second within it.
        board: readings at its end.
    """

    at_s: float
    per_s: float
    board: BoardSample


class HeldRate(Struct, frozen=True):
    """The rate that the board can hold for ever.

    Attributes:
        per_s: inferences per second; None: unknown.
        basis: `throttled`: measured while the board was throttled; `settled`: the temperature stays below the
            limit; `foreseen`: it would not, and the rate is that at which it would; `no heat`: the board does not
            get warmer, so that the limit is not reached; `unknown`.
        why: in words.
        settles_c: temperature that the full rate leads to, °C; None: unknown.
        limited_in_s: time after the end of the run until the limit is reached, s; None: never, already, or
            unknown.
    """

    per_s: float | None
    basis: Basis
    why: str
    settles_c: float | None = None
    limited_in_s: float | None = None


class SustainedRun(Struct, frozen=True):
    """Result of a run at full rate.

    Attributes:
        backend: that ran the model.
        threads: of the CPU; 0 for other backends.
        asked_s: requested duration, s.
        complete: False if it was interrupted.
        idle: readings before the run.
        samples: in order.
        first_per_s: rate of the first minute; None: nothing was measured.
        held: the rate that the board can hold for ever.
    """

    backend: str
    threads: int
    asked_s: float
    complete: bool
    idle: BoardSample
    samples: tuple[RateSample, ...]
    first_per_s: float | None
    held: HeldRate


def sustain(
    model: Model,
    plan: BackendSpec,
    seconds: float,
    every_s: float,
    read: Callable[[], BoardSample],
    *,
    inputs: Inputs,
    patience_s: float = PATIENCE_S,
) -> Generator[RateSample, None, None]:
    """Run a model back to back in a process of its own, and yield what was measured while it runs.

    Args:
        model: to run.
        plan: backend to run it on.
        seconds: for how long, s.
        every_s: length of a stretch, s.
        read: reads the board's sensors.
        inputs: returns the inputs, of which the first is used.
        patience_s: longest time to open the model, and of its first inference, s.

    Raises:
        BackendError, ModelError: the model cannot be opened, an inference failed, or took too long.
    """
    options = SessionOptions(threads=plan.threads)
    opened = WorkerSession(model, plan, options, deadline_s=patience_s, patience_s=patience_s)
    with closing(opened) as session:
        chain = ModelChain(session, model.manifest)
        chain.set_input(inputs(chain.inputs)[0])
        chain.invoke()
        began_s = time.monotonic()
        chain.invoke()
        session.deadline_s = max(_HANGS_S, _HANGS * (time.monotonic() - began_s))
        yield from _stretches(chain, seconds, every_s, read)


def _stretches(
    chain: ModelChain, seconds: float, every_s: float, read: Callable[[], BoardSample]
) -> Generator[RateSample, None, None]:
    began_s = since_s = now_s = time.monotonic()
    while now_s - began_s < seconds:
        count = 0
        while now_s - since_s < every_s or not count:
            chain.invoke()
            count, now_s = count + 1, time.monotonic()
        yield RateSample(round(now_s - began_s, 3), count / (now_s - since_s), read())
        since_s = now_s


def judge_run(
    plan: BackendSpec, asked_s: float, idle: BoardSample, samples: Sequence[RateSample]
) -> SustainedRun:
    """Return the result of a run of which these samples were made."""
    complete = bool(samples) and samples[-1].at_s >= asked_s
    first = mean_rate([one for one in samples if one.at_s <= FIRST_S] or samples[:1])
    held = held_rate(idle, samples)
    return SustainedRun(plan.backend, plan.threads, asked_s, complete, idle, tuple(samples), first, held)


def mean_rate(samples: Sequence[RateSample]) -> float | None:
    """Return the mean of the rates; None without any."""
    return sum(one.per_s for one in samples) / len(samples) if samples else None


def held_rate(idle: BoardSample, samples: Sequence[RateSample]) -> HeldRate:
    """Return the rate that the board can hold for ever.

    While the board is throttled at the end, it is the rate then. Else an exponential is fitted to the
    temperatures. If it settles below the limit, the rate of the second half holds. If not, the rate is reduced in
    proportion: above the temperature without load, heat grows with the work.

    Args:
        idle: readings before the run, when the board had had nothing to do for some minutes.
        samples: of the whole run.
    """
    end = samples[len(samples) * 3 // 4 :]
    if any(one.board.throttled for one in end):
        weak = any(one.board.under_voltage for one in end)
        cause = "under-voltage" if weak else "heat"
        return HeldRate(
            mean_rate(end), "throttled", f"{cause} throttled the board at the end: it is the rate then"
        )
    readings = [(one.at_s, one.board.celsius) for one in samples if one.board.celsius is not None]
    if not readings:
        return HeldRate(None, "unknown", "not reached: the board has no temperature sensor, and did not throttle")
    curve = _settling(readings)
    if curve is None:
        return HeldRate(None, "unknown", "not reached: the temperature is still rising; run it for longer")
    return _judge_curve(idle, samples, curve)


def _settling(readings: Sequence[tuple[float, float]]) -> Curve | None:
    """Return the curve of the temperatures, with time 0 at the end; None: it is not clear where they go."""
    after = [one for one in readings if one[0] >= _DIE_S]
    end = after[len(after) // 2 :]
    for part in (after, end):
        if part and (curve := fit_curve(part)):
            return curve
    if len(end) >= 3 and abs(robust_slope(end)) <= _STEADY_C_PER_S:
        level = sorted(celsius for _, celsius in end)[len(end) // 2]
        return Curve(level, 0.0, 1.0)
    return None


def _judge_curve(idle: BoardSample, samples: Sequence[RateSample], curve: Curve) -> HeldRate:
    rate, settles_c = mean_rate(samples[len(samples) // 2 :]), round(curve.settled_c, 1)
    limit_c = next((one.board.limit_c for one in reversed(samples) if one.board.limit_c is not None), None)
    begin_c = idle.celsius if idle.celsius is not None else samples[0].board.celsius
    if rate is None or begin_c is None:
        return HeldRate(None, "unknown", "not reached: nothing was measured")
    if settles_c - begin_c < _WARMER_C:
        why = "not reached: the board does not get warmer at this rate"
        return HeldRate(rate, "no heat", why, settles_c)
    if limit_c is None:
        why = f"it settles at {settles_c:g} °C, and was not throttled; the kernel tells no limit"
        return HeldRate(rate, "settled", why, settles_c)
    if settles_c <= limit_c - _MARGIN_C:
        return HeldRate(rate, "settled", f"it settles at {settles_c:g} °C, below {limit_c:g} °C", settles_c)
    share = min(1.0, max(0.0, (limit_c - _MARGIN_C - begin_c) / (settles_c - begin_c)))
    why = f"at full rate it would settle at {settles_c:g} °C, above its limit of {limit_c:g} °C"
    until_s = curve.seconds_until(limit_c)
    return HeldRate(rate * share, "foreseen", why, settles_c, round(until_s, 1) if isfinite(until_s) else None)
