"""Score a `.tflite` on examples, through the runtime, the input and the decoders of the daemon.

- Examples with classes: share of inputs whose largest score is that of the right class, with Wilson's interval
  (Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927).
- Examples with boxes: COCO's average precision, IoU .50:.95, by `pycocotools`, of the extra `[optimise]`.
- Examples without labels: agreement with a reference file, or for models that are no classifiers its error.

Slow INT4 weights are expanded as the daemon expands them. A file runs in another process before it runs in this
one, which it could crash.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any, Literal

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from agent.compute.decode import build_decoder
from agent.compute.decode.decoder import Labels, ShapeMismatchError, assign_scores
from agent.compute.infer.backends import open_for_command
from agent.compute.infer.benchmark import golden_inputs
from agent.compute.infer.image_input import Placement
from agent.compute.infer.session import CPU, BackendSpec, Session, SessionOptions
from agent.compute.manifest import Manifest, Model
from agent.compute.tflite.expand import expand_int4
from agent.compute.tflite.model import TensorSpec
from agent.config import CascadeConfig, DecodeConfig
from agent.errors import ModelError
from agent.models.library import installed_runtime
from agent.optimise.data import Examples
from agent.optimise.data.layouts import SCORE_HINTS, no_classifier
from agent.optimise.evaluation.timing import least_ms, time_turns
from agent.text import plural
from agent.types import Array, Detection

Progress = Callable[[int], None]
"""Called with the number of examples that are done."""
Metric = Literal["top-1", "AP", "agreement", "fidelity"]

WEAK = DecodeConfig(score_threshold=0.02, iou_threshold=0.6, max_detections=100)
"""Thresholds for COCO's measure and for curves, which need weak detections, too."""
_Z = 1.959964
"""Standard deviations of a normal distribution that hold 95 % of it."""
_UNITS = 1000.0
"""Width and height of every picture for COCO, whose boxes are in pixels, but whose IoU does not depend on it."""
_ACCURACY_MIN, _LUCK = 0.5, 2.0
"""Accuracy of the deepest variant on labelled inputs below which nothing is calibrated: the first, or what always
the most frequent label reaches, with so many standard deviations of luck, whichever is less."""
LABELS = "check their labels and the range of their values, and the manifest's [input]"


class Score(Struct, frozen=True):
    """How good a model is on examples.

    Attributes:
        metric: `top-1`: share of right classes; `AP`: COCO's average precision; `agreement`: share of inputs that
            a classifier gives the same class as the reference does; `fidelity`: 1 - `error`, of other models.
        value: 0..1.
        count: number of examples.
        interval: in which the value lies with 95 % probability; None: not known.
        details: other figures by name: `AP50`; or `error`: root mean square of the difference from the reference
            as a share of its outputs' standard deviation, of the worst output.
        right: for each example, if the metric is a share of them.
    """

    metric: Metric
    value: float
    count: int
    interval: tuple[float, float] | None = None
    details: dict[str, float] = {}
    right: tuple[bool, ...] = ()


PATIENT = CascadeConfig(budget_ms=1e6)
"""For cascades that are measured: time keeps no exit from running, so that nothing depends on this machine."""


class ScoreChange(Struct, frozen=True):
    """Change from one model's score to another's on the same examples, and its interval of 95 %, if known."""

    value: float
    interval: tuple[float, float] | None


def score(
    content: bytes,
    examples: Examples,
    manifest: Manifest,
    *,
    reference: bytes = b"",
    variant: str = "",
) -> Score:
    """Score a model file.

    Args:
        content: a `.tflite` file in float32, INT8 or INT4, with float or integer input.
        examples: what it is scored on.
        manifest: of the model.
        reference: another file, needed for examples without labels.
        variant: of the model; empty: the manifest's first.

    Raises:
        ModelError: a file cannot be run, or does not fit the examples or the manifest; there is no reference;
            or `pycocotools` is missing.
    """
    if not len(examples):
        raise ModelError("there are no examples to score a model on")
    if examples.kind == "none":
        if not reference:
            raise ModelError("examples without labels need a reference model, whose outputs are compared")
        return _agreement(content, reference, examples, manifest, variant)
    with open_content(content, manifest, variant, inputs=1 + len(examples.further)) as session:
        if examples.kind == "boxes":
            load_coco()  # before the first picture
            found = list(detections(session, examples, manifest, WEAK))
            return average_precision(examples, manifest, found)[0]
        return _top_1(session, examples)


