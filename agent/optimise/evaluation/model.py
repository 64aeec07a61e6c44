"""Evaluate a model on labelled examples: one pass over them, through the input and the decoder of the daemon."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from agent.compute.cascade import EarlyExitModel
from agent.compute.decode import build_decoder
from agent.compute.decode.classes import Classify
from agent.compute.decode.decoder import Labels
from agent.compute.infer.session import Session
from agent.compute.manifest import Manifest, Model
from agent.compute.tflite.model import TensorSpec
from agent.config import DecodeConfig, StreamConfig
from agent.config.wording import nearest
from agent.errors import ModelError
from agent.optimise.anomaly.memory import roc_area
from agent.optimise.data import Examples
from agent.optimise.evaluate import (
    PATIENT,
    WEAK,
    Progress,
    Score,
    average_precision,
    change,
    check_shape,
    detections,
    load_coco,
    open_content,
    run_examples,
    share_score,
    wilson,
)
from agent.optimise.evaluation.operating import (
    NOTHING,
    Confusion,
    Found,
    OperatingPoint,
    WrongAnswer,
    box_errors,
    box_point,
    box_threshold_for,
    confusions,
    match,
    share_point,
    threshold_for,
    worst,
)
from agent.text import plural
from agent.types import Array, Detection

_LEAST = 1e-4
"""Threshold of the decoder in a pass: weaker results are of no use."""


class EvaluationRequest(Struct, frozen=True):
    """Request for an evaluation.

    Attributes:
        variant: of the model; empty: its first.
        positive: classes that are to be found, for operating points; empty: none.
        target_recall: share of them that has to be found; None: the manifest's threshold is judged alone.
    """

    variant: str = ""
    positive: tuple[str, ...] = ()
    target_recall: float | None = None


class ClassResult(Struct, frozen=True):
    """One class.

    Attributes:
        name: of the class.
        count: examples, or objects, of it.
        recall: share of them that is told rightly, at the manifest's threshold for boxes; None: there are none.
        recall_interval: of 95 %.
        precision: share of what is told to be it that is; None: nothing is.
        ap: COCO's average precision of its boxes; None: not of boxes.
    """

    name: str
    count: int
    recall: float | None
    recall_interval: tuple[float, float] | None
    precision: float | None
    ap: float | None = None


class Positive(Struct, frozen=True):
    """Operating points of the thresholds on one score.

    Attributes:
        names: classes that are to be found.
        count: examples or objects of them.
        auroc: probability that a positive example has a larger score than a negative one; None: of boxes.
        at_manifest: at the manifest's threshold.
        at_target: at the highest threshold that reaches the target; None: no target, or it cannot be reached.
        most: largest share that any threshold finds.
    """

    names: tuple[str, ...]
    count: int
    auroc: float | None
    at_manifest: OperatingPoint
    at_target: OperatingPoint | None
    most: float


class ModelComparison(Struct, frozen=True):
    """The same examples through another model.

    Attributes:
        model: its name.
        value: of the same metric.
        difference: of this model from it.
        interval: in which the difference lies with 95 % probability, of paired examples; None: not known.
    """

    model: str
    value: float
    difference: float
    interval: tuple[float, float] | None


class Evaluation(Struct, frozen=True):
    """How good a model is on labelled examples.

    Attributes:
        model, sha256: name and hash of the file.
        data: where the examples came from, in a line.
        count: of the examples.
        metric: `top-1`, `AP` or `AUROC`.
        value: of the metric, 0..1.
        interval: of 95 %; None: not known.
        details: other figures, such as `AP50`.
        classes: by class.
        confusions: what is most often taken for another class; empty: of boxes and anomalies.
        positives: by what is to be found.
        wrong: the worst errors, surest first.
        against: comparison with another model; None: there is none.
        remarks: doubts.
    """

    model: str
    sha256: str
    data: str
    count: int
    metric: str
    value: float
    interval: tuple[float, float] | None
    details: dict[str, float]
    classes: tuple[ClassResult, ...]
    confusions: tuple[Confusion, ...]
    positives: tuple[Positive, ...]
    wrong: tuple[WrongAnswer, ...]
    against: ModelComparison | None = None
    remarks: tuple[str, ...] = ()


_Pass = tuple[Evaluation, Score]
"""Result of one pass: the evaluation, and for comparisons a score."""


def has_own_classes(manifest: Manifest) -> bool:
    """Return True if a model does not tell classes of whole pictures: folders then need not be its labels."""
    return manifest.output.decoder not in ("classify", "")


def evaluate_model(
    model: Model,
    examples: Examples,
    request: EvaluationRequest,
    other: tuple[Model, Examples] | None = None,
    progress: Progress = lambda _: None,
) -> Evaluation:
    """Evaluate a model, and compare it with another on the same examples.

    Args:
        model: to evaluate.
        examples: with classes or boxes, as they are read for it.
        request: see `EvaluationRequest`; its variant is that of the model alone.
        other: another model, and the same examples as they are read for it; None: nothing is compared.
        progress: called with the number of examples that are done.

    Raises:
        ModelError: a model cannot be run, or the examples have no labels, or not those that are asked for.
    """
    if examples.kind == "none":
        raise ModelError("the examples have no labels: give two sub-folders of classes or more, or boxes")
    if request.target_recall is not None and not request.positive:
        raise ModelError("a target needs --positive, the class that is to be found")
    if examples.kind == "boxes":
        load_coco()  # before the first picture
    found, score = _one_pass(model, examples, request, progress)
    if other is None:
        return found
    second, past = _one_pass(*other, replace(request, variant=""), lambda done: progress(len(examples) + done))
    if second.metric != found.metric:
        raise ModelError(f"{second.model}: is told by {second.metric}, and the model by {found.metric}")
    by = change(past, score)
    return replace(found, against=ModelComparison(second.model, past.value, by.value, by.interval))


def _one_pass(model: Model, examples: Examples, request: EvaluationRequest, progress: Progress) -> _Pass:
    judge = _classes
    if examples.kind == "boxes":
        judge = _boxes
    elif has_own_classes(model.manifest):
        judge = _whole_pictures
    with open_content(model.content, model.manifest, request.variant) as session:
        return judge(model, session, examples, request, progress)


def _evaluation(model: Model, examples: Examples, score: Score, metric: str, **more: Any) -> Evaluation:
    return Evaluation(
        model.manifest.name or model.path,
        model.sha256[:12],
        examples.description,
        len(examples),
        metric,
        score.value,
        score.interval,
        score.details,
        remarks=examples.remarks,
        **more,
    )


def _classes(
    model: Model, session: Session, examples: Examples, request: EvaluationRequest, progress: Progress
) -> _Pass:
    output, labels = model.manifest.output, examples.labels
    assert labels is not None
    scores, top_k, exits = _class_scores(model, session, examples, request.variant, progress)
    silent = ~np.isfinite(scores).all(1)
    told = np.where(silent, -1, scores.argmax(1))
    names = Labels(output.labels or examples.names)
    shown = tuple(names[number] for number in range(scores.shape[1]))
    heard = np.flatnonzero(~silent)
    wrong = (
        WrongAnswer(examples.name(at), shown[labels[at]], shown[told[at]], float(scores[at, told[at]]))
        for at in heard[labels[heard] != told[heard]].tolist()
    )
    score = share_score("top-1", told == labels)
    more = {
        "classes": tuple(_class_results(labels, told, shown)),
        "confusions": confusions((shown[labels[at]], shown[told[at]]) for at in heard),
        "positives": _positive_classes(request, scores, labels, shown, top_k, output.score_threshold),
        "wrong": worst(wrong),
    }
    found = _evaluation(model, examples, score, "top-1", **more)
    if silent.any():
        told_none = f"{plural(int(silent.sum()), 'example')}: the model gives no numbers, which counts as wrong"
        found = replace(found, remarks=(*found.remarks, told_none))
    if exits:
        shares = ", ".join(f"{name} {count / len(examples):.1%}" for name, count in exits.items())
        found = replace(found, remarks=(*found.remarks, f"answered by {shares}"))
    return found, score


def _class_scores(
    model: Model, session: Session, examples: Examples, variant: str, progress: Progress
) -> tuple[NDArray[np.float64], int, dict[str, int]]:
    """Return the scores of each example; those of a cascade are from the exits that the daemon would take.

    Returns:
        Scores [examples, classes], -inf where the model gives no numbers; how many classes are told; and the
        number of answers by the name of the exit, shallow first, empty if one variant answers alone.

    Raises:
        ModelError: the outputs are no classes; or those of a cascade are not such that one is right.
    """
    manifest = replace(model.manifest, output=replace(model.manifest.output, decoder="classify"))
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
    return values, decode.top_k, {one.name: used[one.name] for one in manifest.exits(variant)}


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


def _positive_classes(
    request: EvaluationRequest,
    scores: NDArray[np.float64],
    labels: NDArray[np.int64],
    names: Sequence[str],
    top_k: int,
    threshold: float,
) -> tuple[Positive, ...]:
    """Return what thresholds give on the score of the positive classes, as far as the daemon tells them."""
    if not request.positive:
        return ()
    chosen = sorted({_number(names, name) for name in request.positive})
    ranks = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)[:, chosen]
    best = np.where(ranks < top_k, scores[:, chosen], -np.inf).max(1)
    return (_positive(request, best, np.isin(labels, chosen), threshold),)


def _number(names: Sequence[str], name: str) -> int:
    if name not in names:
        raise ModelError(f"no class {name!r}{nearest(name, names)}")
    return names.index(name)


def _class_results(
    labels: NDArray[np.int64], told: NDArray[np.int64], names: Sequence[str]
) -> Iterator[ClassResult]:
    for number, name in enumerate(names):
        own, answers = labels == number, told == number
        yield _class_result(name, int((own & answers).sum()), int(own.sum()), int(answers.sum()))


def _class_result(name: str, right: int, count: int, told: int = 0) -> ClassResult:
    recall, interval = (right / count, wilson(right, count)) if count else (None, None)
    return ClassResult(name, count, recall, interval, right / told if told else None)


def _positive(
    request: EvaluationRequest, scores: NDArray[np.float64], positive: NDArray[np.bool_], threshold: float
) -> Positive:
    """Return the operating points of a score on whole examples."""
    if positive.all() or not positive.any():
        which = "all" if positive.any() else "none"
        raise ModelError(f"{which} of the examples are of {', '.join(request.positive)}: both kinds are needed")
    target, most = None, float(np.isfinite(scores[positive]).mean())
    if request.target_recall is not None and np.isfinite(
        least := threshold_for(scores[positive], request.target_recall)
    ):
        target = share_point(scores, positive, least)
    area = roc_area(scores[~positive].astype(np.float32), scores[positive].astype(np.float32))
    at_manifest = share_point(scores, positive, threshold)
    return Positive(request.positive, int(positive.sum()), area, at_manifest, target, most)


def _whole_pictures(
    model: Model, session: Session, examples: Examples, request: EvaluationRequest, progress: Progress
) -> _Pass:
    """Judge pictures, whose folders are positive or not, by their strongest result: anomalies, and detectors."""
    names, labels = examples.names, examples.labels
    assert labels is not None
    if not request.positive:
        raise ModelError(
            "the model tells no classes of whole pictures: --positive says which of these it is to find: "
            f"{', '.join(names[:20])}"
        )
    chosen = [_number(names, name) for name in request.positive]
    found = detections(session, examples, model.manifest, DecodeConfig(score_threshold=_LEAST), progress)
    scores = np.array([max((one.score for one in some), default=-np.inf) for some in found])
    positive, threshold = np.isin(labels, chosen), model.manifest.output.score_threshold
    result = _positive(request, scores, positive, threshold)
    assert result.auroc is not None
    taken = scores >= threshold
    wrong = (
        WrongAnswer(examples.name(at), names[labels[at]], "found" if taken[at] else NOTHING, max(0.0, scores[at]))
        for at in np.flatnonzero(taken != positive).tolist()
    )
    own = [labels == number for number in range(len(names))]
    rows = (
        _class_result(name, int((there & (taken == positive)).sum()), int(there.sum()))
        for name, there in zip(names, own, strict=True)
        if there.any()  # else left out by a limit
    )
    score = Score("top-1", result.auroc, len(examples))
    more = {"classes": tuple(rows), "confusions": (), "positives": (result,), "wrong": worst(wrong)}
    return _evaluation(model, examples, score, "AUROC", **more), score


def _boxes(
    model: Model, session: Session, examples: Examples, request: EvaluationRequest, progress: Progress
) -> _Pass:
    manifest, threshold = model.manifest, model.manifest.output.score_threshold
    found = list(detections(session, examples, manifest, WEAK, progress))
    score, names, averages = average_precision(examples, manifest, found)
    chosen = {_number(names, name) for name in request.positive}
    positives, rows = [], []
    for number, name in enumerate(names):
        matched = match_class(examples, found, number, name)
        count = int(matched.objects.sum())
        if not count:
            if number in chosen:
                raise ModelError(f"{name}: none of the examples has one: nothing can be told about it")
            continue
        point = box_point(matched, threshold)
        rows.append(
            ClassResult(name, count, point.recall, point.recall_interval, point.precision, averages[number])
        )
        if number in chosen:
            positives.append(_box_positive(request, matched, name, point))
    wrong = worst(box_errors(examples, found, names, threshold))
    more = {"classes": tuple(rows), "confusions": (), "positives": tuple(positives), "wrong": wrong}
    return _evaluation(model, examples, score, "AP", **more), score


def match_class(examples: Examples, found: Sequence[Sequence[Detection]], number: int, name: str) -> Found:
    """Match what was found of a class with the objects of it.

    Args:
        examples: with boxes.
        found: detections in each example, whose boxes are fractions of the whole picture.
        number: of the class in the examples.
        name: label of the class.
    """
    scores, hits, pictures, objects = [], [], [], []
    for index, some in enumerate(found):
        truth = examples.truth(index)
        boxes = truth.boxes[truth.classes == number]
        own = [one for one in some if one.label == name]
        own_scores = np.array([one.score for one in own], np.float64)
        hits.append(match(np.array([one.box for one in own], np.float64).reshape(-1, 4), own_scores, boxes) >= 0)
        scores.append(own_scores)
        pictures.append(np.full(len(own), index, np.int64))
        objects.append(len(boxes))
    return Found(
        np.concatenate(scores), np.concatenate(hits), np.concatenate(pictures), np.array(objects, np.int64)
    )


def _box_positive(request: EvaluationRequest, matched: Found, name: str, point: OperatingPoint) -> Positive:
    most, target = float(matched.hits.sum() / matched.objects.sum()), None
    if request.target_recall is not None:
        threshold = box_threshold_for(matched, request.target_recall)
        target = box_point(matched, threshold) if np.isfinite(threshold) else None
    return Positive((name,), int(matched.objects.sum()), None, point, target, most)


def missed_targets(evaluation: Evaluation, target: float | None) -> list[str]:
    """Return for each class whose target cannot be reached how near it came, a line each."""
    missed = (one for one in evaluation.positives if target is not None and one.at_target is None)
    return [
        f"{', '.join(one.names)}: no threshold finds {target:.1%} of {plural(one.count, 'object')}; the most is "
        f"{one.most:.1%}"
        for one in missed
    ]
