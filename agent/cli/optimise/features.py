"""`vedette optimise features`: give a model an output from which states are taught."""

from __future__ import annotations

from pathlib import Path

import click

from agent.cli.optimise.options import FORCE, JSON, MODEL, OUT, command_line
from agent.cli.optimise.rewrite import LONGEST_S, report_of
from agent.cli.optimise.work import MadeModel, StepJob, run_step
from agent.compute.infer.unprivileged import without_root
from agent.errors import ModelError
from agent.models.files import load_file
from agent.optimise.report import StepResult


@click.command()
@MODEL
@OUT
@click.option("--tensor", default="", help="Name of the map; default: the last one at 1/16 of the input's size.")
@FORCE
@JSON
def features(model: str, out: Path, tensor: str, force: bool, as_json: bool) -> None:
    """Give the picture model MODEL an output from which `vedette teach` teaches states, and write OUT.

    The output, `features`, is a map that the model computes anyway: its other answers and its speed stay.
    """

    def make(_: Path) -> MadeModel:
        from agent.optimise.graph.additions import FeaturedModel, add_features

        content, stated = load_file(model)
        if stated is not None and "audio" in stated.data:
            raise ModelError("takes sound: features are maps of pictures")
        found = without_root(lambda: add_features(content, tensor), FeaturedModel, LONGEST_S, 2 * len(content))
        notes = (f"{one.signature} {one.tensor}: {'x'.join(map(str, one.shape))}".strip() for one in found.maps)
        steps = [StepResult("features", size=len(found.content), notes=tuple(notes))]
        return MadeModel(
            found.content, report_of("features", model, (content, found.content), steps, command_line())
        )

    run_step(StepJob(out, model, force=force, as_json=as_json), make)
