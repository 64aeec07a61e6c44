"""Answers of a model to examples, one after another, and results that an interrupted evaluation has stored.

A result has a key, the hash of all that it depends on: the model, the example, and how it was run. The file has
lines of JSON; a line that was cut off is left out.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from agent.compute.cascade import EarlyExitModel
from agent.compute.decode import build_decoder
from agent.compute.decode.classes import Classify
from agent.compute.infer.image_input import Placement
from agent.compute.infer.session import Session
from agent.compute.manifest import Manifest, Model
from agent.config import DecodeConfig, StreamConfig
from agent.errors import ModelError, reason_of
from agent.optimise.data import Examples
from agent.optimise.evaluate import PATIENT, Progress, check_shape, detector
from agent.storage.files import add_line, refuse_special
from agent.structs import from_json
from agent.types import Array, Detection

T = TypeVar("T")
_EVERY_S = 1.0
"""Results of this time are written together: to sync each would take longer than a small model."""


class _Line(Struct, frozen=True):
    key: str
    name: str
    result: msgspec.Raw


def result_key(*parts: str) -> str:
    """Return the hash of what a result depends on."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def model_key(model: Model, variant: str) -> str:
    """Return the hash of a model and of how it is run: its file, its manifest and the variant."""
    return result_key(model.sha256, msgspec.json.encode(model.manifest).decode(), variant)


