"""What is wrong with `[streams.NAME.inspection]`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from agent.board.gpio import check_installed
from agent.compute.manifest import Model
from agent.config import StreamConfig
from agent.config.features import InspectionConfig
from agent.daemon.parts import Step
from agent.errors import ConfigError
from agent.text import plural

_SIDE_MIN = 0.01
"""Least side of a region or a crop, as a share of the picture."""


def steps(name: str, config: StreamConfig) -> Iterator[Step]:
    """Yield the checks that need no model."""
    assert config.inspection is not None
    yield ("inspection",), partial(check_inspection, config.inspection, config.capture.max_fps)


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
    check_labels(inspection, labels, threshold, tells_classes=output.decoder == "classify")


def check_inspection(config: InspectionConfig, max_fps: float = 0.0) -> None:
    """Refuse keys that contradict each other.

    Args:
        config: to check.
        max_fps: most pictures a second that are processed; 0: all.

    Raises:
        ConfigError: names the key.
    """
    for text in _contradictions(config, max_fps):
        raise ConfigError(f"inspection.{text}")


def _contradictions(config: InspectionConfig, max_fps: float) -> Iterator[str]:
    if (config.trigger == "region") != (config.region is not None):
        yield 'region: trigger = "region" needs it, and no other trigger has it'
    crop = config.crop
    for key, box in (("crop", crop), ("region", config.region or crop)):
        if not (box[2] - box[0] >= _SIDE_MIN and box[3] - box[1] >= _SIDE_MIN):
            yield f"{key}: expected left, top, right, bottom with sides of {_SIDE_MIN:g} or more, got {list(box)}"
    inner = config.region or crop
    if not (crop[0] <= inner[0] and crop[1] <= inner[1] and inner[2] <= crop[2] and inner[3] <= crop[3]):
        yield f"region: {list(inner)} reaches out of `crop`, {list(crop)}: a part must be seen there"
    if config.trigger == "every" and (config.views > 1 or config.delay_s):
        yield 'views, delay_s: with trigger = "every" a part is one picture; name another trigger'
    if config.reject and config.reject == config.trigger:
        yield f"reject: {config.reject} is the trigger's pin; name another"
    if both := set(config.ng_labels) & set(config.ok_labels):
        yield f"ng_labels: {min(both)!r} is in ok_labels as well"
    if 0.0 < config.reject_after_s < config.deadline_s:
        yield (
            f"reject_after_s: {config.reject_after_s:g} s is before the deadline of the verdict, deadline_s = "
            f"{config.deadline_s:g}: a part that is still judged could not be rejected"
        )
    every_s = max(config.view_every_s, 1.0 / max_fps if max_fps else 0.0)
    least = config.delay_s + (config.views - 1) * every_s
    if least >= config.deadline_s:
        yield (
            f"deadline_s: {plural(config.views, 'picture')} with delay_s, view_every_s and max_fps take "
            f"{least:g} s at least, and the verdict is due after {config.deadline_s:g} s"
        )


def check_labels(
    config: InspectionConfig, labels: Sequence[str], threshold: float, *, tells_classes: bool
) -> None:
    """Refuse labels and scores that do not fit the model.

    Args:
        config: to check.
        labels: that the model gives; empty: not known.
        threshold: least score that it gives, after the stream's own.
        tells_classes: it gives a class for each picture, also for good parts.

    Raises:
        ConfigError: names the key.
    """
    known = ", ".join(labels[:20])
    if threshold > config.ng_score:
        raise ConfigError(
            f"inspection.ng_score: {config.ng_score:g} is below the least score that the model gives, "
            f"{threshold:g} (decode.score_threshold, or the manifest's): defects would be missed"
        )
    if tells_classes and not (config.ok_labels or config.ng_labels):
        raise ConfigError(
            f"inspection.ok_labels: the model tells each picture's class: name those of good parts, of {known}"
        )
    for label in (*config.ng_labels, *config.ok_labels):
        if labels and label not in labels:
            raise ConfigError(f"inspection: the model never finds {label!r}; it knows: {known}")
