"""`vedette optimise import`, `rewrite` and `features`: make or change a graph, and write the files."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.optimise.work import MadeModel, StepJob, run_step
from agent.cli.output import show_progress, tell
from agent.compute.infer.unprivileged import without_root
from agent.errors import ModelError
from agent.models.files import load_file
from agent.optimise.report import OptimiseReport, StepResult, describe_machine
from agent.optimise.source import learned_before

if TYPE_CHECKING:
    from agent.optimise.graph.from_torch import ImportedModule

_LONGEST_S = 3600.0
"""For the work on a model that root has done by another user, s."""


def _report(
    step: str, model: str, contents: tuple[bytes, bytes], steps: Sequence[StepResult], command: str
) -> OptimiseReport:
    """Return the report of a step that measures nothing on examples, from the file before and the one after."""
    before, after = (hashlib.sha256(one).hexdigest() for one in contents)
    learned = tuple(sorted(learned_before(model, before)))
    return OptimiseReport(
        step, model, before, after, describe_machine(), command, steps=tuple(steps), learned=learned
    )


def rewrite_and_write(
    model: str, out: Path, skip: tuple[str, ...], *, command: str, force: bool, as_json: bool
) -> None:
    """Rewrite a model, and write it with its manifest and a report, if there is something to rewrite.

    Raises:
        ModelError: the answers differ, or see `run_step`.
    """
    from agent.optimise.graph.rewrite import REWRITES, RewrittenModel, rewrite_verified

    if unknown := sorted(set(skip) - set(REWRITES)):
        known = f"{', '.join(unknown)}: expected one of {', '.join(REWRITES)}"
        raise click.BadParameter(known, param_hint="--skip")
    names = tuple(name for name in REWRITES if name not in skip)

    def make(_: Path) -> MadeModel:
        content = load_file(model)[0]
        found = without_root(
            lambda: rewrite_verified(content, model, names, show_progress),
            RewrittenModel,
            _LONGEST_S,
            2 * len(content),
        )
        notes = tuple(f"{name} {count}" for name, count in found.counts.items() if count)
        times: tuple[float | None, float | None] = (None, None)
        if compared := found.comparison:
            notes += (
                f"answers differ by at most {compared.last_bits:.2g} last bits of quantised outputs, and "
                f"{compared.relative:.1g} of float ones",
            )
            times = compared.before_ms, compared.after_ms
        else:
            tell(f"{model}: nothing to rewrite, and nothing is written")
        steps = (
            StepResult("before", size=len(content), latency_ms=times[0]),
            StepResult("rewrite", size=len(found.content), latency_ms=times[1], kept=bool(notes), notes=notes),
        )
        return MadeModel(found.content, _report("rewrite", model, (content, found.content), steps, command))

    run_step(StepJob(out, model, force=force, as_json=as_json), make)


def add_features_and_write(
    model: str, out: Path, tensor: str, *, command: str, force: bool, as_json: bool
) -> None:
    """Give a model an output `features`, and write it with its manifest and a report.

    Raises:
        ModelError: the model has no such map, or see `run_step`.
    """

    def make(_: Path) -> MadeModel:
        from agent.optimise.graph.additions import FeaturedModel, add_features

        content, stated = load_file(model)
        if stated is not None and "audio" in stated.data:
            raise ModelError("takes sound: features are maps of pictures")
        found = without_root(lambda: add_features(content, tensor), FeaturedModel, _LONGEST_S, 2 * len(content))
        notes = (f"{one.signature} {one.tensor}: {'x'.join(map(str, one.shape))}".strip() for one in found.maps)
        steps = [StepResult("features", size=len(found.content), notes=tuple(notes))]
        return MadeModel(found.content, _report("features", model, (content, found.content), steps, command))

    run_step(StepJob(out, model, force=force, as_json=as_json), make)


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
    command: str = ""
    force: bool = False
    as_json: bool = False


def write_imported(source: str, out: Path, options: ImportOptions) -> None:
    """Import a module and write `out`, its manifest and a report.

    Raises:
        ModelError: the module cannot be imported, or see `run_step`.
    """
    from agent.optimise.inputs import inputs_of

    shape = _shape(options.shape)
    mean, std = _normalisation(options.mean, options.std, shape[2])
    inputs = [*inputs_of(module=source, weights=options.weights), options.labels]

    def make(_: Path) -> MadeModel:
        from agent.optimise.factory import learned_of, load_factory
        from agent.optimise.graph.from_torch import export

        labels = _labels(options.labels)
        imported = export(load_factory(source, options.weights), shape, mean=mean, std=std)
        _check_labels(options.labels, labels, imported)
        keys: dict[str, Any] = {"input": {"order": options.order}}
        if options.mean is not None:
            keys["input"] |= {"mean": [imported.mean] * 3, "std": [imported.std] * 3}
        if labels:
            keys["output"] = {"labels": labels}
        report = OptimiseReport(
            "import",
            source,
            sha256_after=hashlib.sha256(imported.content).hexdigest(),
            command=options.command,
            steps=(StepResult("import", size=len(imported.content), notes=_facts(imported)),),
            remarks=_advice(out, options),
            learned=learned_of(options.weights),
        )
        return MadeModel(imported.content, report, keys=keys)

    run_step(StepJob(out, "", inputs, force=options.force, as_json=options.as_json), make)


def _facts(imported: ImportedModule) -> tuple[str, ...]:
    return (
        f"{imported.parameters} parameters",
        *([f"{imported.multiply_adds / 1e6:.1f} million multiply-adds"] if imported.multiply_adds else ()),
        f"results differ from the module's by at most {imported.difference:.1g} of the largest",
    )


def _advice(out: Path, options: ImportOptions) -> tuple[str, ...]:
    weights = "the weights are those that the factory gives: --weights takes those of a training"
    pixels = f"{out.with_suffix('.toml').name}: set [input] mean and std before a stream uses it"
    missing = (weights, options.weights), (pixels, options.mean)
    return tuple(told for told, given in missing if given is None)


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


def _check_labels(path: Path | None, labels: list[str], imported: ImportedModule) -> None:
    shapes = list(imported.outputs.values())
    if labels and len(shapes) == 1 and len(shapes[0]) == 2 and shapes[0][1] != len(labels):
        raise ModelError(f"{path}: {len(labels)} labels, and the module returns {shapes[0][1]} scores")
