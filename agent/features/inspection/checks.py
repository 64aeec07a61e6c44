"""What is wrong with `[streams.NAME.inspection]`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from msgspec import Struct

from agent.board.gpio import check_installed
from agent.compute.manifest import Model
from agent.config import StreamConfig
from agent.config.features import InspectionConfig
from agent.daemon.parts import Step
from agent.errors import ConfigError
from agent.text import plural

_REGION_MIN, _CROP_MIN = 0.01, 0.05
"""Least sides, as shares of the picture."""


def steps(name: str, config: StreamConfig) -> Iterator[Step]:
    """Yield the checks that need no model."""
    assert config.inspection is not None
    yield ("inspection",), partial(check_inspection, config.inspection, InspectedModel())


def check_with_model(name: str, config: StreamConfig, model: Model) -> None:
    """Refuse a model whose results are no verdicts, and tables of tracks. Raises ConfigError."""
    inspection, manifest = config.inspection, model.manifest
    assert inspection is not None
    if manifest.audio is not None:
        raise ConfigError(f"stream {name}: inspection is of pictures, and {config.model} takes sound")
    if manifest.gives_numbers:
        raise ConfigError(f"stream {name}: {config.model} gives numbers, and inspection needs labels with scores")
    for key in ("clips", "zones", "lines", "filters"):
        if getattr(config, key):
            raise ConfigError(
                f"stream {name}: {key} belong to tracks of objects, and inspection has none; "
                f"delete [streams.{name}.{key}]"
            )
    for address in (inspection.trigger, inspection.reject):
        if address.startswith("gpio:"):
            check_installed(address)
    output, asked = manifest.output, config.decode
    threshold = output.score_threshold if asked.score_threshold is None else asked.score_threshold
    labels = asked.labels or (() if manifest.gives_texts else output.labels)
    known = InspectedModel(labels, output.decoder == "classify", threshold)
    check_inspection(inspection, known, config.capture.max_fps)


class InspectedModel(Struct, frozen=True):
    """A model, as far as an inspection depends on it.

    Attributes:
        labels: that it gives; empty: not known.
        tells_classes: it gives a class for each picture, also for good parts.
        threshold: least score that it gives, after the stream's own.
    """

    labels: tuple[str, ...] = ()
    tells_classes: bool = False
    threshold: float = 0.0


def check_inspection(config: InspectionConfig, model: InspectedModel, max_fps: float = 0.0) -> None:
    """Refuse keys that contradict each other or the model.

    Args:
        config: to check.
        model: that judges.
        max_fps: most pictures a second that are processed; 0: all.

    Raises:
        ConfigError: names the key.
    """
    for text in (*_contradictions(config), *_impossible(config, max_fps), *_unfit(config, model)):
        raise ConfigError(text)
    labels = model.labels
    for key in ("ng_labels", "ok_labels"):
        for label in getattr(config, key):
            if labels and label not in labels:
                known = ", ".join(labels[:20])
                raise ConfigError(f"inspection.{key}: the model never finds {label!r}; it knows: {known}")


def _contradictions(config: InspectionConfig) -> Iterator[str]:
    if (config.trigger == "region") != (config.region is not None):
        yield 'inspection.region: trigger = "region" needs it, and no other trigger has it'
    yield from _bad_boxes(config)
    if config.trigger == "every" and (config.views > 1 or config.delay_s):
        key = "views" if config.views > 1 else "delay_s"
        yield f'inspection.{key}: with trigger = "every" a part is one picture; name another trigger'
    if config.reject and config.reject == config.trigger:
        yield f"inspection.reject: {config.reject} is the trigger's pin; name another"
    if both := set(config.ng_labels) & set(config.ok_labels):
        yield f"inspection.ng_labels: {min(both)!r} is in ok_labels as well"


def _bad_boxes(config: InspectionConfig) -> Iterator[str]:
    for key, box, least in (("region", config.region, _REGION_MIN), ("crop", config.crop, _CROP_MIN)):
        if box is None:
            continue
        if not (box[0] < box[2] and box[1] < box[3]):
            yield f"inspection.{key}: expected left < right and top < bottom, got {list(box)}"
        elif min(box[2] - box[0], box[3] - box[1]) < least:
            yield f"inspection.{key}: expected sides of at least {least:g} of the picture, got {list(box)}"
    region, crop = config.region, config.crop
    if region and (region[0] < crop[0] or region[1] < crop[1] or region[2] > crop[2] or region[3] > crop[3]):
        yield f"inspection.region: {list(region)} reaches out of `crop`, {list(crop)}: a part must be seen there"


def _impossible(config: InspectionConfig, max_fps: float) -> Iterator[str]:
    """Yield times that cannot be kept."""
    if 0.0 < config.reject_after_s < config.deadline_s:
        yield (
            f"inspection.reject_after_s: {config.reject_after_s:g} s is before the deadline of the verdict, "
            f"deadline_s = {config.deadline_s:g}: a part that is still judged could not be rejected"
        )
    every_s = max(config.view_every_s, 1.0 / max_fps if max_fps else 0.0)
    least = config.delay_s + (config.views - 1) * every_s
    if least >= config.deadline_s:
        yield (
            f"inspection.deadline_s: {plural(config.views, 'picture')} with delay_s, view_every_s and max_fps "
            f"take {least:g} s at least, and the verdict is due after {config.deadline_s:g} s"
        )


def _unfit(config: InspectionConfig, model: InspectedModel) -> Iterator[str]:
    """Yield what does not fit the model."""
    if model.threshold > config.ng_score:
        yield (
            f"inspection.ng_score: {config.ng_score:g} is below the least score that the model gives, "
            f"{model.threshold:g} (decode.score_threshold, or the manifest's): defects would be missed"
        )
    if model.tells_classes and not (config.ok_labels or config.ng_labels):
        known = ", ".join(model.labels[:20])
        yield f"inspection.ok_labels: the model tells each picture's class: name those of good parts, of {known}"