def change(before: Score, after: Score) -> ScoreChange:
    """Compare two scores on the same examples.

    The interval is that of paired shares (McNemar, Psychometrika 1947): only examples on which the two differ
    count, so that it is far narrower than those of the two scores.
    """
    value = after.value - before.value
    if not before.right or len(before.right) != len(after.right):
        return ScoreChange(value, None)
    one, other = np.array(before.right), np.array(after.right)
    gained, lost = float((other & ~one).sum()), float((one & ~other).sum())
    # With no difference at all, one example might still have differed.
    spread = math.sqrt(max(gained + lost - (gained - lost) ** 2 / len(one), 1.0)) / len(one)
    return ScoreChange(value, (max(-1.0, value - _Z * spread), min(1.0, value + _Z * spread)))


@contextmanager
def open_content(
    content: bytes, manifest: Manifest, variant: str = "", *, inputs: int | None = 1
) -> Iterator[Session]:
    """Open a model file on the CPU, as the daemon does, of so many inputs; None: whatever it has.

    Raises:
        ModelError: it is damaged, crashes the runtime, or cannot run.
    """
    name = manifest.name or "model"
    sha256 = hashlib.sha256(content).hexdigest()
    model = Model(expand_int4(content, installed_runtime()), sha256, replace(manifest, sha256=sha256), name)
    session = open_for_command(model, CPU, SessionOptions(variant=variant, threads=1))
    with closing(session):
        if inputs is not None and len(session.inputs) != inputs:
            raise ModelError(f"{name}: has {len(session.inputs)} inputs; expected {inputs}")
        yield session


def outputs_of(session: Session, examples: Examples) -> Iterator[list[Array]]:
    """Yield the outputs for each example, dequantised copies in the order of `session.outputs`."""
    for _ in run_examples(session, examples):
        yield [np.array(spec.real(session.output(at))) for at, spec in enumerate(session.outputs)]


def check_shape(session: Session, examples: Examples) -> TensorSpec:
    """Return a model's input. Raises ModelError if the examples were read for one of another shape."""
    spec = session.inputs[0]
    if spec.shape[1:] != examples.shape:
        found, expected = list(spec.shape), [1, *examples.shape]
        raise ModelError(f"the model's input is {found}, and the examples were read for {expected}")
    return spec


def run_examples(
    session: Session, examples: Examples, progress: Progress = lambda _: None
) -> Iterator[Placement]:
    """Run each example; yield the place of the model's picture in it while the outputs are there."""
    spec = check_shape(session, examples)
    for index in range(len(examples)):
        placement = examples.fill(index, spec, session.input(0))
        for place, one in enumerate(session.inputs[1:], 1):
            examples.fill_further(index, one, session.input(place))
        session.invoke()
        yield placement
        progress(index + 1)


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return the interval of 95 % of a share, 0..1."""
    share, square = right / count, _Z * _Z
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = _Z * math.sqrt(share * (1 - share) / count + square / (4 * count * count)) / (1 + square / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def share_score(metric: Metric, right: NDArray[np.bool_], **details: float) -> Score:
    """Return the score of examples that are right or wrong, [n], with Wilson's interval."""
    hits = int(right.sum())
    interval = wilson(hits, len(right))
    return Score(metric, hits / len(right), len(right), interval, details, tuple(map(bool, right)))


def _top_1(session: Session, examples: Examples) -> Score:
    try:
        place = assign_scores(0, session.outputs, {}, SCORE_HINTS)
    except ShapeMismatchError as error:
        raise no_classifier(examples.description, "the model's outputs", error) from None
    classes = session.outputs[place].shape[-1]
    assert examples.labels is not None
    if examples.labels.max() >= classes:
        has = plural(classes, "class", "classes")
        raise ModelError(f"the examples have class {examples.labels.max()}, and the model {has}")
    found = np.empty(len(examples), np.int64)
    for number, _ in enumerate(run_examples(session, examples)):
        found[number] = session.output(place).argmax()
    return share_score("top-1", found == examples.labels)


