"""Choose a model for a task on a board, from what is measured or predicted of those that are known.

Accuracy is what a bench of this repository measured, or what the model's author published. Latency is
predicted, see `agent.models.predict`. Memory is estimated from the file, see `memory_of`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from agent.compute.manifest import Manifest
from agent.compute.tflite.model import ModelFile
from agent.compute.tflite.read import read_modelfile
from agent.compute.tflite.work import Arithmetic, Work
from agent.config.toml import read_toml
from agent.errors import ModelError
from agent.models.fetch import SAME_TASKS, CatalogueModel, catalogue
from agent.models.library import look_up
from agent.models.predict import (
    PICTURES_FPS,
    THREADS,
    KnownBoard,
    PredictedLatency,
    Reach,
    VariantPrediction,
    find_board,
    needed_fps,
    predict,
    work_of_variant,
)
from agent.structs import convert
from agent.text import plain

_FILE = Path(__file__).with_name("recommend.toml")
TASKS: dict[str, str] = {
    "speech": "spoken words",
    "wakeword": "one wake word",
    "classify": "what a picture shows",
    "detect": "things in a picture, with boxes",
    "inspect": "faulty parts, learned from sound ones",
    "pose": "points of a person",
    "face": "faces, with boxes",
    "landmarks": "points of a hand, a face or an eye",
    "segment": "which pixels are of a person",
}
"""Tasks, and what each finds."""
_ARENA = 2.5
"""Memory of all computed tensors, as a multiple of those of the largest operation; measured by apps/guide."""
_ITEM: dict[Arithmetic, int] = {"int8": 1, "float32": 4}
"""Bytes of a weight while a model runs."""
_FOLDER = "/opt/models"


class GuideModel(Struct, frozen=True, forbid_unknown_fields=True):
    """A model that is known.

    Attributes:
        name: bundled, packaged, of the catalogue, or of a network of the workshop.
        task: key of `TASKS`.
        what: what `accuracy` is.
        families: small, tiny or medium, by variant.
        accuracy: 0..1, by variant.
        noisy: accuracy of words in noise 10 dB below, 0..1, by variant; empty: not measured.
        figures, noisy_figures: keys under which `command` prints them, by variant.
        command: measures them.
        recorded: entry of recorded.json that keeps them; empty: the command prints them.
        get: commands that make or fetch the model; empty: it is here.
        file: path that a configuration names; empty: `name`.
        bytes, tensors, work: of the model's file, see `memory_of`; 0 and empty: read from the file.
    """

    name: str
    task: str
    what: str = ""
    families: dict[str, str] = {}
    accuracy: dict[str, float] = {}
    noisy: dict[str, float] = {}
    figures: dict[str, str] = {}
    noisy_figures: dict[str, str] = {}
    command: str = ""
    recorded: str = ""
    get: tuple[str, ...] = ()
    file: str = ""
    bytes: int = 0
    tensors: int = 0
    work: dict[Arithmetic, Work] = {}


class Recommendation(Struct, frozen=True):
    """A variant of a model, judged for a board.

    Attributes:
        model, variant, task, family: of the model; the variant is empty if it is the only one.
        accuracy: 0..1; None: not measured here.
        noisy: of words in noise 10 dB below, 0..1; None: not measured.
        what: what the accuracy is, or what was published.
        command: measures the accuracy; empty: it was published.
        get: see `GuideModel`.
        bytes: of the file.
        memory: estimated, bytes.
        fps: inferences in a second that it is judged by.
        prediction: with the fewest threads that reach the rate, or with four; None: the model is not here.
        reaches: whether it reaches the rate; None as well.
        bench: command that tells the latency.
        left_out: why it is not recommended; empty: it is.
        toml: what to write into the configuration.
    """

    model: str
    variant: str
    task: str
    family: str
    accuracy: float | None
    what: str
    command: str
    get: tuple[str, ...]
    bytes: int = 0
    memory: int = 0
    fps: float = 0.0
    prediction: PredictedLatency | None = None
    reaches: Reach | None = None
    bench: str = ""
    left_out: str = ""
    toml: str = ""
    noisy: float | None = None


class _Facts(Struct, frozen=True):
    """What is read from a model's file, or known of it, for one variant."""

    variant: str
    bytes: int
    memory: int
    fps: float
    hears: bool
    work: dict[Arithmetic, Work]


