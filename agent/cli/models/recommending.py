"""Print which models suit a task on a board, for `vedette models recommend`.

Predict a model's latencies on a board that is not here, for `vedette bench --board`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from agent.cli.output import NO_VALUE, console, open_table, print_json
from agent.text import plain

if TYPE_CHECKING:
    from rich.console import Console

    from agent.models.recommend import Recommendation


if TYPE_CHECKING:
    from agent.models.predict import ModelPrediction, PredictedLatency, VariantPrediction


_NARROW = 120
_PREDICTED = (
    "Predicted, not measured: inference alone, on a CPU that does nothing else and is not slowed by heat. Four "
    "of five are expected within the interval; `vedette bench` on the board measures."
)


def predict_and_print(model: str, board: str, variant: str, fps: float, *, as_json: bool) -> None:
    """Print what each variant takes on a board, and which with how many threads reach a rate.

    Args:
        model: name or path.
        board: name.
        variant: empty: all.
        fps: inferences in a second; 0: what the model needs.
        as_json: print JSON instead of a table.

    Raises:
        ModelError: see `agent.models.predict.predict_model`.
    """
    from agent.compute.infer.unprivileged import without_root
    from agent.models.files import preloaded
    from agent.models.predict import ModelPrediction, find_board, predict_model

    find_board(board)
    with preloaded([model]):
        found = without_root(lambda: predict_model(model, board, variant=variant, fps=fps), ModelPrediction)
    if as_json:
        print_json(_with_reach(found), indent=2)
    else:
        _print_prediction(found)


def _with_reach(found: ModelPrediction) -> dict[str, Any]:
    """Return a prediction as JSON, with whether each number of threads reaches the rate."""
    import msgspec

    body: dict[str, Any] = msgspec.to_builtins(found)
    for variant, row in zip(found.variants, body["variants"], strict=True):
        for one, entry in zip(variant.predictions, row["predictions"], strict=True):
            entry["reaches"] = one.reaches(found.fps)
    return body


def interval(one: PredictedLatency) -> str:
    """Return the interval of a prediction in words, ms."""
    return f"{milliseconds(one.low_ms)}–{milliseconds(one.high_ms)}"


def milliseconds(ms: float) -> str:
    """Return a time with two or three digits."""
    return f"{ms:.2f}" if ms < 1 else f"{ms:.1f}" if ms < 10 else f"{ms:.0f}"


def _print_prediction(found: ModelPrediction) -> None:
    out = console(_NARROW, markup=False)
    out.print(
        f"{found.model} on {found.board}: {found.title}; {found.fps:g} per s leave {1e3 / found.fps:.1f} ms"
    )
    columns = ("threads", "ms", "four of five", "per s")
    table = open_table("variant", *columns, f"{found.fps:g} per s", right=columns)
    for variant in found.variants:
        for one in variant.predictions:
            rate = f"{1e3 / one.ms:.0f}"
            table.add_row(
                variant.variant,
                str(one.threads),
                milliseconds(one.ms),
                interval(one),
                rate,
                one.reaches(found.fps),
            )
    out.print(table)
    for variant in found.variants:
        out.print(f"{variant.variant}: {_verdict(variant, found.fps)}")
    click.echo(f"{_PREDICTED} Based on {found.basis}.", err=True)


def _verdict(variant: VariantPrediction, fps: float) -> str:
    sure, likely = (variant.fewest_threads(fps, sure=sure) for sure in (True, False))
    if sure is not None:
        more = f", likely with {likely.threads}" if likely is not None and likely.threads < sure.threads else ""
        return f"reaches {fps:g} per s with {_threads(sure)}{more}"
    if likely is not None:
        return f"likely reaches {fps:g} per s with {_threads(likely)}"
    return f"is not expected to reach {fps:g} per s"


def _threads(one: PredictedLatency) -> str:
    return f"{one.threads} thread{'s' * (one.threads > 1)}"


_WIDTH = 160
_NOTE = (
    "Latency is predicted for the CPU alone, in four of five cases within the interval, and memory is estimated, "
    "beside the daemon's own; `vedette bench` on the board measures both."
)

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def memory_size(_context: click.Context, option: click.Parameter, text: str) -> int:
    """Convert a size such as `100M` to bytes; empty: 0.

    Raises:
        click.BadParameter: the text has another form, or is 0.
    """
    if not text:
        return 0
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([KMG]?)B?", text.upper())
    size = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if size <= 0:
        raise click.BadParameter(f"{text!r}: expected a size such as 100M", param=option)
    return size


def recommend_and_print(task: str, board: str, fps: float, memory: int, *, as_json: bool) -> bool:
    """Print the models for a task on a board; return whether one fits.

    Args:
        task: key of `agent.models.recommend.TASKS`.
        board: name.
        fps: inferences in a second; 0: what each model needs.
        memory: most that a model may take, bytes; 0: no limit.
        as_json: print JSON instead of a table.

    Raises:
        ModelError: there is no such task or board.
    """
    from agent.compute.infer.unprivileged import without_root
    from agent.models.files import preloaded
    from agent.models.recommend import Recommendation, bundled_for, recommend

    with preloaded(bundled_for(task)):
        rows = without_root(lambda: recommend(task, board, fps=fps, memory=memory), list[Recommendation])
    fitting = [row for row in rows if not row.left_out]
    if as_json:
        print_json(rows, indent=2)
    else:
        _print(fitting, [row for row in rows if row.left_out])
    return bool(fitting)


def _print(fitting: list[Recommendation], others: list[Recommendation]) -> None:
    out = console(_WIDTH, markup=False)
    if fitting:
        _print_table(out, fitting)
        _print_first(out, fitting[0])
    for row in others:
        out.print(f"left out: {_called(row)}: {plain(row.left_out)}")
    if not fitting:
        out.print("no model fits: see the reasons above")
    click.echo(_NOTE, err=True)


def _print_table(out: Console, rows: list[Recommendation]) -> None:
    right = ("accuracy", "size", "memory", "per s", "threads", "ms")
    table = open_table("model", *right, "four of five", "in time", "what the accuracy is; commands", right=right)
    for row in rows:
        latency = row.prediction
        if latency is None:
            continue
        accuracy = NO_VALUE if row.accuracy is None else f"{row.accuracy:.3f}"
        noisy = "" if row.noisy is None else f", {row.noisy:.3f} in noise 10 dB below"
        commands = [f"{row.what}{noisy}{f': {row.command}' if row.command else ''}", *row.get, row.bench]
        cells = (
            _called(row),
            accuracy,
            _size(row.bytes),
            _size(row.memory),
            f"{row.fps:g}",
            str(latency.threads),
        )
        about = "\n".join(plain(line) for line in commands if line)
        table.add_row(*cells, milliseconds(latency.ms), interval(latency), row.reaches or "", about)
    out.print(table)


def _print_first(out: Console, row: Recommendation) -> None:
    out.print(f"\nfor {_called(row)}:\n")
    for line in row.get:
        out.print(plain(line), soft_wrap=True)
    if row.get:
        out.print()
    out.print(plain(row.toml, keep="\n"))


def _called(row: Recommendation) -> str:
    family = f" ({row.family})" if row.family else ""
    return plain(f"{row.model}{f' {row.variant}' if row.variant else ''}{family}")


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.0f} kB"
