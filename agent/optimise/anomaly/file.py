"""Turns a backbone and pictures of sound parts into a model of anomalies, for `vedette optimise anomaly`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from msgspec import Struct

from agent.compute.decode.anomaly import score_of
from agent.compute.manifest import Manifest, Model, OutputManifest
from agent.errors import ModelError
from agent.optimise.anomaly.head import add_memory, features_of
from agent.optimise.anomaly.memory import (
    TOP,
    Floats,
    PatchMemory,
    learn,
    limit_of,
    picture_score,
    roc_area,
    some_places,
)
from agent.optimise.anomaly.sheet import SheetPart, sheet_png
from agent.optimise.data import Examples
from agent.optimise.evaluate import open_content, outputs_of, time_ms
from agent.optimise.report import OptimiseReport, StepResult, describe_machine
from agent.text import plural

Progress = Callable[[str, float], None]
"""Called with what is done, and its share, 0..1."""
_HELD_OUT = 3
"""One of so many sound parts is for the limit."""
_SHOWN = 5
_DIFFERENCE = 1e-2
"""Most by which the file's distances may differ from those that were learned from, as a share of the largest."""
_MORE = 0.05
"""Share of false alarms that is reported beside the one that was asked for."""
_SCARCE = 30
_BLIND = 0.7


class AnomalySettings(Struct, frozen=True):
    """Settings of `make_anomaly_model`.

    Attributes:
        places: kept in memory.
        false_alarms: share of sound parts that may be reported, 0..1.
        label: of what differs.
    """

    places: int = 1024
    false_alarms: float = 0.01
    label: str = "defect"


DEFAULTS = AnomalySettings()


class AnomalyFile(Struct, frozen=True):
    """Result of `make_anomaly_model`.

    Attributes:
        content: of the file.
        keys: of its manifest that differ from the backbone's.
        report: with its figures.
        sheet: PNG of sound parts that were not learned from, and of faulty ones.
    """

    content: bytes
    keys: dict[str, Any]
    report: OptimiseReport
    sheet: bytes


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
    normal = _maps(content, manifest, sound.take(held), "setting the limit", progress)
    scores = _scores(normal)
    limit = limit_of(scores, settings.false_alarms)
    faults = _maps(content, manifest, faulty, "looking at faulty parts", progress) if faulty else []
    report = _report(model, content, sound, faulty, scores, _scores(faults), limit, settings, command)
    places = limit_of(np.array([one.max() for one in normal], np.float32), settings.false_alarms)
    keys = _keys(model.manifest, settings.label, limit, max(limit, places))
    sheet = _sheet((sound.take(held), normal), (faulty, faults), (limit, max(limit, places)))
    return AnomalyFile(content, keys, report, sheet)


def _learned(model: Model, examples: Examples, progress: Progress) -> tuple[Floats, Floats]:
    """Return features of places of all pictures, float32 [n, C], and those of the first picture, [1, H, W, C]."""
    random, rows, first, is_same = np.random.default_rng(0), [], None, True
    for features in _outputs(model.content, model.manifest, examples, "learning", progress):
        first = features if first is None else first
        is_same = is_same and np.array_equal(first, features)
        rows.append(some_places(features, len(examples), random))
    assert first is not None
    if is_same:
        raise ModelError(f"{examples.description}: all pictures are the same, so that nothing can be learned")
    return np.concatenate(rows), first[None]


def _maps(content: bytes, manifest: Manifest, examples: Examples, what: str, progress: Progress) -> list[Floats]:
    """Return the squared distances of the places of each picture, float32 [H, W]."""
    return [found[..., 0] for found in _outputs(content, manifest, examples, what, progress)]


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


def _scores(maps: Sequence[Floats]) -> Floats:
    return np.array([picture_score(one) for one in maps], np.float32)


def _verify(
    content: bytes, manifest: Manifest, examples: Examples, features: Floats, memory: PatchMemory
) -> None:
    """Check that the file computes the distances to the memory."""
    wanted = memory.distances(features)
    found = np.stack(_maps(content, manifest, examples, "checking", _quiet))
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


