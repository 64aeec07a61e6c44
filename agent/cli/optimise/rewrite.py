"""`vedette optimise rewrite` and `features`: change a graph, compare the answers, and write the files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.optimise.progress import show_progress
from agent.cli.output import console, open_table, print_json
from agent.compute.infer.unprivileged import without_root
from agent.errors import ModelError
from agent.models.files import load_file
from agent.models.library import prefixed_errors
from agent.models.writer import check_version, write_version
from agent.optimise.report import told_differences
from agent.optimise.source import carried_keys
from agent.text import plain

if TYPE_CHECKING:
    from agent.optimise.graph.additions import FeaturedModel
    from agent.optimise.graph.verified import RewrittenModel

_WIDTH = 80
_LONGEST_S = 3600.0
"""For the work on a model that root has done by another user, s."""


def rewrite_and_write(model: str, out: Path, skip: tuple[str, ...], *, force: bool, as_json: bool) -> None:
    """Rewrite a model, and write it with its manifest and a report, if there is something to rewrite.

    Args:
        model: name or path.
        out: the `.tflite` file to write.
        skip: rewrites that are left out.
        force: files may be replaced.
        as_json: print the report as JSON.

    Raises:
        ModelError: the model cannot be read, the answers differ, or a file is there already.
    """
    names = _names_without(skip)
    check_version(model, out, force=force)
    content, _ = load_file(model)
    found = _rewritten(model, content, names)
    if found.comparison is None:
        print_json({"rewrites": found.counts}) if as_json else click.echo(f"{plain(model)}: nothing to rewrite")
        return
    report = {
        "step": "rewrite",
        "model": model,
        "rewrites": found.counts,
        "bytes": {"before": len(content), "after": len(found.content)},
        "comparison": found.comparison,
        **carried_keys(model, content, found.content),
    }
    write_version(model, out, found.content, report, force=force)
    if as_json:
        print_json(report)
    else:
        _print_rewritten(out, found, len(content))


def _names_without(skip: tuple[str, ...]) -> tuple[str, ...]:
    try:
        from agent.optimise.graph.rewrite import REWRITES
    except ImportError as error:
        raise ModelError(f"rewriting a model needs ai-edge-litert, which is not installed: {error}") from error
    if unknown := sorted(set(skip) - set(REWRITES)):
        known = f"{', '.join(unknown)}: expected one of {', '.join(REWRITES)}"
        raise click.BadParameter(known, param_hint="--skip")
    return tuple(name for name in REWRITES if name not in skip)


def _rewritten(model: str, content: bytes, names: tuple[str, ...]) -> RewrittenModel:
    from agent.optimise.graph.verified import RewrittenModel, rewrite_verified

    try:
        return without_root(
            lambda: rewrite_verified(content, model, names, show_progress),
            RewrittenModel,
            _LONGEST_S,
            2 * len(content),
        )
    finally:
        show_progress("")


def _print_rewritten(out: Path, found: RewrittenModel, size: int) -> None:
    assert found.comparison is not None
    table = open_table("rewrite", "times", right=("times",))
    for name, count in found.counts.items():
        table.add_row(name, str(count))
    console(_WIDTH).print(table)
    compared = found.comparison
    click.echo(
        f"{plain(str(out))}: {size} -> {len(found.content)} bytes, {compared.before_ms:.2f} -> "
        f"{compared.after_ms:.2f} ms on one thread\n{told_differences(compared.last_bits, compared.relative)}"
    )
    if compared.busy:
        click.echo(compared.busy)


def add_features_and_write(model: str, out: Path, tensor: str, *, force: bool, as_json: bool) -> None:
    """Give a model an output `features`, and write it with its manifest and a report.

    Args:
        model: name or path.
        out: the `.tflite` file to write.
        tensor: name of the map; empty: it is chosen.
        force: files may be replaced.
        as_json: print the report as JSON.

    Raises:
        ModelError: the model cannot be read, has no such map, or a file is there already.
    """
    check_version(model, out, force=force)
    content, stated = load_file(model)
    if stated is not None and "audio" in stated.data:
        raise ModelError(f"{model}: takes sound: features are maps of pictures")
    with prefixed_errors(model):
        found = _with_features(content, tensor)
    report = {"step": "features", "model": model, "maps": found.maps}
    report |= carried_keys(model, content, found.content)
    write_version(model, out, found.content, report, force=force)
    if as_json:
        print_json(report)
        return
    table = open_table("signature", "tensor", "features")
    for one in found.maps:
        table.add_row(plain(one.signature), plain(one.tensor), "x".join(map(str, one.shape)))
    console(_WIDTH).print(table)


def _with_features(content: bytes, tensor: str) -> FeaturedModel:
    try:
        from agent.optimise.graph.additions import FeaturedModel, add_features
    except ImportError as error:
        raise ModelError(f"changing a model needs ai-edge-litert, which is not installed: {error}") from error
    return without_root(lambda: add_features(content, tensor), FeaturedModel, _LONGEST_S, 2 * len(content))
