"""`vedette optimise search-export`: write the INT8 file of a trial of a search."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from agent.cli.optimise.options import FILES, FORCE, JSON, OUT, command_line, study_place
from agent.cli.optimise.search import check_extra, files_of
from agent.cli.output import print_json
from agent.models.writer import check_first, write_first
from agent.text import plain


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
    from agent.optimise.search.results import read_candidate

    folder = files_of(study, files)
    kept = [path for pattern in ("*", "trials/*/*") for path in folder.glob(pattern)]
    check_first(out, force=force, inputs=kept)
    found = read_candidate(study, folder, trial, command_line())
    write_first(out, found.content, found.keys, msgspec.to_builtins(found.report), force=force)
    score = found.report.steps[0].score or 0.0
    if as_json:
        print_json(found.report)
        return
    click.echo(
        f"{plain(str(out))}: {len(found.content)} bytes, {score:.2%} on examples that decided nothing; "
        "manifest and report beside it"
    )