def _keys(before: Manifest, label: str, limit: float, places: float) -> dict[str, Any]:
    pixels = before.input
    return {
        "description": f"differences from sound parts, learned on features of {before.name}",
        "input": {
            "order": pixels.order,
            "resize": pixels.resize,
            "mean": list(pixels.mean),
            "std": list(pixels.std),
        },
        "output": {
            "decoder": "anomaly",
            "labels": [label],
            "score_threshold": 0.5,
            "options": {"limit": float(f"{limit:.6g}"), "place_limit": float(f"{places:.6g}"), "top": TOP},
        },
    }


def _report(
    model: Model,
    content: bytes,
    sound: Examples,
    faulty: Examples | None,
    normal: Floats,
    faults: Floats,
    limit: float,
    settings: AnomalySettings,
    command: str,
) -> OptimiseReport:
    before, after = time_ms([model.content, content])
    area = roc_area(normal, faults) if len(faults) else None
    notes = [f"{len(sound) - len(normal)} sound parts in memory, {len(normal)} others set the limit"]
    notes.append(f"reported: {int((normal > limit).sum())} of these {len(normal)}")
    if len(faults):
        more = limit_of(normal, _MORE)
        notes.append(f"reported: {int((faults > limit).sum())} of {len(faults)} faulty parts")
        notes.append(f"with {_MORE:.0%} of false alarms: {int((faults > more).sum())} of {len(faults)}")
    described = sound.description + (f"; faulty: {faulty.description}" if faulty else "")
    return OptimiseReport(
        step="anomaly",
        model=model.path,
        sha256_before=hashlib.sha256(model.content).hexdigest(),
        sha256_after=hashlib.sha256(content).hexdigest(),
        machine=describe_machine(),
        command=command,
        examples=described,
        steps=(
            StepResult("backbone", size=len(model.content), latency_ms=before),
            StepResult(
                "anomaly",
                "AUROC" if area is not None else "",
                area,
                size=len(content),
                latency_ms=after,
                notes=tuple(notes),
            ),
        ),
        remarks=tuple(_remarks(len(sound), normal, area, settings)),
    )


def _remarks(count: int, normal: Floats, area: float | None, settings: AnomalySettings) -> list[str]:
    remarks = []
    if count < _SCARCE:
        remarks.append(f"{plural(count, 'sound part')}: with fewer than {_SCARCE} much that is normal is unknown")
    least = 1.0 / (len(normal) + 1)
    if settings.false_alarms < least:
        remarks.append(
            f"{plural(len(normal), 'part')} for the limit cannot tell {settings.false_alarms:.2%} of false "
            f"alarms from {least:.2%}: the limit is the largest of them"
        )
    if area is None:
        remarks.append("without --faulty nothing tells whether faults are found")
    elif area < _BLIND:
        remarks.append(
            f"AUROC {area:.2f}: this backbone hardly sees these faults: show the part larger and in even light, "
            "or take a model that is trained on faults"
        )
    return remarks


def _sheet(
    normal: tuple[Examples, Sequence[Floats]],
    faults: tuple[Examples | None, Sequence[Floats]],
    limits: tuple[float, float],
) -> bytes:
    """Return the picture; the limits are that of a part and that of a place."""
    rows = [_row(*normal, limits, "sound", most=True)]
    if faults[0] is not None:
        rows += [_row(faults[0], faults[1], limits, "faulty", most=most) for most in (True, False)]
    return sheet_png(rows)


def _row(
    examples: Examples, maps: Sequence[Floats], limits: tuple[float, float], what: str, *, most: bool
) -> list[SheetPart]:
    """Return the parts that differ most, or least."""
    order = np.argsort(_scores(maps))
    chosen = order[::-1][:_SHOWN] if most else order[:_SHOWN]
    parts = []
    for index in chosen:
        distances, picture = maps[int(index)], examples.picture(int(index))
        caption = f"{what} {score_of(picture_score(distances) / limits[0]):.2f}"
        if examples.order == "rgb":
            picture = np.ascontiguousarray(picture[..., ::-1])
        parts.append(SheetPart(picture, distances / limits[1], caption))
    return parts
