"""Calibrates the exits of a classifier of pictures, or of arrays: their scores through the code of the daemon.

Temperatures and thresholds are learned as those of sound models, see `agent.optimise.calibrate`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from agent.compute.cascade import EarlyExitModel
from agent.compute.infer.backends import open_session
from agent.compute.infer.session import CPU, Session, SessionOptions
from agent.compute.manifest import Manifest, Model
from agent.compute.tflite.model import TensorSpec
from agent.config import StreamConfig
from agent.errors import ModelError
from agent.models.library import prefixed_errors
from agent.optimise.calibrate import (
    Calibration,
    CalibrationResult,
    Logits,
    calibrate,
    evaluate,
)
from agent.optimise.data import Examples
from agent.optimise.evaluate import LABELS, PATIENT, check_accuracy, open_content
from agent.text import plural
from agent.types import Array

FEWEST = 40
"""Least number of labelled examples to learn thresholds from."""
_PARTS = 4
"""The thresholds must hold in each quarter of the examples."""
_TIMED, _REPEATS = 100, 3


class ExitScores(Struct, frozen=True):
    """Scores of every exit on examples.

    Attributes:
        logits: see `Logits`.
        labels: classes, int64 [examples].
    """

    logits: Logits
    labels: Array


@contextmanager
def _open(
    content: bytes, manifest: Manifest, variant: str, *, inside: bool = False
) -> Iterator[tuple[EarlyExitModel, Session]]:
    config = StreamConfig(source="test:", model=manifest.name, variant=variant, cascade=PATIENT)
    opened = _inside(content, manifest) if inside else open_content(content, manifest, manifest.variants[-1].name)
    with opened as session:
        exits = EarlyExitModel(session, manifest, config)
        if not exits.is_softmax:
            raise ModelError(
                "thresholds are learned for logits of which one class is right: [output] decoder has to be "
                '"classify", with options.logits = true'
            )
        yield exits, session


@contextmanager
def _inside(content: bytes, manifest: Manifest) -> Iterator[Session]:
    """Open a model in this process, as the daemon does."""
    own = hashlib.sha256(content).hexdigest()
    model = Model(content, own, replace(manifest, sha256=own), manifest.name or "model")
    with closing(open_session(model, CPU, SessionOptions(threads=1))) as session:
        yield session


def exit_scores(
    content: bytes, manifest: Manifest, examples: Examples, progress: Callable[[int], None] = lambda _: None
) -> ExitScores:
    """Run every exit on all examples.

    Args:
        content: a `.tflite` file of chained signatures.
        manifest: of the model; its thresholds do not count.
        examples: with classes.
        progress: called with the number of examples that are done.

    Raises:
        ModelError: the examples have no classes, or do not fit the model.
    """
    if examples.kind != "classes" or examples.labels is None:
        raise ModelError(f"{examples.description}: thresholds are learned from examples with classes")
    found = []
    with _open(content, manifest, manifest.variants[0].name) as (exits, session):
        session.select(manifest.variants[-1].name)
        spec = session.inputs[0]
        for index in range(len(examples)):
            found.append(exits.predict_all_exits(partial(_fill, examples, index, spec)))
            progress(index + 1)
    logits = np.array(found, np.float32)
    if examples.labels.max() >= logits.shape[2]:
        has = plural(logits.shape[2], "class", "classes")
        raise ModelError(f"the examples have class {examples.labels.max()}, the model {has}")
    return ExitScores(logits, examples.labels)


def _fill(examples: Examples, index: int, spec: TensorSpec, tensor: Array) -> None:
    examples.fill(index, spec, tensor)


def costs_of(manifest: Manifest) -> tuple[float, ...]:
    """Return the multiply-adds of each exit by itself, shallow first."""
    return tuple(float(one.multiply_adds or 1) for one in reversed(manifest.variants))


def learn(scores: ExitScores, costs: tuple[float, ...], loss: float) -> Calibration:
    """Learn temperatures and thresholds.

    Args:
        scores: on examples that nothing was trained on.
        costs: of each exit by itself.
        loss: accuracy that may be lost, 0..1.

    Raises:
        ModelError: there are too few examples.
    """
    if len(scores.labels) < FEWEST:
        raise ModelError(
            f"{plural(len(scores.labels), 'example')} to learn thresholds from; expected at least {FEWEST}: give "
            "more"
        )
    return calibrate(scores.logits, scores.labels, costs, loss, parts=np.arange(len(scores.labels)) % _PARTS)


def on_others(learned: Calibration, scores: ExitScores, costs: tuple[float, ...]) -> Calibration:
    """Return a calibration whose figures are those on other examples."""
    curve = (replace(learned, chosen=one) for one in learned.curve)
    points = tuple(evaluate(scores.logits, scores.labels, costs, one)[0] for one in curve)
    chosen, full = evaluate(scores.logits, scores.labels, costs, learned)
    right = scores.logits.argmax(2) == scores.labels[:, None]
    return replace(learned, chosen=chosen, curve=points, full=full, alone=tuple(map(float, right.mean(0))))


def check_cascade(model: Model) -> None:
    """Raise ModelError if a model has no exits."""
    if not model.manifest.variants[0].after:
        raise ModelError(f"{model.path}: thresholds can be learned for models with several depths only")


def calibrate_examples(
    model: Model, examples: Examples, loss: float, progress: Callable[[int], None] = lambda _: None
) -> CalibrationResult:
    """Find the thresholds of a model; what to expect of them is measured on every other example.

    Raises:
        ModelError: the model has no exits, or is hardly better than a guess; the examples are too few.
    """
    check_cascade(model)
    manifest = model.manifest
    costs = costs_of(manifest)
    with prefixed_errors(model.path):
        scores = exit_scores(model.content, manifest, examples, progress)
        learned = learn(scores, costs, loss)
        check_accuracy(learned.full, scores.labels, "examples", examples.description, LABELS)
        order = np.random.default_rng(2).permutation(len(examples))
        one, other = (ExitScores(scores.logits[half], scores.labels[half]) for half in np.array_split(order, 2))
        checked, full = evaluate(other.logits, other.labels, costs, learn(one, costs, loss))
    names = tuple(variant.name for variant in reversed(manifest.variants))
    return CalibrationResult(names, costs, learned, checked, full, len(examples))


def time_exits_ms(
    content: bytes, manifest: Manifest, examples: Examples, *, inside: bool = False
) -> tuple[float, float]:
    """Return the mean time of the cascade, and of always running the deepest exit, ms for an example.

    Both run the same examples in turns, on one thread. The lesser of wall time and CPU time counts, and of
    repeated runs the shortest, see `agent.optimise.evaluation.timing`: other work makes them longer.

    Args:
        content: a `.tflite` file of chained signatures, which has run before.
        manifest: of the model.
        examples: which are run.
        inside: open it in this process also for root, as nobody should with a stranger's file; else root measures
            what calls to another process cost, too.
    """
    chosen = np.linspace(0, len(examples) - 1, min(len(examples), _TIMED)).astype(int)
    sums = np.zeros(2)
    with ExitStack() as opened:
        names = "", manifest.variants[0].name
        runs = [opened.enter_context(_open(content, manifest, name, inside=inside)) for name in names]
        specs = []
        for _, session in runs:
            session.select(manifest.variants[-1].name)
            specs.append(session.inputs[0])
        for index in chosen:
            fills = [partial(_fill, examples, int(index), spec) for spec in specs]
            for place, (exits, session) in enumerate(runs):
                sums[place] += min(_timed_ms(exits, session, fills[place]) for _ in range(_REPEATS))
    cascade, deepest = sums / len(chosen)
    return float(cascade), float(deepest)


def _timed_ms(exits: EarlyExitModel, session: Session, fill: Callable[[Array], None]) -> float:
    used, began = _cpu_s(session), time.perf_counter()
    exits.predict(fill, 1.0)
    wall = time.perf_counter() - began
    return min(wall, _cpu_s(session) - used or wall) * 1e3  # 0: this clock is too coarse


def _cpu_s(session: Session) -> float:
    """Return the CPU time of this process and of the one that runs a model, s."""
    from agent.compute.infer.worker import WorkerSession

    return time.process_time() + (session.usage().cpu_s if isinstance(session, WorkerSession) else 0.0)
