"""The scores that a classifier gives each example, as the daemon would have them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from agent.compute.cascade import EarlyExitModel
from agent.compute.decode import build_decoder
from agent.compute.decode.classes import Classify
from agent.compute.infer.session import Session
from agent.compute.manifest import Manifest
from agent.compute.tflite.model import TensorSpec
from agent.config import DecodeConfig, StreamConfig
from agent.errors import ModelError
from agent.optimise.data import Examples
from agent.optimise.evaluate import PATIENT, Progress, check_shape, run_examples
from agent.types import Array


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


def class_scores(
    session: Session,
    examples: Examples,
    manifest: Manifest,
    variant: str = "",
    progress: Progress = lambda _: None,
) -> ClassScores:
    """Return the scores of each example; those of a cascade are from the exits that the daemon would take.

    Args:
        session: of the model.
        examples: as they are read for it.
        manifest: of the model.
        variant: of the model; empty: its first, or all exits of a calibrated cascade.
        progress: called with the number of examples that are done.

    Raises:
        ModelError: the outputs are no classes; or those of a cascade are not such that one is right.
    """
    manifest = replace(manifest, output=replace(manifest.output, decoder="classify"))
    chosen, used = manifest.variant(variant), Counter[str]()
    session.select(chosen.name)
    decode = build_decoder(manifest, session.inputs, session.outputs, DecodeConfig(score_threshold=0.0))
    assert isinstance(decode, Classify)
    if chosen.is_exit:
        rows = list(_exit_scores(session, examples, manifest, variant, used, progress))
    else:
        outputs = range(len(session.outputs))
        runs = run_examples(session, examples, progress)
        rows = [np.array(decode.scores([session.output(at) for at in outputs])) for _ in runs]
    values = np.array(rows, np.float64)
    values[~np.isfinite(values).all(1)] = -np.inf
    return ClassScores(values, decode.top_k, {one.name: used[one.name] for one in manifest.exits(variant)})


def _exit_scores(
    session: Session,
    examples: Examples,
    manifest: Manifest,
    variant: str,
    used: Counter[str],
    progress: Progress,
) -> Iterator[Array]:
    """Yield the scores of each example by the exit that answers it, and count the exits."""
    config = StreamConfig("test:", manifest.name, variant=variant, threads=1, cascade=PATIENT)
    exits = EarlyExitModel(session, manifest, config)
    if not exits.is_softmax:
        raise ModelError("the classes of its exits are told each by itself: only those of which one is right are")
    spec = check_shape(session, examples)
    for index in range(len(examples)):
        found = exits.predict(partial(_fill, examples, index, spec), complexity=1.0)
        used[found.variant] += 1
        yield np.array(found.scores)
        progress(index + 1)


def _fill(examples: Examples, index: int, spec: TensorSpec, tensor: Array) -> None:
    examples.fill(index, spec, tensor)
