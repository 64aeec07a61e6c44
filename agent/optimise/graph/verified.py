"""Rewrites whose answers are compared with the model's own before anything is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from agent.errors import ModelError
from agent.optimise.graph.compare import Comparison, compare
from agent.optimise.graph.rewrite import REWRITES, rewrite

LAST_BITS, RELATIVE = 1.0, 5e-4
"""Largest differences of answers before and after a rewrite: of quantised outputs in last bits, of float ones as
a share of the largest value. A product that is folded is rounded elsewhere."""
_SLACK = 1.01
"""Differences of real values are rounded, too."""
_FEW = 8
"""Random inputs with which a rewrite that changes the answers is looked for."""


class RewrittenModel(Struct, frozen=True):
    """Result of `rewrite_verified`.

    Attributes:
        content: the new file; the old bytes if nothing applied.
        counts: how often each rewrite applied.
        comparison: of both files; None if nothing applied.
    """

    content: bytes
    counts: dict[str, int]
    comparison: Comparison | None = None


def rewrite_verified(
    content: bytes,
    path: str,
    names: Sequence[str] = tuple(REWRITES),
    progress: Callable[[str], None] = lambda _: None,
) -> RewrittenModel:
    """Rewrite a model, and compare its answers to random inputs with those of the model as it was.

    Args:
        content: of a `.tflite` file.
        path: of the model, for messages.
        names: of `REWRITES`.
        progress: is told what is done next.

    Raises:
        ModelError: the file cannot be rewritten, see `rewrite`, or a rewrite changes the answers.
        BackendError: the runtime cannot run it.
    """
    progress("rewriting")
    try:
        changed, counts = rewrite(content, names)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    if changed == content:
        return RewrittenModel(content, counts)
    found = compare(content, changed, path, progress=progress)
    if not _is_equal(found):
        progress("looking for the rewrite that changes the answers")
        raise ModelError(_complaint(content, path, [name for name in names if counts[name]], found))
    return RewrittenModel(changed, counts, found)


def _is_equal(found: Comparison) -> bool:
    return found.last_bits <= LAST_BITS * _SLACK and found.relative <= RELATIVE


def _complaint(content: bytes, path: str, names: Sequence[str], found: Comparison) -> str:
    """Describe a rewritten model with other answers, and name the rewrite to leave out."""
    differs = f"{found.last_bits:.3g} last bits, {found.relative:.2g} of the largest value"
    guilty = [name for name in names if not _keeps_answers(content, path, name)]
    advice = " ".join(f"--skip {name}" for name in guilty or names)
    return f"{path}: the rewritten model answers differently ({differs}): nothing is written; try {advice}"


def _keeps_answers(content: bytes, path: str, name: str) -> bool:
    changed, _ = rewrite(content, [name])
    return changed == content or _is_equal(compare(content, changed, path, inputs=_FEW, rounds=1))
