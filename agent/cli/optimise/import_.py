"""`vedette optimise import`: import a PyTorch module as a float model."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.optimise.options import FORCE, JSON, OUT, WEIGHTS, command_line
from agent.cli.optimise.work import MadeModel, StepJob, run_step
from agent.cli.options import FilePath
from agent.errors import ModelError
from agent.optimise.report import OptimiseReport, StepResult

if TYPE_CHECKING:
    from agent.optimise.graph.from_torch import ImportedModule


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


@click.command("import")
@click.argument("factory", metavar="PATH.py:FACTORY")
@OUT
@click.option("--shape", required=True, metavar="HxWxC", help="Of one input: height, width, channels.")
@WEIGHTS
@click.option("--mean", metavar="N[,N,N]", help="Of the pixels 0..255 that the module takes.")
@click.option("--std", metavar="N[,N,N]", help="The module takes (pixel - mean) / std.")
@click.option("--order", type=click.Choice(["rgb", "bgr"]), default="rgb", show_default=True, help="Of channels.")
@click.option("--labels", type=FilePath(dir_okay=False), help="File with one class in each line.")
@FORCE
@JSON
def import_(factory: str, out: Path, **given: Any) -> None:
    """Import a PyTorch module as the float model OUT, with its manifest and a report.

    PATH.py:FACTORY is a function without arguments that returns a torch.nn.Module, which takes float32
    [batch, channels, height, width]. It runs with your rights. Batch norms and activations become part of the
    operations before them. OUT is written only if it gives the module's results, within 1e-4 of the largest one.
    An operation that cannot be imported is named with its place.
    """
    from agent.optimise.inputs import inputs_of

    options = ImportOptions(**given)
    shape = _shape(options.shape)
    means, stds = _normalisation(options.mean, options.std, shape[2])
    inputs = [*inputs_of(module=factory, weights=options.weights), options.labels]

    def make(_: Path) -> MadeModel:
        from agent.optimise.factory import learned_of, load_factory
        from agent.optimise.graph.from_torch import export

        labels = _labels(options.labels)
        imported = export(load_factory(factory, options.weights), shape, mean=means, std=stds)
        _check_labels(options.labels, labels, imported)
        keys: dict[str, Any] = {"input": {"order": options.order}}
        if options.mean is not None:
            keys["input"] |= {"mean": [imported.mean] * 3, "std": [imported.std] * 3}
        if labels:
            keys["output"] = {"labels": labels}
        report = OptimiseReport(
            "import",
            factory,
            sha256_after=hashlib.sha256(imported.content).hexdigest(),
            command=command_line(),
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
