"""The self-test of models: run by the version that is to use them, as the user that its daemon will be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from agent.errors import GoldenError, VedetteError
from agent.library import open_whole_model
from agent.update.goldens import compare


def selftest(models: Path) -> Iterator[str]:
    """Answer the golden inputs of every model of a set; gives what was proved, in words.

    Args:
        models: the folder of the set.

    Raises:
        GoldenError: a model answers otherwise than where the bundle was made, or cannot be run.
    """
    for golden in sorted(models.glob("*.npz")):
        path = golden.with_suffix(".toml")
        try:
            model = open_whole_model(str(path))
        except VedetteError as error:
            raise GoldenError(f"model {golden.stem}: {error}") from error
        compare(model.content, model.manifest, golden.read_bytes())
        yield f"model {golden.stem} answers as it did where the bundle was made"
