"""`vedette optimise import`, `rewrite` and `features`: make or change a graph, and write the files."""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.output import console, open_table, print_json, show_progress
from agent.compute.infer.unprivileged import without_root
from agent.errors import ModelError
from agent.models.files import load_file
from agent.models.library import prefixed_errors
from agent.models.writer import check_version, write_version
from agent.optimise.source import carried_keys
from agent.text import plain

if TYPE_CHECKING:
    from agent.optimise.graph.additions import FeaturedModel
    from agent.optimise.graph.from_torch import ImportedModule
    from agent.optimise.graph.rewrite import RewrittenModel


_WIDTH = 80
_LONGEST_S = 3600.0
"""For the work on a model that root has done by another user, s."""


def rewrite_and_write(model: str, out: Path, skip: tuple[str, ...], *, force: bool, as_json: bool) -> None:
    """Rewrite a model, and write it with its manifest and a report, if there is something to rewrite.

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
    from agent.optimise.graph.rewrite import RewrittenModel, rewrite_verified

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
        f"{compared.after_ms:.2f} ms on one thread\nanswers differ by at most {compared.last_bits:.2g} last bits "
        f"of quantised outputs, and {compared.relative:.1g} of float ones"
    )


def add_features_and_write(model: str, out: Path, tensor: str, *, force: bool, as_json: bool) -> None:
    """Give a model an output `features`, and write it with its manifest and a report.

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


_SHAPE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})x([1-9]\d{0,3})")


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """Options of the verb, as they were given."""

    shape: str
    mean: str | None
    std: str | None
    weights: Path | None = None
    order: str = "rgb"
    labels: Path | None = None
    force: bool = False
    as_json: bool = False


def write_imported(source: str, out: Path, options: ImportOptions) -> None:
    """Import a module and write `out`, its manifest and a report.

    Raises:
        ModelError: the module cannot be imported, or a file cannot be read or is there already.
    """
    from agent.models.writer import check_first, write_first
    from agent.optimise.inputs import inputs_of

    shape = _shape(options.shape)
    mean, std = _normalisation(options.mean, options.std, shape[2])
    inputs = inputs_of(module=source, weights=options.weights)
    check_first(out, force=options.force, inputs=[*inputs, options.labels])
    labels = _labels(options.labels)
    imported = _imported(source, options.weights, shape, mean, std)
    _check_labels(options.labels, labels, imported)
    keys: dict[str, Any] = {"input": {"order": options.order}}
    if options.mean is not None:
        keys["input"] |= {"mean": [imported.mean] * 3, "std": [imported.std] * 3}
    if labels:
        keys["output"] = {"labels": labels}
    report = _report(source, imported) | _learned(options.weights, imported)
    write_first(out, imported.content, keys, report, force=options.force)
    print_json(report) if options.as_json else _print(out, imported, options)


def _shape(text: str) -> tuple[int, int, int]:
    found = _SHAPE.fullmatch(text)
    if found is None:
        raise click.BadParameter(
            f"{text!r}: expected HEIGHTxWIDTHxCHANNELS, such as 32x32x3, at most 99999x99999x9999",
            param_hint="--shape",
        )
    return int(found[1]), int(found[2]), int(found[3])


def _normalisation(mean: str | None, std: str | None, channels: int) -> tuple[list[float], list[float]]:
    if (mean is None) != (std is None):
        raise click.UsageError("--mean and --std: give both, or none")
    means, stds = _numbers(mean or "0", "--mean", channels), _numbers(std or "1", "--std", channels)
    if min(stds) <= 0:
        raise click.BadParameter(f"{std!r}: expected numbers greater than 0", param_hint="--std")
    if max(stds) < 1 or (max(stds) == 1 and 0 < max(means) <= 1):
        told = "these are for pixels 0..1, and pixels here are 0..255: multiply --mean and --std by 255"
        raise click.BadParameter(told, param_hint="--std")
    return means, stds


def _numbers(text: str, option: str, channels: int) -> list[float]:
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, channels):
        told = f"{text!r}: expected one number, or {channels} with commas between them"
        raise click.BadParameter(told, param_hint=option)
    if not all(map(math.isfinite, numbers)):
        raise click.BadParameter(f"{text!r}: expected finite numbers", param_hint=option)
    return numbers


def _labels(path: Path | None) -> list[str]:
    if path is None:
        return []
    from agent.models.files import read_text

    labels = [line.strip() for line in read_text(path).rstrip().splitlines()]
    lines: dict[str, int] = {}
    for number, label in enumerate(labels, 1):
        if (first := lines.setdefault(label, number)) != number:
            raise ModelError(f"{path}:{number}: {label!r} is the class of line {first} already")
    return labels


def _imported(
    source: str, weights: Path | None, shape: tuple[int, int, int], mean: list[float], std: list[float]
) -> ImportedModule:
    try:
        from agent.optimise.factory import load_factory
        from agent.optimise.graph.from_torch import export
    except ImportError as error:
        raise ModelError(f"importing a module needs pip install '.[optimise]' in the clone: {error}") from error
    with contextlib.redirect_stdout(sys.stderr):  # the module's own code may print
        return export(load_factory(source, weights), shape, mean=mean, std=std)


def _check_labels(path: Path | None, labels: list[str], imported: ImportedModule) -> None:
    shapes = list(imported.outputs.values())
    if labels and len(shapes) == 1 and len(shapes[0]) == 2 and shapes[0][1] != len(labels):
        raise ModelError(f"{path}: {len(labels)} labels, and the module returns {shapes[0][1]} scores")


def _report(source: str, imported: ImportedModule) -> dict[str, Any]:
    return {
        "step": "import",
        "module": source,
        "bytes": len(imported.content),
        "parameters": imported.parameters,
        "multiply_adds": imported.multiply_adds,
        "mean": imported.mean,
        "std": imported.std,
        "outputs": imported.outputs,
        "difference": imported.difference,
    }


def _learned(weights: Path | None, imported: ImportedModule) -> dict[str, Any]:
    """Return what the file of weights says that they have learned from, and of which model the report is."""
    from agent.optimise.factory import learned_of

    learned = learned_of(weights)
    return {"sha256_after": hashlib.sha256(imported.content).hexdigest(), "learned": learned} if learned else {}


def _print(out: Path, imported: ImportedModule, options: ImportOptions) -> None:
    counted = f", {imported.multiply_adds / 1e6:.1f} million multiply-adds" if imported.multiply_adds else ""
    click.echo(
        f"{plain(str(out))}: {len(imported.content)} bytes, {imported.parameters} parameters{counted}\n"
        f"results differ from the module's by at most {imported.difference:.1g} of the largest"
    )
    if options.weights is None:
        click.echo("the weights are those that the factory gives: --weights takes those of a training")
    if options.mean is None:
        click.echo(f"{plain(out.with_suffix('.toml').name)}: set [input] mean and std before a stream uses it")