def _agreement(content: bytes, reference: bytes, examples: Examples, manifest: Manifest, variant: str) -> Score:
    right, inputs = np.empty(len(examples), bool), 1 + len(examples.further)
    with (
        open_content(content, manifest, variant, inputs=inputs) as session,
        open_content(reference, manifest, variant, inputs=inputs) as other,
    ):
        sums = np.zeros((len(other.outputs), 4))
        classifies = len(other.outputs) == 1 and math.prod(other.outputs[0].shape[:-1]) == 1
        pairs = zip(outputs_of(session, examples), outputs_of(other, examples), strict=True)
        for number, (given, wanted) in enumerate(pairs):
            shapes = [[list(one.shape) for one in side] for side in (given, wanted)]
            if shapes[0] != shapes[1]:
                raise ModelError(f"the outputs are {shapes[0]}, and those of the reference {shapes[1]}")
            right[number] = given[0].argmax() == wanted[0].argmax()
            sums += [_sums(one, two) for one, two in zip(given, wanted, strict=True)]
    error = _relative_error(sums)
    if classifies:
        return share_score("agreement", right, error=error)
    return Score("fidelity", max(0.0, 1.0 - error), len(examples), details={"error": error})


def _relative_error(sums: NDArray[np.float64]) -> float:
    """Return the root mean square of the difference as a share of the deviation, of the worst output."""
    count, total, squares, differences = sums.T
    variances = np.maximum(squares / count - np.square(total / count), 1e-12)
    return float(np.sqrt(differences / count / variances).max())


def _sums(given: Array, wanted: Array) -> tuple[float, float, float, float]:
    """Return number, sum and sum of squares of an output, and the sum of squares of the differences from it."""
    one, two = given.astype(np.float64), wanted.astype(np.float64)
    return float(two.size), float(two.sum()), float(np.square(two).sum()), float(np.square(one - two).sum())


def detections(
    session: Session,
    examples: Examples,
    manifest: Manifest,
    config: DecodeConfig,
    progress: Progress = lambda _: None,
) -> Iterator[list[Detection]]:
    """Yield what a model finds in each example; boxes are fractions of the whole picture."""
    yield from map(detector(session, manifest, config), run_examples(session, examples, progress))


def detector(
    session: Session, manifest: Manifest, config: DecodeConfig
) -> Callable[[Placement], list[Detection]]:
    """Return a function that returns what the outputs of a session hold.

    It takes the place of the model's picture in the whole one, of which boxes are fractions then.
    """
    decode = build_decoder(manifest, session.inputs, session.outputs, config)

    def decoded(placement: Placement) -> list[Detection]:
        found = decode([session.output(at) for at in range(len(session.outputs))])
        return [one if one.box is None else replace(one, box=placement.to_frame(one.box)) for one in found]

    return decoded


def average_precision(
    examples: Examples, manifest: Manifest, found: Sequence[Sequence[Detection]]
) -> tuple[Score, tuple[str, ...], tuple[float | None, ...]]:
    """Score detections on examples with boxes by COCO's average precision.

    Args:
        examples: with boxes.
        manifest: of the model.
        found: detections in each example, whose boxes are fractions of the whole picture.

    Returns:
        The score over all classes, with `AP50`; names of the classes; and AP of each, None if it has no objects.

    Raises:
        ModelError: pycocotools is missing, there are no objects, or a detection has no box.
    """
    coco, evaluation = load_coco()
    if any(one.box is None for some in found for one in some):
        raise ModelError("the model's decoder gives no boxes, and the examples have boxes")
    if not any(len(examples.truth(index).classes) for index in range(len(examples))):
        raise ModelError("none of these examples has a box: take more of them")
    names = Labels(manifest.output.labels)
    most = max(int(examples.truth(index).classes.max(initial=0)) for index in range(len(examples)))
    count = len(manifest.output.labels) or most + 1
    numbers = {names[number]: number for number in reversed(range(count))}
    rows = [
        {"image_id": picture, "category_id": numbers[one.label], "bbox": _in_coco(one.box), "score": one.score}
        for picture, some in enumerate(found)
        for one in some
        if one.label in numbers and one.box is not None
    ]
    average, at_half, by_class = _evaluate(coco, evaluation, _ground_truth(examples, count), rows, count)
    score = Score("AP", average, len(examples), details={"AP50": at_half})
    return score, tuple(names[number] for number in range(count)), by_class


def load_coco() -> tuple[Any, Any]:
    """Return the classes of pycocotools that hold and score boxes. Raises ModelError if it is missing."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise ModelError("examples with boxes need pycocotools: pip install '.[optimise]' in the clone") from None
    return COCO, COCOeval


def _ground_truth(examples: Examples, count: int) -> dict[str, Any]:
    """Return the boxes in COCO's form; numbers of pictures and classes are indices."""
    annotations: list[dict[str, Any]] = []
    for picture in range(len(examples)):
        truth = examples.truth(picture)
        for kind, edges in zip(truth.classes, truth.boxes, strict=True):
            box = _in_coco(edges)
            annotation = {"image_id": picture, "category_id": int(kind), "bbox": box, "area": box[2] * box[3]}
            annotations.append({"id": len(annotations) + 1, "iscrowd": 0, **annotation})
    images = [{"id": number, "width": _UNITS, "height": _UNITS} for number in range(len(examples))]
    return {"images": images, "annotations": annotations, "categories": [{"id": kind} for kind in range(count)]}