@functools.cache
def known_models() -> tuple[GuideModel, ...]:
    """Return the models that are known, by name, with those of the catalogue."""
    own = convert(read_toml(_FILE, "the model guide").data["models"], tuple[GuideModel, ...])
    listed = {one.name: one for one in catalogue()}
    return tuple(_published(one, listed[one.name]) if one.name in listed else one for one in own)


def bundled_for(task: str) -> list[str]:
    """Return the names of the models for a task whose files are read."""
    own = _own_word(task)
    return [one.name for one in known_models() if one.task == own and not one.work]


def _published(own: GuideModel, listed: CatalogueModel) -> GuideModel:
    what = listed.accuracy or "no accuracy is published"
    get = (f"vedette models pull {own.name} --to {_FOLDER}",)
    return replace(own, what=what, get=get, file=f"{_FOLDER}/{own.name}.tflite")


def _own_word(task: str) -> str:
    """Return the key of `TASKS` for what the catalogue calls it."""
    return next((own for own, same in SAME_TASKS.items() if same == task), task)


def recommend(task: str, board: str, *, fps: float = 0.0, memory: int = 0) -> list[Recommendation]:
    """Judge every known model for a task on a board: those that fit come first, then those that likely do.

    Models are in the order of their file, since accuracies of different kinds do not compare; of each the fastest
    rate and then the most accurate variant come first.

    Args:
        task: key of `TASKS`, or what the catalogue calls it.
        board: name, see `agent.models.predict.find_board`.
        fps: inferences in a second; 0: what a model needs, or, if no model fits, what those of pictures reach.
        memory: most that a model may take, bytes; 0: no limit.

    Raises:
        ModelError: there is no such task or board.
    """
    task = _own_word(task)
    if task not in TASKS:
        raise ModelError(f"{plain(task)}: there is no such task; there are: {', '.join(TASKS)}")
    name, there = find_board(board)
    models = [one for one in known_models() if one.task == task]

    def judge(*, slower: bool) -> list[Recommendation]:
        rows = [row for one in models for row in _rows(one, name, there, fps, slower=slower)]
        return sorted((_judged(row, memory) for row in rows), key=_order)

    found = judge(slower=False)
    return found if fps or any(not row.left_out for row in found) else judge(slower=True)


def _order(row: Recommendation) -> tuple[bool, bool, int, float, float]:
    place = next(number for number, one in enumerate(known_models()) if one.name == row.model)
    return bool(row.left_out), row.reaches != "yes", place, -row.fps, -(row.accuracy or 0.0)