class KeptResults:
    """Results by key, in memory and in a file. A context, at whose end the last ones are written.

    Attributes:
        path: results file; None: nothing is stored.
        reused: number of results that were not computed again.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Load stored results; the file may be missing.

        Raises:
            ModelError: the file cannot be read, or holds something else.
        """
        self.path, self.reused = path, 0
        self._waiting, self._written_s = list[bytes](), time.monotonic()
        self._found = {} if path is None else _read(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write()

    def get(self, key: str, kind: type[T]) -> T | None:
        """Return a stored result; None: there is none."""
        raw = self._found.get(key)
        if raw is None:
            return None
        try:
            found = from_json(bytes(raw), kind)
        except msgspec.MsgspecError:
            return None
        self.reused += 1
        return found

    def computed(self, key: str, name: str, kind: type[T], compute: Callable[[], T]) -> T:
        """Return a stored result, or compute and store it."""
        found = self.get(key, kind)
        if found is None:
            found = compute()
            self.add(key, name, found)
        return found

    def add(self, key: str, name: str, result: Any) -> None:
        """Store a result under the name of its example. Raises StorageError if it cannot be written."""
        if self.path is not None:
            self._waiting.append(msgspec.json.encode({"key": key, "name": name, "result": result}))
            if time.monotonic() - self._written_s >= _EVERY_S:
                self._write()

    def _write(self) -> None:
        if self.path is not None and self._waiting:
            add_line(self.path, b"\n".join(self._waiting))
        self._waiting.clear()
        self._written_s = time.monotonic()


def _read(path: Path) -> dict[str, msgspec.Raw]:
    refuse_special(path, ModelError)
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {reason_of(error)}") from None
    found = {}
    for line in lines:
        try:
            one = from_json(line, _Line)
        except msgspec.MsgspecError:
            continue  # cut off
        found[one.key] = one.result
    if lines and not found and not lines[0].startswith(b'{"key"'):
        raise ModelError(f"{path}: is no file of results: name another by --results, or delete it")
    return found


class ExampleRun:
    """A pass over examples. For one thread.

    Attributes:
        session: of the model.
        examples: as they are read for it.
    """

    def __init__(
        self,
        session: Session,
        examples: Examples,
        kept: KeptResults | None = None,
        key: str = "",
        progress: Progress = lambda _: None,
    ) -> None:
        """Prepare the pass.

        Args:
            session: of the model.
            examples: as they are read for it.
            kept: results that need not be computed again, and where new ones are added; None: there are none.
            key: of the model, see `agent.optimise.evaluation.answers.model_key`.
            progress: called with the number of examples that are done.
        """
        self.session, self.examples = session, examples
        self._kept, self._key, self._progress = kept or KeptResults(), key, progress

    def answers(self, kind: type[T], how: str, decode: Callable[[Placement], T]) -> Iterator[T]:
        """Yield what is decoded from the model's outputs for each example.

        Args:
            kind: of an answer, which can be kept as JSON.
            how: the outputs are decoded: part of the key of an answer.
            decode: called while the outputs of an example are there, with the place of the model's picture.

        Raises:
            ModelError: an example cannot be read, or does not fit the model.
        """
        spec = check_shape(self.session, self.examples)

        def answer(index: int) -> T:
            placement = self.examples.fill(index, spec, self.session.input(0))
            self.session.invoke()
            return decode(placement)

        return self.computed(kind, how, answer)

    def computed(self, kind: type[T], how: str, answer: Callable[[int], T]) -> Iterator[T]:
        """Yield the answer to each example; `answer` is called with the numbers of those that are not kept.

        See `answers` for the other arguments and the errors.
        """
        for index in range(len(self.examples)):
            key = result_key(self._key, how, self.examples.digest(index)) if self._kept.path else ""
            found = self._kept.computed(key, self.examples.name(index), kind, partial(answer, index))
            self._progress(index + 1)
            yield found


class ClassScores(NamedTuple):
    """Scores of the classes.

    Attributes:
        values: [examples, classes], -inf where the model gives no numbers.
        top_k: how many classes are told.
        exits: number of answers by the name of the exit, shallow first; empty: one variant answers alone.
    """

    values: NDArray[np.float64]
    top_k: int
    exits: dict[str, int]


class _ExitAnswer(Struct, frozen=True):
    variant: str
    scores: list[float]


def class_scores(run: ExampleRun, manifest: Manifest, variant: str = "") -> ClassScores:
    """Return the scores of each example; those of a cascade are from the exits that the daemon would take.

    Args:
        run: of the examples.
        manifest: of the model.
        variant: of the model; empty: its first, or all exits of a calibrated cascade.

    Raises:
        ModelError: the outputs are no classes; or those of a cascade are not such that one is right.
    """
    session = run.session
    manifest = replace(manifest, output=replace(manifest.output, decoder="classify"))
    chosen = manifest.variant(variant)
    session.select(chosen.name)
    decode = build_decoder(manifest, session.inputs, session.outputs, DecodeConfig(score_threshold=0.0))
    assert isinstance(decode, Classify)

    def decoded(_: Placement) -> list[float]:
        scores = decode.scores([session.output(at) for at in range(len(session.outputs))])
        return [float(one) for one in scores] if np.isfinite(scores).all() else []

    used: Counter[str] = Counter()
    if chosen.is_exit:
        rows = list(_exit_scores(run, manifest, variant, used))
    else:
        rows = list(run.answers(list[float], "classes", decoded))
    count = max(map(len, rows), default=0) or len(manifest.output.labels) or len(run.examples.names)
    values = np.array([row or [-np.inf] * count for row in rows], np.float64)
    return ClassScores(values, decode.top_k, {one.name: used[one.name] for one in manifest.exits(variant)})


def _exit_scores(run: ExampleRun, manifest: Manifest, variant: str, used: Counter[str]) -> Iterator[list[float]]:
    """Yield the scores of each example by the exit that answers it, and count the exits."""
    config = StreamConfig("test:", manifest.name, variant=variant, threads=1, cascade=PATIENT)
    exits = EarlyExitModel(run.session, manifest, config)
    if not exits.is_softmax:
        raise ModelError("the classes of its exits are told each by itself: only those of which one is right are")
    spec = check_shape(run.session, run.examples)

    def answer(index: int) -> _ExitAnswer:
        def fill(tensor: Array) -> None:
            run.examples.fill(index, spec, tensor)

        found = exits.predict(fill, complexity=1.0)
        scores = [float(one) for one in found.scores]
        return _ExitAnswer(found.variant, scores if np.isfinite(scores).all() else [])

    for one in run.computed(_ExitAnswer, "exits", answer):
        used[one.variant] += 1
        yield one.scores


def detections(run: ExampleRun, manifest: Manifest, config: DecodeConfig) -> Iterator[list[Detection]]:
    """Yield what a model finds in each example; boxes are fractions of the whole picture."""
    return run.answers(list[Detection], repr(config), detector(run.session, manifest, config))
