"""`vedette optimise screening`: choose an operating point, screen pictures with it, review what was found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from agent.cli.options import PATH, FilePath, NumberRange
from agent.errors import StorageError

_FOLDER = FilePath(file_okay=False)
_FILE = FilePath(dir_okay=False)


@click.group()
def screening() -> None:
    """Screen pictures with a detector at a chosen operating point, and review what it found.

    Not a medical device: a person has to look at what is found, and at what is not.
    """


@screening.command()
@click.argument("model")
@click.argument("data", type=PATH)
@click.argument("point", type=_FILE)
@click.option("--label", required=True, help="What is looked for.")
@click.option(
    "--false-positives",
    type=NumberRange(0.0, 100.0),
    help="Most for each picture; 0.5 unless --sensitivity is given.",
)
@click.option("--sensitivity", type=NumberRange(0.0, 1.0, min_open=True), help="Least share that is to be found.")
@click.option("--force", is_flag=True, help="Replace POINT.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def calibrate(model: str, data: Path, point: Path, **options: Any) -> None:
    """Choose the threshold of MODEL on the labelled pictures DATA, and write the operating point POINT, a .toml.

    DATA are pictures with boxes that MODEL has not learned from, taken as those that will be screened. POINT
    tells which share of the objects is found at which number of false positives, and how pictures must look.
    """
    from agent.cli.optimise.screening.calibrate import calibrate_and_write

    if options["sensitivity"] is not None and options["false_positives"] is not None:
        raise click.UsageError("--false-positives and --sensitivity exclude each other")
    calibrate_and_write(model, data, point, **options)


@screening.command()
@click.argument("point", type=_FILE)
@click.argument("pictures", type=PATH, nargs=-1, required=True)
@click.option("--out", type=_FOLDER, required=True, help="Folder for the records and the pictures to review.")
@click.option("--threads", type=click.IntRange(1, 64), default=1, show_default=True, help="Of the CPU.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def run(point: Path, pictures: tuple[Path, ...], out: Path, threads: int, as_json: bool) -> None:
    """Screen PICTURES, files or folders, with the operating point POINT.

    OUT/audit.jsonl gets a record for each picture, without its name, and OUT/review the pictures that a person
    has to look at, see OUT/review.html. OUT/names.csv tells which picture is which: keep it apart. An interrupted
    run goes on when the same command is given again. The exit code is 1 if a file cannot be read.
    """
    from agent.cli.optimise.screening.run import screen_and_print

    sys.exit(not screen_and_print(point, pictures, out, threads=threads, as_json=as_json))


@screening.command()
@click.argument("out", type=_FOLDER)
@click.argument("picture", required=False)
@click.option(
    "--verdict", type=click.Choice(["confirmed", "rejected"]), help="Whether it has what is looked for."
)
@click.option("--reviewer", default="", help="For the record.")
@click.option("--note", default="", help="For the record, up to 500 characters.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def review(out: Path, picture: str | None, verdict: str | None, reviewer: str, note: str, as_json: bool) -> None:
    """List the pictures in OUT that wait for a person, or record the --verdict on PICTURE, an id."""
    from agent.cli.optimise.screening.review import list_queue, record_review

    if (picture is None) != (verdict is None):
        raise click.UsageError("a review needs both PICTURE and --verdict")
    if picture is not None and verdict is not None:
        record_review(out, picture, verdict, reviewer, note, as_json=as_json)
    elif reviewer or note:
        raise click.UsageError("--reviewer and --note are for a --verdict")
    else:
        list_queue(out, as_json=as_json)


@screening.command()
@click.argument("out", type=_FOLDER)
@click.option("--head", default="", help="Hash as noted earlier: its record must still be there.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a line.")
def verify(out: Path, head: str, as_json: bool) -> None:
    """Check that the records in OUT follow each other, and print the hash of the last one, to be noted elsewhere.

    Exits with 1 if a record was changed, removed or inserted. Who writes all records anew is found by a --head
    alone that was noted before.
    """
    from agent.cli.optimise.screening.review import verify_records

    if not out.is_dir():
        raise StorageError(f"{out}: there is no such folder")
    verify_records(out, head, as_json=as_json)
