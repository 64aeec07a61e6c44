"""Turns a backbone and pictures of sound parts into a model of anomalies, for `vedette optimise anomaly`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from agent.compute.decode.maps import TOP, picture_score
from agent.compute.manifest import Manifest, Model, OutputManifest
from agent.errors import ModelError
from agent.optimise.anomaly.memory import (
    Floats,
    PatchMemory,
    add_memory,
    features_of,
    learn,
    limit_of,
    roc_area,
    some_places,
)
from agent.optimise.data import Examples
from agent.optimise.evaluate import open_content, outputs_of, time_ms
from agent.optimise.report import OptimiseReport, StepResult, describe_machine
from agent.text import plural

Progress = Callable[[str, float], None]
"""Called with what is done, and its share, 0..1."""
_HELD_OUT = 3
"""One of so many sound parts is for the limit."""
_DIFFERENCE = 1e-2
"""Most by which the file's distances may differ from those that were learned from, as a share of the largest."""
_SCARCE = 30
_BLIND = 0.7
_COPIED = 1e-2
"""Squared distance, in standard deviations of a feature, below which a limit is that of copies."""


class AnomalySettings(Struct, frozen=True):
    """Settings of `make_anomaly_model`.

    Attributes:
        name: of the new model; empty: that of the backbone.
        places: kept in memory.
        false_alarms: share of sound parts that may be reported, 0..1.
        label: of what differs.
    """

    name: str = ""
    places: int = 1024
    false_alarms: float = 0.05
    label: str = "defect"


DEFAULTS = AnomalySettings()


class Limits(NamedTuple):
    """Squared distances from which a part is reported, and from which a place of it is marked."""

    part: float
    place: float


class _Parts(NamedTuple):
    """Parts, and the squared distances of their places, float32 [H, W] each."""

    examples: Examples
    maps: list[Floats]

    @property
    def scores(self) -> Floats:
        """Return the squared distance that each part is judged by, float32 [n]."""
        return np.array([picture_score(one) for one in self.maps], np.float32)


class _Judged(NamedTuple):
    """Measured parts: the number in memory, sound ones that are not, faulty ones, and the limits."""

    learned: int
    normal: _Parts
    faulty: _Parts | None
    limits: Limits
    settings: AnomalySettings


class AnomalyFile(Struct, frozen=True):
    """Result of `make_anomaly_model`.

    Attributes:
        content: of the file.
        keys: of its manifest that differ from the backbone's.
        report: with its figures.
    """

    content: bytes
    keys: dict[str, Any]
    report: OptimiseReport


def make_anomaly_model(
    model: Model,
    sound: Examples,
    faulty: Examples | None = None,
    settings: AnomalySettings = DEFAULTS,
    *,
    command: str = "",
    progress: Progress | None = None,
) -> AnomalyFile:
    """Learn what sound parts look like.

    Two of three sound parts go into memory, the others set the limit. Faulty ones decide nothing.

    Args:
        model: a backbone of one picture, float or INT8, whose output are features of places.
        sound: pictures of sound parts.
        faulty: pictures of faulty parts, for the report.
        settings: see there.
        command: for the report.
        progress: see `Progress`.

    Raises:
        ModelError: the model is no backbone, or cannot be run; or all pictures are the same.
    """
    features_of(model.content)
    progress = progress or _quiet
    order = np.random.default_rng(0).permutation(len(sound))
    held, shown = order[::_HELD_OUT], np.setdiff1d(order, order[::_HELD_OUT])
    rows, features = _learned(model, sound.take(shown), progress)
    progress("choosing the memory", 0.0)
    memory = learn(rows, settings.places)
    content = add_memory(model.content, memory)
    manifest = _manifest(model.manifest, content, settings.label)
    _verify(content, manifest, sound.take(shown[: len(features)]), features, memory)
    normal = _parts(content, manifest, sound.take(held), "setting the limit", progress)
    judged = _Judged(
        len(shown),
        normal,
        _parts(content, manifest, faulty, "looking at faulty parts", progress) if faulty else None,
        _limits(normal, settings.false_alarms),
        settings,
    )
    report = _report(model, content, judged, command)
    return AnomalyFile(content, _keys(model.manifest, judged), report)


def _limits(normal: _Parts, false_alarms: float) -> Limits:
    """Return the limits. Raises ModelError if the parts are copies of those in memory."""
    part = limit_of(normal.scores, false_alarms)
    if part < _COPIED:
        raise ModelError(
            f"{normal.examples.description}: those for the limit are copies of those in memory: give pictures of "
            "different parts"
        )
    farthest = np.array([one.max() for one in normal.maps], np.float32)
    return Limits(part, max(part, limit_of(farthest, false_alarms)))


def _learned(model: Model, examples: Examples, progress: Progress) -> tuple[Floats, Floats]:
    """Return features of places of all pictures, float32 [n, C], and those of the first picture, [1, H, W, C]."""
    random, rows, first = np.random.default_rng(0), [], None
    for features in _outputs(model.content, model.manifest, examples, "learning", progress):
        first = features if first is None else first
        rows.append(some_places(features, len(examples), random))
    assert first is not None
    return np.concatenate(rows), first[None]


