"""The models that are known for a task, with what was measured or published of them, in `recommend.toml`.

`scripts/bench/run apps/guide` compares its figures with files, records and benches.
"""

from __future__ import annotations

import functools
from pathlib import Path

from msgspec import Struct

from agent.config.toml import nearest, read_toml
from agent.errors import ModelError
from agent.structs import convert
from agent.text import plain

_FILE = Path(__file__).with_name("recommend.toml")


class GuideVariant(Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a variant of a model.

    Attributes:
        bytes: size of the file.
        memory: estimate of what it adds to the daemon's memory, bytes.
        ms: latency by board: predicted with 1 thread, with 4, and the upper end of the interval with 4.
        name: of the variant; empty if it is the only one.
        family: small, tiny or medium; empty: none of them.
        accuracy: 0..1; None: not measured here.
        noisy: accuracy of words in noise 10 dB below, 0..1; None: not measured.
        figure, noisy_figure: keys under which the model's `command` prints the accuracies.
    """

    bytes: int
    memory: int
    ms: dict[str, tuple[float, float, float]]
    name: str = ""
    family: str = ""
    accuracy: float | None = None
    noisy: float | None = None
    figure: str = ""
    noisy_figure: str = ""


class GuideModel(Struct, frozen=True, forbid_unknown_fields=True):
    """A model that is known.

    Attributes:
        name: bundled, packaged, of the catalogue, or of a network of the workshop.
        task: what it is for, such as `detect`.
        what: what the accuracy is, or what was published.
        variants: most accurate first.
        command: measures the accuracy; empty: it was published.
        recorded: entry of scripts/bench/optimise/recorded.json that has the figures; empty: the command prints
            them.
        get: commands that make or fetch the model; empty: it is here.
    """

    name: str
    task: str
    what: str
    variants: tuple[GuideVariant, ...]
    command: str = ""
    recorded: str = ""
    get: tuple[str, ...] = ()


class Guide(Struct, frozen=True, forbid_unknown_fields=True):
    """The contents of `recommend.toml`. `boards`: their titles by name."""

    boards: dict[str, str]
    models: tuple[GuideModel, ...]

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(model.task for model in self.models))


@functools.cache
def guide() -> Guide:
    """Return all that is known."""
    return convert(read_toml(_FILE, "the model guide").data, Guide)


def known_for(task: str, board: str) -> list[GuideModel]:
    """Return the models for a task. Raises ModelError if there is no such task or board."""
    for what, word, known in (("task", task, guide().tasks), ("board", board, list(guide().boards))):
        if word not in known:
            raise ModelError(f"no {what} {plain(word)!r}{nearest(word, known)}")
    return [model for model in guide().models if model.task == task]