def _in_coco(box: Iterable[float]) -> list[float]:
    """Return left, top, width and height."""
    x0, y0, x1, y1 = (side * _UNITS for side in box)
    return [x0, y0, x1 - x0, y1 - y0]


def _evaluate(
    coco: Any, evaluation: Any, truth: dict[str, Any], found: list[dict[str, Any]], count: int
) -> tuple[float, float, tuple[float | None, ...]]:
    """Return AP, AP50, and AP of each class."""
    if not found:
        there = {one["category_id"] for one in truth["annotations"]}
        return 0.0, 0.0, tuple(0.0 if number in there else None for number in range(count))
    with contextlib.redirect_stdout(io.StringIO()):
        known = coco()
        known.dataset = truth
        known.createIndex()
        scoring = evaluation(known, known.loadRes(found), "bbox")
        scoring.evaluate()
        scoring.accumulate()
        scoring.summarize()
    precision = scoring.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class; of all sizes, 100 detections
    by_class = [precision[:, :, number] for number in range(count)]
    means = tuple(float(one[one > -1].mean()) if (one > -1).any() else None for one in by_class)
    return float(scoring.stats[0]), float(scoring.stats[1]), means


def check_accuracy(
    accuracy: float, labels: Array, what: str, where: object, hint: str, alone: str = "without early exits "
) -> None:
    """Check that a model is right more often than one that guesses.

    Args:
        accuracy: of its deepest exit, 0..1.
        labels: of the inputs, indices.
        what: the inputs are.
        where: they are.
        hint: what to do.
        alone: how it is right.

    Raises:
        ModelError: it is not.
    """
    count = len(labels)
    chance = float(np.unique(labels, return_counts=True)[1].max() / count)
    least = min(_ACCURACY_MIN, chance + _LUCK * (chance * (1 - chance) / count) ** 0.5)
    if accuracy < least:
        raise ModelError(
            f"the model is hardly better than a guess: {where}: {alone}it is right for "
            f"{accuracy:.1%} of the {count} {what}, expected at least {least:.1%}: the most frequent class "
            f"alone is {chance:.1%} of them; {hint}"
        )


def doubt_guesses(accuracy: float, examples: Examples, what: str = "examples") -> tuple[str, ...]:
    """Return a line if a classifier is right hardly more often than one that guesses.

    Args:
        accuracy: its score, 0..1; of examples without classes it is no accuracy, and nothing is doubted.
        examples: that it was measured on.
        what: they are.
    """
    if examples.kind == "classes" and examples.labels is not None:
        try:
            check_accuracy(accuracy, examples.labels, what, examples.description, LABELS, "")
        except ModelError as error:
            return (str(error),)
    return ()


def time_ms(contents: Sequence[bytes], rounds: int = 30) -> list[float]:
    """Time model files against each other on one thread, see `agent.optimise.evaluation.timing`.

    Args:
        contents: `.tflite` files; the first graph of each runs on noise.
        rounds: see `time_turns`.

    Returns:
        Time of an inference of each, ms, without the time in which it waited for other work.

    Raises:
        ModelError: a file cannot be run.
    """
    with ExitStack() as opened:
        sessions = [opened.enter_context(open_content(content, Manifest(), inputs=None)) for content in contents]
        for session in sessions:
            for index, noise in enumerate(golden_inputs(session.inputs, 1)[0]):
                np.copyto(session.input(index), noise)
            session.invoke()  # a session in a worker learns from it when an inference hangs
        turns = time_turns(sessions, rounds)
    return [least_ms(one) for one in turns]


def memory_mb(content: bytes, manifest: Manifest = Manifest()) -> float:  # noqa: B008 - it is frozen
    """Return the resident memory of a process that runs a model file on one thread, MB, with its runtime.

    Raises:
        ModelError: it cannot be run.
    """
    from agent.compute.infer.worker import WorkerSession

    sha256 = hashlib.sha256(content).hexdigest()
    model = Model(expand_int4(content, installed_runtime()), sha256, manifest, manifest.name or "model")
    with closing(WorkerSession(model, BackendSpec(threads=1), SessionOptions(threads=1))) as session:
        session.invoke()
        return session.usage().rss_mb
