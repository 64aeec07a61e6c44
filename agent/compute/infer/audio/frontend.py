"""Front ends by name: samples in, rows of features out, one per hop. Streaming: a hop costs a hop."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Protocol, TypeVar

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.errors import ModelError
from agent.manifest import AudioManifest
from agent.messages import Samples

Rows = NDArray[np.float32]
Chosen = TypeVar("Chosen", bound=Struct)


class FrontEnd(Protocol):
    """For one thread: it keeps what the next row needs of the samples before.

    Attributes:
        columns: values in a row.
        hop_s: from one row to the next, s.
        floor: value of a row in digital silence.
        remembers: its rows depend on all that it has heard (a noise floor, a gain), so it must hear everything.
    """

    columns: int
    hop_s: float
    floor: float
    remembers: bool

    def __call__(self, samples: Samples) -> Rows:
        """The rows that these samples complete, float32 [n, columns]; finite whatever comes in.

        Args:
            samples: int16 [n], any number, following those before.
        """
        ...

    def reset(self) -> None:
        """What comes next does not follow what came before."""
        ...


FRONTENDS: Mapping[str, str] = {
    "logmel": "agent.compute.infer.audio.logmel",
    "mfcc": "agent.compute.infer.audio.mfcc",
    "micro": "agent.compute.infer.audio.micro",
    "raw": "agent.compute.infer.audio.raw",
}
"""Name in a manifest → module, whose `build(audio)` gives the front end."""


def build_frontend(audio: AudioManifest) -> FrontEnd:
    """The front end that a manifest names.

    Raises:
        ModelError: there is none of that name, an option is wrong, or a library is missing.
    """
    if audio.frontend not in FRONTENDS:
        near = difflib.get_close_matches(audio.frontend, FRONTENDS, 1)
        meant = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(FRONTENDS)}"
        raise ModelError(f"no front end {audio.frontend!r}{meant}")
    made: FrontEnd = importlib.import_module(FRONTENDS[audio.frontend]).build(audio)
    return made


def options_kind(name: str) -> type[Struct]:
    """The struct of a front end's options.

    Args:
        name: one of `FRONTENDS`.
    """
    kind: type[Struct] = importlib.import_module(FRONTENDS[name]).OPTIONS
    return kind


def options(audio: AudioManifest, kind: type[Chosen]) -> Chosen:
    """The manifest's options as a front end's struct; `rate_hz` is added where it takes one.

    Raises:
        ModelError: an unknown option or a wrong type.
    """
    known = [field.name for field in msgspec.structs.fields(kind)]
    given = {**audio.options, **({"rate_hz": audio.rate_hz} if "rate_hz" in known else {})}
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        listed = ", ".join(known) or "none"
        raise ModelError(f"front end {audio.frontend!r}: options: {error}; known: {listed}") from None
