"""What is wrong with `[fusion]` and `[text]`, and what their events need, opened."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from msgspec import Struct

from agent.comms.messages import ModelId
from agent.comms.topics import TEXT
from agent.config import Config, FusionConfig
from agent.errors import ConfigError, VedetteError
from agent.features.fusion.expression import EvidenceSource, LogOdds, Rule, read_calibration
from agent.features.fusion.rules import Condition
from agent.models.files import read
from agent.models.findings import ModelReader, all_findings

_CALIBRATION_MAX = 65536
"""Largest calibration file, bytes."""
_KINDS = {"things": "pictures", "verdicts": "pictures", "sounds": "sounds", "words": "words", "numbers": "none"}


def device_problems(config: Config, read_models: ModelReader) -> Iterator[ConfigError]:
    """Yield the first thing that keeps the fused events from running."""
    try:
        plan_fusion(config, read_models)
    except ConfigError as error:
        yield error


def evidence_sources(config: Config, read_models: ModelReader = all_findings) -> dict[str, EvidenceSource]:
    """Return what each stream and text can give."""
    sources = {}
    for name, known in read_models(config.streams).items():
        stream = config.streams[name]
        kind = "none" if stream.inspection is not None else _KINDS.get(known.kind or "", "unknown")
        learns = kind == "pictures" and not stream.shows_part
        sources[name] = EvidenceSource(kind, known.labels, learns)  # type: ignore[arg-type]
    texts = dict.fromkeys(config.text, EvidenceSource("text"))
    return {**sources, **texts}


class FusedEvent(Struct, frozen=True):
    """A configured fused event, checked.

    Attributes:
        config: of it.
        condition: of it.
        model: what identifies the condition in messages.
    """

    config: FusionConfig
    condition: Condition
    model: ModelId


def open_fused(config: FusionConfig, sources: Mapping[str, EvidenceSource]) -> FusedEvent:
    """Open what a fused event needs.

    Args:
        config: of the event.
        sources: see `evidence_sources`.

    Raises:
        ConfigError: it cannot be used; `keys` has the key.
    """
    if bool(config.when) is bool(config.calibration):
        raise ConfigError("expected one of `when` and `calibration`", keys=("when",))
    if config.late_s > config.window_s:
        text = f"{config.late_s:g} is more than window_s, {config.window_s:g}"
        raise ConfigError(f"`late_s`: {text}", keys=("late_s",))
    key = "when" if config.when else "calibration"
    try:
        if config.when:
            rule = Rule(config.when, sources)
            return FusedEvent(config, rule, ModelId("rule", _digest(config.when.encode())))
        return _open_calibrated(config, sources)
    except (VedetteError, OSError) as error:
        where = f"{config.calibration}: " if config.calibration and config.calibration not in str(error) else ""
        raise ConfigError(f"`{key}`: {where}{error}", keys=(key,)) from error


def _open_calibrated(config: FusionConfig, sources: Mapping[str, EvidenceSource]) -> FusedEvent:
    content = read(Path(config.calibration).expanduser(), _CALIBRATION_MAX)
    calibration = read_calibration(content)
    if calibration.window_s != config.window_s:
        raise ConfigError(
            f"was fitted with window_s = {calibration.window_s:g}, and {config.window_s:g} is configured: "
            "calibrate again, or use that window"
        )
    odds = LogOdds(calibration, config.threshold, sources)
    return FusedEvent(config, odds, ModelId("log-odds", _digest(content)))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


class FusionPlan(Struct, frozen=True):
    """Fused events and texts to run, by name."""

    fused: dict[str, FusedEvent]
    texts: tuple[str, ...]


def plan_fusion(config: Config, read_models: ModelReader = all_findings) -> FusionPlan:
    """Check `[fusion]` and `[text]`, and open what they need.

    Args:
        config: to check.
        read_models: reads the streams' models.

    Raises:
        ConfigError: the first thing that cannot be used; `keys` has its key.
    """
    _check_names(config)
    sources = evidence_sources(config, read_models) if config.fusion else {}
    fused = {}
    for name, one in config.fusion.items():
        try:
            fused[name] = open_fused(one, sources)
        except ConfigError as error:
            raise ConfigError(f"fusion {name}: {error}", keys=("fusion", name, *error.keys)) from error
    return FusionPlan(fused, tuple(config.text) if fused else ())


def _check_names(config: Config) -> None:
    for table in ("text", "fusion"):
        taken = {**config.streams, **(config.text if table == "fusion" else {})}
        for name in getattr(config, table):
            if name in taken or name in ("cmd", TEXT):
                what = "is taken by a stream, a text or a topic; choose another name"
                raise ConfigError(f"{name!r} {what}", keys=(table, name))
    if config.text and TEXT in config.streams:
        raise ConfigError(f"beside [text] no stream can be called {TEXT!r}", keys=("streams", TEXT))
