"""Choose the operating point of a detector for screening, on labelled pictures that it has not learned from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from agent.compute.manifest import Model
from agent.errors import ModelError
from agent.features.screening.rules import (
    Expectation,
    PictureLimits,
    PictureQuality,
    ScoreCalibration,
    ScreeningPoint,
)
from agent.features.screening.screener import LEAST, Screener, manifest_sha256
from agent.optimise.data import Examples
from agent.optimise.evaluate import wilson
from agent.optimise.evaluation.model import match_class
from agent.optimise.evaluation.operating import FROC_RATES, Found, box_point, box_threshold_for, froc
from agent.optimise.logistic import calibration_error, fit, held_out
from agent.text import plural

OVERLAP = 0.2
FALSE_POSITIVES = 0.5
_DOUBT = 4.0
"""False positives a picture from which a person need not look, relative to those of a finding."""
_FEWEST = 20
_PRIOR = 1e-3
_LESS, _MARGIN = 0.5, 30.0
"""Share of the least sharpness and colour, and margin of the brightness, that other pictures may have."""
_ANY = (0.0, 1e6)
_SAMPLES = 1000
Floats = NDArray[np.float64]


def choose_point(
    model: Model,
    screener: Screener,
    examples: Examples,
    label: str,
    false_positives: float = FALSE_POSITIVES,
    sensitivity: float | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[ScreeningPoint, Sequence[str]]:
    """Choose the operating point of a model; return doubts, too.

    Args:
        model: that the screener has open.
        screener: looks at the pictures as it will at others.
        examples: pictures with boxes that the model has not learned from.
        label: what is looked for.
        false_positives: most for each picture.
        sensitivity: instead: least share of the objects that has to be found, 0..1; None: not asked for.
        progress: called with the number of pictures that are done.

    Raises:
        ModelError: there are too few pictures or objects, or no threshold gives what is asked for.
    """
    if label not in examples.names:
        raise ModelError(f"{examples.description}: has no class {label!r}")
    limits, looked = _limits(examples), []
    qualities = []
    for index in range(len(examples)):
        picture = examples.picture(index)
        look = screener.look(picture, limits, OVERLAP)
        looked.append(look.found)
        qualities.append(look.quality)
        progress(index + 1)
    found = match_class(examples, looked, examples.names.index(label), label)
    _check(found, label)
    threshold = _floored(_threshold(found, false_positives, sensitivity))
    at = box_point(found, threshold)
    rate = max(at.false_alarms, 1 / len(examples))
    doubt = min(threshold, _floored(threshold_at(found, _DOUBT * rate, LEAST)))
    spread = recall_interval(found, threshold)
    expected = Expectation(
        round(at.recall, 4),
        (round(spread[0], 4), round(spread[1], 4)),
        round(at.false_alarms, 4),
        len(examples),
        int(found.objects.sum()),
        tuple((rate, round(share, 4)) for rate, share in zip(FROC_RATES, froc(found), strict=True)),
    )
    point = ScreeningPoint(
        model.path,
        model.sha256,
        manifest_sha256(model),
        label,
        threshold,
        doubt,
        OVERLAP,
        calibrate(found),
        expected,
        _with_quality(limits, qualities),
    )
    return point, _remarks(found, examples)


def recall_interval(found: Found, threshold: float) -> tuple[float, float]:
    """Return the interval of 95 % of the share of objects that a threshold finds: by bootstrap over pictures.

    Where all or no objects are found, which every sample repeats, it is Wilson's.
    """
    taken = found.scores >= threshold
    hits = np.bincount(found.pictures[taken & found.hits], minlength=len(found.objects))
    total, right = int(found.objects.sum()), int(hits.sum())
    if right in (0, total):
        return wilson(right, total)
    random, shares = np.random.default_rng(0), []
    for _ in range(_SAMPLES):
        drawn = random.integers(0, len(hits), len(hits))
        if objects := int(found.objects[drawn].sum()):
            shares.append(hits[drawn].sum() / objects)
    low, high = np.percentile(shares, (2.5, 97.5))
    return float(low), float(high)


def _floored(score: float) -> float:
    """Return a score with few digits, not above it."""
    return float(np.floor(score * 1e6) / 1e6)


def _limits(examples: Examples) -> PictureLimits:
    """Return the usual size of the pictures; they need not all have it."""
    sizes = [examples.picture(index).shape[:2] for index in range(len(examples))]
    height, width = (int(np.median([size[axis] for size in sizes])) for axis in (0, 1))
    return PictureLimits(height, width, _ANY, _ANY, _ANY)


def _with_quality(limits: PictureLimits, qualities: Sequence[PictureQuality]) -> PictureLimits:
    sharp, bright, colour = (np.array(one, np.float64) for one in zip(*qualities, strict=True))
    return PictureLimits(
        limits.height,
        limits.width,
        _range(_LESS * sharp.min(), sharp.max() / _LESS, 6),
        _range(max(0.0, bright.min() - _MARGIN), bright.max() + _MARGIN, 1),
        _range(_LESS * colour.min(), max(colour.max() / _LESS, colour.max() + _MARGIN), 2),
    )


def _range(low: float, high: float, digits: int) -> tuple[float, float]:
    return round(float(low), digits), round(float(high), digits)


def _check(found: Found, label: str) -> None:
    objects = int(found.objects.sum())
    if len(found.objects) < _FEWEST or objects < _FEWEST:
        told = f"{plural(len(found.objects), 'picture')} with {plural(objects, 'object')} of {label!r}"
        raise ModelError(f"{told}: an operating point needs {_FEWEST} of both at least, and hundreds to be sure")
    if not found.hits.any():
        raise ModelError(f"the model finds no {label!r} in these pictures: nothing can be chosen")


def _threshold(found: Found, false_positives: float, sensitivity: float | None) -> float:
    if sensitivity is None:
        return threshold_at(found, false_positives)
    threshold = box_threshold_for(found, sensitivity)
    if not np.isfinite(threshold):
        most = found.hits.sum() / found.objects.sum()
        raise ModelError(f"no threshold finds {sensitivity:.1%} of the objects; the most is {most:.1%}")
    return threshold


def threshold_at(found: Found, false_positives: float, least: float | None = None) -> float:
    """Return the lowest threshold, the score of a detection, with at most so many false positives a picture.

    If there are no more in all, it is `least`, where that is given.
    """
    wrong = np.sort(found.scores[~found.hits])[::-1]
    allowed = int(false_positives * len(found.objects) + 1e-9)
    if len(wrong) <= allowed and least is not None:
        return least
    above = found.scores[found.scores > wrong[allowed]] if len(wrong) > allowed else found.scores
    return float(above.min()) if len(above) else 1.0


def calibrate(found: Found) -> ScoreCalibration:
    """Fit the probability that a detection is right, as in Platt, Probabilistic Outputs for SVMs (1999).

    The error is measured on pictures that were left out of the fit, a fifth in its turn.
    """
    edge = np.clip(found.scores, 1e-6, 1 - 1e-6)
    inputs = np.stack((np.log(edge / (1 - edge)), np.ones(len(edge))), axis=1)

    def fitted(rows: NDArray[np.bool_]) -> Floats:
        """Return slope and offset, with Platt's targets and a weak prior for a slope of 1."""
        right, wrong = int(found.hits[rows].sum()), int((~found.hits[rows]).sum())
        targets = np.where(found.hits[rows], (right + 1) / (right + 2), 1 / (wrong + 2))
        weights = fit(inputs[rows], targets, np.full(2, _PRIOR * (right + wrong)), np.array([1.0, 0.0]))
        return np.clip(weights, (0.01, -100.0), 100.0)

    slope, offset = fitted(np.ones(len(edge), bool)).tolist()
    error = calibration_error(held_out(inputs, found.pictures, fitted), found.hits)
    return ScoreCalibration(round(slope, 6), round(offset, 6), round(error, 4))


def _remarks(found: Found, examples: Examples) -> Sequence[str]:
    if (found.objects == 0).any():
        return examples.remarks
    return (
        *examples.remarks,
        "every picture has an object: false positives in pictures without any are not known",
    )
