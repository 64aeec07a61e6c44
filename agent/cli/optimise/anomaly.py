"""`vedette optimise anomaly`: learn what sound parts look like."""

from __future__ import annotations

from pathlib import Path

import click

from agent.cli.optimise.options import FORCE, JSON, LIMIT, MODEL, OUT, command_line
from agent.cli.optimise.work import MadeModel, StepJob, run_step, tell_examples
from agent.cli.options import PATH, NumberRange
from agent.cli.output import show_progress
from agent.compute.manifest import Model
from agent.errors import ModelError
from agent.optimise.data import Examples, read_examples
from agent.optimise.source import open_source


def _label(context: click.Context, option: click.Parameter, text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise click.BadParameter(f"{text!r}: expected a name such as defect")
    return text


@click.command()
@MODEL
@OUT
@click.option("--data", type=PATH, required=True, help="Folder, .tar or .npz: pictures of sound parts.")
@click.option("--faulty", type=PATH, help="Faulty parts, for the figures alone.")
@click.option(
    "--false-alarms",
    type=NumberRange(0.0, 50.0),
    default=5.0,
    show_default=True,
    help="Sound parts that may be reported, per cent.",
)
@click.option("--places", type=click.IntRange(16, 8192), default=1024, show_default=True, help="Kept in memory.")
@click.option("--label", default="defect", show_default=True, callback=_label, help="Of what differs.")
@LIMIT
@FORCE
@JSON
def anomaly(
    model: str,
    out: Path,
    data: Path,
    faulty: Path | None,
    places: int,
    false_alarms: float,
    label: str,
    limit: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Learn from pictures of sound parts, and write OUT, which reports what differs from them.

    MODEL is a backbone: the bundled `inspection`, or one whose output are features, [1, height, width, channels].
    Two of three parts go into the memory of OUT, the others set its limit. Faulty parts decide nothing. No
    training: a board does it as well. `vedette models try OUT PART --picture JPEG` shows where a part differs.
    """

    def make(_: Path) -> MadeModel:
        from agent.optimise.anomaly.file import AnomalySettings, make_anomaly_model
        from agent.optimise.anomaly.memory import features_of

        source = open_source(model, lambda _: None)
        if source.manifest.audio is not None:
            raise ModelError("it takes sound: a backbone takes pictures, such as the bundled `inspection`")
        features_of(source.content)
        sound = _pictures(data, source, limit)
        others = _pictures(faulty, source, None) if faulty else None
        settings = AnomalySettings(out.stem, places, false_alarms / 100.0, label)
        found = make_anomaly_model(source, sound, others, settings, command=command_line(), progress=_learning)
        return MadeModel(found.content, found.report, keys=found.keys)

    run_step(StepJob(out, model, [data, faulty], (), (), force, as_json), make)


def _learning(what: str, share: float) -> None:
    show_progress(f"{what} {int(share * 100)} %" if share else what)


def _pictures(path: Path, model: Model, limit: int | None) -> Examples:
    examples = read_examples(path, model, limit=limit, own_classes=True)
    if examples.kind != "none":
        raise ModelError(
            f"{path}: holds {examples.kind}: give the folder of sound parts as --data, that of faulty ones as "
            "--faulty"
        )
    tell_examples(examples)
    return examples
