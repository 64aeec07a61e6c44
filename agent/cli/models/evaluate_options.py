"""Options, files to write and tables that evaluations of pictures, words and clips share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from agent.cli.output import console, open_table
from agent.errors import ModelError, reason_of
from agent.optimise.evaluation.report import EvaluationTable
from agent.optimise.evaluation.slices import read_slices
from agent.optimise.inputs import refuse_inside
from agent.storage.files import write_atomic
from agent.text import plain

_WIDTH = 110
_RESULTS = ".results"


class EvaluateOptions(Struct, frozen=True):
    """Options of `vedette models evaluate`.

    Attributes:
        positive: classes that are to be found.
        target_recall: share of them, 0..1; None: none is asked for.
        background: folders of other sound, in which no word is said.
        target_false_alarms: most false alarms per hour; None: none is asked for.
        against: another model to compare with; empty: none.
        variant: of the model; empty: its first, or of sound as in a stream.
        limit: number of examples; None: all.
        every: of a clip, every so manieth picture is taken.
        slices: file with attributes of files; None: none.
        picture: PNG of the confusion matrix to write; None: none.
        curve: PNG of missed words against false alarms to write; None: none.
        report: HTML to write; None: none.
        results: file in which results are kept; None: beside the report, if there is one.
        fresh: forget what is kept there.
        force: replace files.
        as_json: print JSON instead of tables.
    """

    positive: tuple[str, ...] = ()
    target_recall: float | None = None
    background: tuple[Path, ...] = ()
    target_false_alarms: float | None = None
    against: str = ""
    variant: str = ""
    limit: int | None = None
    every: int = 1
    slices: Path | None = None
    picture: Path | None = None
    curve: Path | None = None
    report: Path | None = None
    results: Path | None = None
    fresh: bool = False
    force: bool = False
    as_json: bool = False

    @property
    def results_path(self) -> Path | None:
        """File in which results are kept; None: none are."""
        if self.results is not None or self.report is None:
            return self.results
        return self.report.with_name(f"{self.report.name}{_RESULTS}")

    def refuse(self, why: str, *names: str) -> None:
        """Refuse options that say nothing here.

        Args:
            why: what they are for.
            names: of the attributes.

        Raises:
            ModelError: one of them is set.
        """
        for name in names:
            if getattr(self, name) != getattr(EvaluateOptions(), name):
                raise ModelError(f"--{name.replace('_', '-')}: {why}")


def check_targets(options: EvaluateOptions, inputs: Sequence[Path]) -> None:
    """Refuse files that cannot be written, before hours pass.

    Raises:
        ModelError: one exists, is an input or another output, lies among the examples, or has no folder.
    """
    targets = [path for path in (options.picture, options.curve, options.report) if path is not None]
    kept = options.results_path
    names = [path.absolute() for path in (*targets, *([kept] if kept is not None else []))]
    if len(set(names)) < len(names):
        twice = next(path for path in names if names.count(path) > 1)
        raise ModelError(f"{twice}: is named for two outputs, such as the report and the chart: name two files")
    refuse_inside([*targets, *([kept] if kept is not None else [])], inputs)
    for path in targets:
        if any(path.exists() and one.exists() and path.samefile(one) for one in inputs):
            raise ModelError(f"{path}: is what is evaluated: name another file")
        if path.exists() and not options.force:
            raise ModelError(f"{path}: exists; --force replaces it")
    for path in (*targets, *([kept] if kept is not None else [])):
        if not path.absolute().parent.is_dir():
            raise ModelError(f"{path}: there is no folder {path.absolute().parent}")
    if options.fresh and kept is None:
        raise ModelError("--fresh: nothing is kept: --report or --results says where")


def given_slices(path: Path | None, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Read the file of attributes, see `read_slices`; none without a file.

    Raises:
        ModelError: it cannot be read, or is wrong.
    """
    if path is None:
        return {}
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {reason_of(error)}") from None
    return read_slices(content, str(path), names)


def print_tables(lines: Iterable[str], tables: Iterable[EvaluationTable]) -> None:
    """Print lines, of which empty ones are left out, and tables."""
    shown = console(_WIDTH, markup=False)
    for line in filter(None, lines):
        shown.print(plain(line))
    for table in tables:
        drawn = open_table(*table.columns, right=table.right)
        drawn.title, drawn.title_justify = table.title, "left"
        for row in table.rows:
            drawn.add_row(*map(plain, row))
        shown.print()
        shown.print(drawn)


def write_outputs(outputs: Sequence[tuple[Path | None, Callable[[], bytes]]]) -> None:
    """Write each file that is asked for, as a whole."""
    for path, content in outputs:
        if path is not None:
            write_atomic(path, content())
