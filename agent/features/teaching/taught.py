"""Taught states: what a lesson asks for, and the content of the file of what was taught.

A file holds embeddings, and neither pictures nor sound. It may be anybody's, and is checked like a request.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from agent.compute.manifest import CHANNELS_MAX
from agent.compute.states import EMBEDDING_CELLS, EXAMPLES_MIN, UNSURE, Floats, Head
from agent.errors import NO_JSON, CommandError, StorageError
from agent.storage.state import StateFile
from agent.structs import from_json
from agent.types import Box

FOLDER = "states"
"""Name of their folder in the state folder."""
STATES_MAX, VALUES_MAX, EXAMPLES_MAX, BYTES_MAX = 16, 8, 20, 740_000
"""Most states of a stream, values of a state, examples of a value, and bytes of all examples of a state, whose
file is JSON and may have 1 MiB."""
REGION_MIN = 0.02
"""Least side of a region, as a share of the picture."""
NO_VALUES = (UNSURE, "none", "unknown", "unavailable")
"""Words that no value can be: Home Assistant reads the last three as none."""
SIZE_MAX = EMBEDDING_CELLS * CHANNELS_MAX
"""Numbers of an embedding."""
_VALUE = re.compile(r"[^\W_][\w -]{0,31}")

Learn = Callable[[Mapping[str, Floats]], Head]
"""Makes a head of the embeddings [n, size] of each value. Raises ValueError if none can be made."""


class Lesson(Struct, frozen=True):
    """A request to learn what the next pictures show, or which word the next utterances are.

    Attributes:
        state: name of the sensor, or of some words together.
        value: that they show, or the word that is said.
        examples: number of pictures or utterances.
        region: of the picture, as fractions; None: that of the state, or all for a new one.
    """

    state: str
    value: str
    examples: int = 10
    region: Box | None = None


class TaughtState(Struct, frozen=True, forbid_unknown_fields=True):
    """Content of a state's file.

    Attributes:
        name: of the sensor, or of some words together.
        region: of the picture, as fractions; all of it for words.
        model: sha256 of the model's file; embeddings of another model say nothing.
        variant: of the model.
        examples: of each value, oldest first: float16 [variations, size], little-endian. The first row is the
            example itself.
        size: of an embedding.
    """

    name: str
    region: Box
    model: str
    variant: str
    size: int
    examples: dict[str, tuple[bytes, ...]] = {}

    def embeddings(self) -> dict[str, list[Floats]]:
        """Return the examples of each value, float32 [variations, size] each.

        Raises:
            ValueError: they have not the size that is stated.
        """
        return {
            value: [np.frombuffer(one, "<f2").astype(np.float32).reshape(-1, self.size) for one in some]
            for value, some in self.examples.items()
        }

    def with_examples(self, value: str, new: Iterable[Floats]) -> TaughtState:
        """Return the state with more examples of a value; the oldest are dropped where there are too many."""
        packed = tuple(one.astype("<f2").tobytes() for one in new)
        examples = {**self.examples, value: (*self.examples.get(value, ()), *packed)[-EXAMPLES_MAX:]}
        while sum(len(one) for some in examples.values() for one in some) > BYTES_MAX:
            longest = max(examples, key=lambda name: len(examples[name]))
            examples[longest] = examples[longest][1:]
        return replace(self, examples=examples)

    def ready(self) -> dict[str, list[Floats]]:
        """Return the examples of each value that has enough."""
        return {value: some for value, some in self.embeddings().items() if len(some) >= EXAMPLES_MIN}

    def learned(self, learn: Learn, values_min: int) -> Head | None:
        """Return what tells the values apart that have enough examples; None: fewer than `values_min` have.

        Raises:
            ValueError: they cannot be told apart.
        """
        ready = self.ready()
        if len(ready) < values_min:
            return None
        return learn({value: np.concatenate(some) for value, some in ready.items()})

    def check(self) -> None:
        """Raise ValueError for names, a region or numbers that no lesson writes: a file may be anybody's."""
        for value in (*self.examples, "x"):
            try:
                check_lesson(Lesson(self.name, value, region=self.region))
            except CommandError as error:
                raise ValueError(str(error)) from None
        if not 1 <= self.size <= SIZE_MAX or not 1 <= len(self.examples) <= VALUES_MAX:
            raise ValueError(f"{len(self.examples)} values of embeddings of {self.size} numbers")
        for some in self.embeddings().values():
            if not all(np.isfinite(one).all() for one in some):
                raise ValueError("an embedding is not finite")


def check_lesson(lesson: Lesson) -> None:
    """Raise CommandError for names, numbers or a region that cannot be used."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", lesson.state):
        raise CommandError(f"{lesson.state[:40]!r} is no name of a state: use up to 32 letters, digits, - and _")
    if not _VALUE.fullmatch(lesson.value) or lesson.value.casefold() in NO_VALUES:
        raise CommandError(
            f"{lesson.value[:40]!r} is no value: use up to 32 letters, digits, spaces, - and _; none of "
            f"{', '.join(NO_VALUES)}"
        )
    if not 1 <= lesson.examples <= EXAMPLES_MAX:
        raise CommandError(f"a lesson takes 1 to {EXAMPLES_MAX} examples")
    if lesson.region is not None:
        left, top, right, bottom = lesson.region
        inside = all(math.isfinite(edge) and 0.0 <= edge <= 1.0 for edge in lesson.region)
        if not inside or right - left < REGION_MIN or bottom - top < REGION_MIN:
            raise CommandError(
                "region: expected left, top, right, bottom as fractions 0..1 of the picture, at least "
                f"{REGION_MIN:g} apart"
            )


def read_state(path: Path) -> TaughtState:
    """Return the content of a state's file.

    Raises:
        StorageError: it cannot be read, is damaged, or is another state's.
    """
    try:
        taught = from_json(StateFile(path).read() or b"", TaughtState)
        taught.check()
    except (ValueError, *NO_JSON) as error:
        raise StorageError(f"{path}: is damaged: {error}") from error
    if not path.name.endswith(f".{taught.name}.json"):
        raise StorageError(f"{path}: is of a state {taught.name[:40]!r}")
    return taught


def stored_values(folder: Path, stream: str) -> dict[str, tuple[str, ...]]:
    """Return the values of each state in the files of a stream that does not run, as far as they can be read."""
    found = {}
    for path in sorted(folder.glob(f"{stream}.*.json")):
        with suppress(StorageError):
            taught = read_state(path)
            if ready := tuple(taught.ready()):
                found[taught.name] = ready
    return found
