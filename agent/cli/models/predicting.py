"""Predict a model's latencies on a board that is not here, for `vedette bench --board`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from agent.cli.output import console, open_table, print_json

if TYPE_CHECKING:
    from agent.models.predict import ModelPrediction, PredictedLatency, VariantPrediction

_WIDTH = 120
_NOTE = (
    "Predicted, not measured: inference alone, on a CPU that does nothing else and is not slowed by heat. Four "
    "of five are expected within the interval; `vedette bench` on the board measures."
)


def complete_board(_context: click.Context, _option: click.Parameter, incomplete: str) -> list[str]:
    """Return the boards that begin so, for the shell."""
    from agent.models.predict import known_boards

    return [name for name in known_boards() if name.startswith(incomplete)]


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
        _print(found)


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


def _print(found: ModelPrediction) -> None:
    out = console(_WIDTH, markup=False)
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
    click.echo(f"{_NOTE} Based on {found.basis}.", err=True)


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
