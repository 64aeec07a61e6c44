"""`vedette optimise rewrite`: fuse and simplify the graph of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import click

from agent.cli.optimise.options import FORCE, JSON, MODEL, OUT, command_line
from agent.cli.optimise.work import MadeModel, StepJob, run_step
from agent.cli.output import show_progress, tell
from agent.compute.infer.unprivileged import without_root
from agent.models.files import load_file
from agent.optimise.report import OptimiseReport, StepResult, describe_machine
from agent.optimise.source import learned_before

LONGEST_S = 3600.0
"""For the work on a model that root has done by another user, s."""


def report_of(
    step: str, model: str, contents: tuple[bytes, bytes], steps: Sequence[StepResult], command: str
) -> OptimiseReport:
    """Return the report of a step that measures nothing on examples, from the file before and the one after."""
    before, after = (hashlib.sha256(one).hexdigest() for one in contents)
    learned = tuple(sorted(learned_before(model, before)))
    return OptimiseReport(
        step, model, before, after, describe_machine(), command, steps=tuple(steps), learned=learned
    )


@click.command()
@MODEL
@OUT
@click.option("--skip", multiple=True, metavar="REWRITE", help="Leave a rewrite out; repeatable.")
@FORCE
@JSON
def rewrite(model: str, out: Path, skip: tuple[str, ...], force: bool, as_json: bool) -> None:
    """Rewrite the graph of MODEL without changing its answers, and write OUT with its manifest and a report.

    \b
    identities    operations that change nothing are removed
    transposes    pairs of transpositions are removed, also around other operations
    batch-norm    factors and offsets per channel become part of the weights
    activations   a ReLU becomes part of the operation before it
    padding       a padding becomes part of the convolution or pooling after it, or one that INT8 can hold
    integer-ends  float inputs and outputs that are (de)quantised become integers
    points        INT4 1x1 convolutions become FULLY_CONNECTED, which has fast kernels

    Both models then answer random inputs; OUT is written only if the answers are equal: within one last bit of
    quantised outputs, and within 5e-4 of the largest value of float ones.
    """  # noqa: D301

    def make(_: Path) -> MadeModel:
        from agent.optimise.graph.rewrite import REWRITES, RewrittenModel, rewrite_verified

        if unknown := sorted(set(skip) - set(REWRITES)):
            known = f"{', '.join(unknown)}: expected one of {', '.join(REWRITES)}"
            raise click.BadParameter(known, param_hint="--skip")
        names = tuple(name for name in REWRITES if name not in skip)
        content = load_file(model)[0]
        found = without_root(
            lambda: rewrite_verified(content, model, names, show_progress),
            RewrittenModel,
            LONGEST_S,
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
        return MadeModel(
            found.content, report_of("rewrite", model, (content, found.content), steps, command_line())
        )

    run_step(StepJob(out, model, force=force, as_json=as_json), make)