def _rows(one: GuideModel, name: str, board: KnownBoard, fps: float, *, slower: bool) -> Iterator[Recommendation]:
    """Yield a row for each variant; a single one that is left out if the model is not here.

    With `slower` a model of pictures is judged by the whole rate that it reaches, at least 1 per s.
    """
    bare = Recommendation(one.name, "", one.task, "", None, one.what, one.command, one.get)
    try:
        facts = list(_facts(one))
    except ModelError as error:
        yield replace(bare, left_out=str(error).removeprefix(f"{one.name}: "))
        return
    for fact in facts:
        variant = VariantPrediction(fact.variant, tuple(predict(fact.work, board, count) for count in THREADS))
        rate = fps or fact.fps
        if slower and not fact.hears:
            rate = min(rate, max(1.0, 1e3 // variant.predictions[-1].high_ms))
        chosen = variant.fewest_threads(rate, sure=True) or variant.fewest_threads(rate, sure=False)
        chosen = chosen or variant.predictions[-1]
        shown = fact.variant if len(facts) > 1 else ""
        yield replace(
            bare,
            variant=shown,
            family=one.families.get(fact.variant, ""),
            accuracy=one.accuracy.get(fact.variant),
            noisy=one.noisy.get(fact.variant),
            bytes=fact.bytes,
            memory=fact.memory,
            fps=rate,
            prediction=chosen,
            reaches=chosen.reaches(rate),
            bench=_bench(one, name, shown, rate if slower else fps),
            left_out=_too_slow(chosen, rate),
            toml=_toml(one, shown, chosen.threads, 0.0 if fact.hears else rate),
        )


def _judged(row: Recommendation, memory: int) -> Recommendation:
    if row.left_out or not memory or row.memory <= memory:
        return row
    return replace(
        row, left_out=f"takes about {row.memory / 1e6:.1f} MB of memory, more than {memory / 1e6:g} MB"
    )


def _too_slow(chosen: PredictedLatency, fps: float) -> str:
    if chosen.reaches(fps) != "no":
        return ""
    return f"takes {chosen.ms:.0f} ms with {chosen.threads} threads, and {fps:g} per s leave {1e3 / fps:.1f} ms"


def _bench(one: GuideModel, board: str, variant: str, fps: float) -> str:
    """Return the command that predicts what a row tells; a model that is not here has to be fetched before."""
    words = ["vedette bench", one.file or one.name, "--board", board]
    words += ["--variant", variant] if variant else []
    return " ".join([*words, *(["--fps", f"{fps:g}"] if fps else [])])


def _toml(one: GuideModel, variant: str, threads: int, fps: float) -> str:
    lines = [f"[streams.{one.task}]", f'source = "{"v4l2:/dev/video0" if fps else "mic:default"}"']
    lines.append(f'model = "{one.file or one.name}"')
    lines += [f'variant = "{variant}"'] if variant else []
    lines.append(f"threads = {threads}")
    lines += [f"\n[streams.{one.task}.capture]\nmax_fps = {fps:g}"] if fps else []
    return "\n".join(lines) + "\n"


def _facts(one: GuideModel) -> Iterator[_Facts]:
    if one.work:
        sizes = (_ITEM[kind] * (work.weights + work.small_weights) for kind, work in one.work.items())
        memory = memory_of(one.bytes, sum(sizes), one.tensors)
        yield _Facts("full", one.bytes, memory, PICTURES_FPS, False, one.work)
        return
    known = look_up(one.name)
    file, manifest = read_modelfile(known.content), known.manifest
    for variant in manifest.variants:
        fps = needed_fps(manifest, _rows_of(file))
        memory = _memory(file, manifest, variant.name, known.size)
        work = work_of_variant(file, manifest, variant.name)
        yield _Facts(variant.name, known.size, memory, fps, manifest.audio is not None, work)


def _rows_of(file: ModelFile) -> int:
    """Return the rows of an input of sound [1, rows, values]."""
    inputs, _ = file.ends()
    return max(1, inputs[0].shape[1]) if len(inputs[0].shape) == 3 else 1


def _memory(file: ModelFile, manifest: Manifest, variant: str, size: int) -> int:
    graphs = tuple(file.graph(one.signature) for one in manifest.chain(variant))
    constants = {tensor.buffer: tensor.size for graph in graphs for tensor in graph.tensors}
    return memory_of(size, sum(constants.values()), replace(file, subgraphs=graphs).least_memory)


def memory_of(size: int, weights: int, tensors: int) -> int:
    """Estimate what a model adds to the daemon's memory, bytes: file, weights in XNNPACK's order, and tensors.

    Args:
        size: of the file, bytes.
        weights: bytes of constants.
        tensors: of the largest operation, bytes.
    """
    return size + weights + int(_ARENA * tensors)