def _parts(content: bytes, manifest: Manifest, examples: Examples, what: str, progress: Progress) -> _Parts:
    """Return parts with the distances that the new file gives."""
    return _Parts(examples, [one[..., 0] for one in _outputs(content, manifest, examples, what, progress)])


def _outputs(
    content: bytes, manifest: Manifest, examples: Examples, what: str, progress: Progress
) -> Iterator[Floats]:
    """Yield the output for each picture, float32 [H, W, channels]."""
    with open_content(content, manifest) as session:
        for number, outputs in enumerate(outputs_of(session, examples), 1):
            values = np.asarray(outputs[0][0], np.float32)
            if not np.isfinite(values).all():
                raise ModelError(f"{examples.description}: the output is not finite for picture {number}")
            progress(what, number / len(examples))
            yield values


def _quiet(what: str, share: float) -> None:
    """Report no progress."""


def _verify(
    content: bytes, manifest: Manifest, examples: Examples, features: Floats, memory: PatchMemory
) -> None:
    """Check that the file computes the distances to the memory."""
    wanted = memory.distances(features)
    found = np.stack(_parts(content, manifest, examples, "checking", _quiet).maps)
    scale = float(np.square((features - memory.mean) / memory.std).sum(-1).max())
    if np.abs(found - wanted).max() > _DIFFERENCE * scale:
        raise ModelError("the file's distances are not those that were learned: report this as a defect")


def _manifest(before: Manifest, content: bytes, label: str) -> Manifest:
    """Return a manifest with which the new file can be run."""
    return Manifest(
        name=before.name,
        sha256=hashlib.sha256(content).hexdigest(),
        input=before.input,
        output=OutputManifest("anomaly", labels=(label,), options={"limit": 1.0}),
    )


def _keys(before: Manifest, judged: _Judged) -> dict[str, Any]:
    """Return what the new manifest states."""
    pixels, (part, place) = before.input, judged.limits
    options = {"limit": float(f"{part:.6g}"), "place_limit": float(f"{place:.6g}"), "top": TOP}
    return {
        "name": judged.settings.name or before.name,
        "description": f"differences from sound parts, learned on features of {before.name}",
        "input": {
            "order": pixels.order,
            "resize": pixels.resize,
            "mean": list(pixels.mean),
            "std": list(pixels.std),
        },
        "output": {
            "decoder": "anomaly",
            "labels": [judged.settings.label],
            "score_threshold": 0.5,
            "options": options,
        },
    }


def _report(model: Model, content: bytes, judged: _Judged, command: str) -> OptimiseReport:
    before, after = time_ms([model.content, content])
    faulty = judged.faulty
    area = roc_area(judged.normal.scores, faulty.scores) if faulty else None
    step = StepResult("anomaly", "AUROC" if faulty else "", area, size=len(content), latency_ms=after)
    sets = [judged.normal.examples, *([faulty.examples] if faulty else [])]
    examples = [sets[0].description, *(f"faulty: {one.description}" for one in sets[1:])]
    return OptimiseReport(
        step="anomaly",
        model=model.path,
        sha256_before=hashlib.sha256(model.content).hexdigest(),
        sha256_after=hashlib.sha256(content).hexdigest(),
        machine=describe_machine(),
        command=command,
        examples="; ".join(examples),
        steps=(
            StepResult("backbone", size=len(model.content), latency_ms=before),
            replace(step, notes=tuple(_notes(judged))),
        ),
        remarks=(*_remarks(judged, area), *(line for one in sets for line in one.remarks)),
    )


def _notes(judged: _Judged) -> Iterator[str]:
    """Yield how many parts were learned from, and how many are reported."""
    limit, normal = judged.limits.part, judged.normal.scores
    yield f"{judged.learned} sound parts in memory, {len(normal)} others set the limit"
    yield f"reported: {int((normal > limit).sum())} of these {len(normal)}"
    if judged.faulty is None:
        return
    faulty = judged.faulty.scores
    yield f"reported: {int((faulty > limit).sum())} of {len(faulty)} faulty parts"


def _remarks(judged: _Judged, area: float | None) -> Iterator[str]:
    """Yield doubts: few parts, a limit that cannot be told, faults that are not seen."""
    count, false_alarms = len(judged.normal.maps), judged.settings.false_alarms
    if (whole := judged.learned + count) < _SCARCE:
        yield f"{plural(whole, 'sound part')}: with fewer than {_SCARCE} much that is normal is unknown"
    if false_alarms < (least := 1.0 / (count + 1)):
        told = plural(count, "part")
        yield f"{told} for the limit cannot tell {false_alarms:.2%} of false alarms from {least:.2%}"
    if judged.faulty is None or area is None:
        yield "without --faulty nothing tells whether faults are found: give some, even few"
        return
    if area < _BLIND:
        yield (
            f"AUROC {area:.2f}: this backbone hardly sees these faults: show the part larger and in even light, "
            "or take a model that is trained on faults"
        )
