"""`vedette optimise search-export`: write the INT8 file of a trial of a search."""

from __future__ import annotations

from pathlib import Path

import click

from agent.cli.optimise.options import FILES, FORCE, JSON, OUT, command_line, study_place
from agent.cli.optimise.search import check_extra, files_of
from agent.cli.optimise.work import MadeModel, StepJob, run_step


@click.command("search-export")
@click.argument("study", callback=study_place, metavar="FOLDER|URL")
@click.argument("trial", type=click.IntRange(min=0))
@OUT
@FILES
@FORCE
@JSON
def search_export(study: str, trial: int, out: Path, files: Path | None, force: bool, as_json: bool) -> None:
    """Write the INT8 file of TRIAL of a search as OUT, with its manifest and a report.

    The report has the accuracy on examples that have decided nothing in the search.
    """
    check_extra()
    folder = files_of(study, files)

    def make(_: Path) -> MadeModel:
        from agent.optimise.search.results import read_candidate

        found = read_candidate(study, folder, trial, command_line())
        return MadeModel(found.content, found.report, keys=found.keys)

    kept = [path for pattern in ("*", "trials/*/*") for path in folder.glob(pattern) if path.is_file()]
    run_step(StepJob(out, "", kept, force=force, as_json=as_json), make)
