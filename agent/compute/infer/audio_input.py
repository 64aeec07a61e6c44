"""Collects the rows of an audio front end, quantised, and writes the newest into the input tensor."""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Iterator
from types import ModuleType
from typing import Protocol, TypeVar

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.compute.manifest import AudioManifest
from agent.compute.tflite.model import TensorSpec
from agent.config.toml import plain_fault
from agent.errors import ModelError
from agent.structs import convert
from agent.types import Array, Samples

Rows = NDArray[np.float32]
Chosen = TypeVar("Chosen", bound=Struct)


class FrontEnd(Protocol):
    """Turns samples into rows of features. For one thread: it keeps the samples that the next row needs.

    Attributes:
        columns: values in a row.
        hop_s: from one row to the next, s.
        floor: value of a row in digital silence.
        is_stateful: its rows depend on all earlier samples (a noise floor, a gain), so it must get every sample.
    """

    columns: int
    hop_s: float
    floor: float
    is_stateful: bool

    def __call__(self, samples: Samples) -> Rows:
        """Return the finite rows, float32 [n, columns], that these samples, int16 [n], complete."""
        ...

    def reset(self) -> None:
        """Forget the samples so far: the next ones do not continue them."""
        ...


FRONTENDS = ("logmel", "mfcc", "micro", "raw")
"""Names in a manifest; `audio_features.BUILDERS` has the options and the front end of each."""


def build_frontend(audio: AudioManifest) -> FrontEnd:
    """Build the front end that a manifest names.

    Raises:
        ModelError: the name is unknown, an option is wrong, or a library is missing.
    """
    if audio.frontend not in FRONTENDS:
        near = difflib.get_close_matches(audio.frontend, FRONTENDS, 1)
        meant = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(FRONTENDS)}"
        raise ModelError(f"no front end {audio.frontend!r}{meant}")
    kind, build = _features().BUILDERS[audio.frontend]
    made: FrontEnd = build(options(audio, kind), audio.rate_hz)
    return made


def options_kind(name: str) -> type[Struct]:
    """Return the struct of the options of a front end in `FRONTENDS`."""
    kind: type[Struct] = _features().BUILDERS[name][0]
    return kind


def _features() -> ModuleType:
    return importlib.import_module("agent.compute.infer.audio_features")  # it imports this module


def options(audio: AudioManifest, kind: type[Chosen]) -> Chosen:
    """Convert the manifest's options to a front end's struct. Raises ModelError if one is unknown or wrong."""
    known = [field.name for field in msgspec.structs.fields(kind)]
    given = {**audio.options, **({"rate_hz": audio.rate_hz} if "rate_hz" in known else {})}
    try:
        return convert(given, kind)
    except msgspec.ValidationError as error:
        listed = ", ".join(known) or "none"
        raise ModelError(
            f"front end {audio.frontend!r}: options: {plain_fault(str(error))}; known: {listed}"
        ) from None


class AudioInput:
    """Fills one input tensor. For one thread.

    Attributes:
        rows: of the tensor.
        every: rows from one inference to the next.
    """

    def __init__(self, spec: TensorSpec, audio: AudioManifest, frontend: FrontEnd) -> None:
        """Prepare the buffer for a tensor.

        Raises:
            ModelError: the tensor does not hold whole rows of this front end, or has another dtype.
        """
        size = int(np.prod(spec.shape))
        columns = frontend.columns
        sides = [side for side in spec.shape if side > 1]
        if size < columns or size % columns or (columns > 1 and len(sides) > 1 and sides[-1] != columns):
            raise ModelError(
                f"input {spec} does not hold rows of front end {audio.frontend!r}: expected [1,rows,{columns}]"
            )
        if spec.dtype not in ("int8", "uint8", "int16", "float32"):
            raise ModelError(f"input {spec} does not take sound: expected int8, uint8, int16 or float32")
        self.rows = size // columns
        if size == 1:
            raise ModelError(
                f"input {spec} holds one sample: its length was left open; export it for a fixed one"
            )
        self.every = max(1, round(audio.every_s / frontend.hop_s)) if audio.every_s else self.rows
        self._kind = np.dtype(spec.dtype)
        self._fold_scale(spec, audio)
        self._silence = np.float32(frontend.floor)
        self._floor = self._stored(np.full((1, columns), frontend.floor, np.float32))
        # Each row is stored twice, so that the newest ones are always contiguous.
        self._ring = np.empty((2 * self.rows, columns), self._kind)
        self.reset()

    def reset(self) -> None:
        """Fill the buffer with silence."""
        self._ring[:] = self._floor
        self._at = self._fresh = 0

    def keep_newest(self, keep: int) -> None:
        """Replace all rows by silence, except the newest `keep`."""
        newest = self.newest.copy()
        newest[: max(0, self.rows - keep)] = self._floor
        self._ring[: self.rows] = self._ring[self.rows :] = newest
        self._at = 0

    def feed(self, rows: Rows) -> Iterator[int]:
        """Add rows, float32 [n, columns]; values that are not finite count as silence.

        Yields:
            The number of rows still to be added, whenever an inference is due and the tensor can be filled.
        """
        stored = self._stored(rows)
        done = 0
        while done < len(stored):
            take = min(len(stored) - done, self.every - self._fresh)
            self._push(stored[done : done + take])
            done += take
            self._fresh += take
            if self._fresh == self.every:
                self._fresh = 0
                yield len(stored) - done

    @property
    def newest(self) -> Array:
        """View of the newest rows as the tensor takes them, [rows, columns]."""
        return self._ring[self._at : self._at + self.rows]

    def fill(self, tensor: Array) -> None:
        """Write the newest rows into the tensor's memory."""
        np.copyto(tensor, self.newest.reshape(tensor.shape))

    def _push(self, stored: Array) -> None:
        rows = self.rows
        if len(stored) >= rows:
            self._ring[:rows] = self._ring[rows:] = stored[-rows:]
            self._at = 0
            return
        for part in (stored[: rows - self._at], stored[rows - self._at :]):
            if len(part):
                end = self._at + len(part)
                self._ring[self._at : end] = self._ring[rows + self._at : rows + end] = part
                self._at = end % rows

    def _fold_scale(self, spec: TensorSpec, audio: AudioManifest) -> None:
        """Fold normalising and quantising into `stored = slope * row + offset`."""
        scale = audio.std * (spec.scale or 1.0)
        self._slope = np.float32(1.0 / scale)
        self._offset = np.float32(spec.zero_point - audio.mean / scale)
        if self._kind.kind != "f":
            limits = np.iinfo(self._kind)
            self._least, self._most = np.float32(limits.min), np.float32(limits.max)
        self._plain = self._slope == 1.0 and self._offset == 0.0

    def _stored(self, rows: Rows) -> Array:
        if not math.isfinite(np.add.reduce(rows, axis=None)):
            rows = np.where(np.isfinite(rows), rows, self._silence)
        real = rows if self._plain else rows * self._slope + self._offset
        if self._kind.kind == "f":
            return real
        # Two ufuncs cost a fifth of `np.clip`.
        cut = np.minimum(np.maximum(np.rint(real), self._least), self._most)
        return cut.astype(self._kind)
