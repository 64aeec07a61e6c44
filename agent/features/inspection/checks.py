"""What is wrong with `[streams.NAME.inspection]`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from agent.board.gpio import check_installed
from agent.compute.manifest import Model
from agent.config import StreamConfig
from agent.daemon.parts import Step
from agent.errors import ConfigError
from agent.features.inspection.rules import InspectedModel, check_inspection


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
