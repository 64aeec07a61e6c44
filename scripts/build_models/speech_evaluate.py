"""How often each exit of the small speech model is right, in clean sound and in noise, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from speech_corpus import UNKNOWN, Corpus, Word
from speech_features import Examples, Features, heard
from speech_graph import DEPTHS

CONDITIONS: Mapping[str, float | None] = {"clean": None, "10 dB": 10.0, "0 dB": 0.0}
"""Signal to noise ratios of the digits."""
_SECONDS = 400
"""Windows of continuous speech, and of no speech, in which false detections are counted."""

Logits = dict[int, NDArray[np.float32]]
"""By depth of the exit: [n, 12]."""
Answer = Callable[[Features], Logits]
Report = dict[str, dict[str, float]]


def report(answer: Answer, corpus: Corpus, unheard: list[Word]) -> Report:
    """Per cent of right answers, by condition and exit. Unknown words and silence are in one condition each.

    Args:
        answer: gives the logits for features.
        corpus: recordings that training has not heard.
        unheard: digits in synthetic voices that training has not heard.
    """
    sets = {name: heard(corpus, corpus.digits, snr_db) for name, snr_db in CONDITIONS.items()}
    sets["unknown"] = heard(corpus, corpus.unknown, 10.0)
    sets["new voices"] = heard(corpus, unheard, None)
    found = {name: accuracies(answer, examples) for name, examples in sets.items()}
    for kind in ("speech", "silence"):
        found[kind] = no_digits(answer, heard(corpus, [kind] * _SECONDS, None))
    return found


def no_digits(answer: Answer, examples: Examples) -> dict[str, float]:
    """Per cent of answers that are no digit, by exit."""
    logits = answer(examples.features)
    return {f"exit{d}": round(100 * float((logits[d].argmax(axis=1) >= UNKNOWN).mean()), 2) for d in DEPTHS}


def accuracies(answer: Answer, examples: Examples) -> dict[str, float]:
    """Per cent of right answers by exit."""
    logits = answer(examples.features)
    right = {f"exit{depth}": logits[depth].argmax(axis=1) == examples.labels for depth in DEPTHS}
    return {key: round(100 * float(values.mean()), 2) for key, values in right.items()}


def table(reports: Mapping[str, Report]) -> Iterable[str]:
    """Lines for people: one per model and condition."""
    yield f"{'':18}" + "".join(f"{f'exit {depth}':>9}" for depth in DEPTHS)
    for model, conditions in reports.items():
        for condition, exits in conditions.items():
            yield f"{model:7}{condition:11}" + "".join(f"{value:9.2f}" for value in exits.values())


class Chain:
    """The INT8 file, exit after exit: each goes on with the hidden tensor of the one before, as it is."""

    def __init__(self, content: bytes) -> None:
        interpreter = Interpreter(model_content=content, num_threads=1)
        self._runners = {depth: interpreter.get_signature_runner(f"exit{depth}") for depth in DEPTHS}

    def __call__(self, features: Features) -> Logits:
        """The integer logits of all exits for features [n, 98, 40]; their order is that of the real ones."""
        found: dict[int, list[NDArray[np.int8]]] = {depth: [] for depth in DEPTHS}
        for sample in features:
            entry = {"features": sample[None, :, :, None]}
            for depth, runner in self._runners.items():
                outputs = runner(**entry)
                found[depth].append(outputs["logits"][0])
                entry = {"hidden": outputs.get("hidden")}
        return {depth: np.stack(values).astype(np.float32) for depth, values in found.items()}


def times_us(content: bytes, runs: int = 400) -> dict[str, float]:
    """Median time of each signature alone with one thread, without copying."""
    interpreter = Interpreter(model_content=content, num_threads=1)
    times: dict[str, float] = {}
    for depth in DEPTHS:
        graph = interpreter.get_signature_runner(f"exit{depth}")._subgraph_index
        interpreter._interpreter.AllocateTensors(graph)
        taken = []
        for _ in range(runs):
            began = time.perf_counter()
            interpreter._interpreter.Invoke(graph)
            taken.append(time.perf_counter() - began)
        times[f"exit{depth}"] = round(1e6 * float(np.median(taken)), 1)
    return times
