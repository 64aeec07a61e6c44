"""Features, which a stream or the device can do without: one row and one folder each.

A row says what a feature is, and when its modules are imported; its folder `agent/features/NAME` has some of

    part.py      its `StreamPart` or `DevicePart`, commands and entities of Home Assistant
    checks.py    what is wrong with its configuration
    models.py    models that it adds to those of a stream
    rules.py     pure decisions

This is the one module of the package that the core imports; see `agent.daemon.parts` for what it does with it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from agent.config import Config, StreamConfig
from agent.config.source_uri import parse
from agent.errors import ConfigError, SourceError

if TYPE_CHECKING:
    from agent.compute.manifest import Manifest


def _adds_none(_: StreamConfig, __: Manifest) -> bool:
    return False


def _never(_: Any) -> bool:
    return False


class Feature(Struct, frozen=True):
    """One row: a feature, and when its modules are imported.

    Attributes:
        name: of its folder.
        when: True for a stream that has a part of it, and entities.
        device: True for a configuration whose device has a part of it; asked at each poll.
        verbs: commands to a stream that it executes.
        device_verbs: commands to the device that it executes.
        adds_models: True for a stream and the manifest of its model to which its module `models` adds others.
        has_checks: its module `checks` checks a stream.
        has_device_checks: its module `checks` checks the tables of the device.
        has_entities: its part gives entities of Home Assistant.
        remembers: it has a part, too, where such a file of the stream is in the folder of the state.
    """

    name: str
    when: Callable[[StreamConfig], bool] = _never
    device: Callable[[Config], bool] = _never
    verbs: tuple[str, ...] = ()
    device_verbs: tuple[str, ...] = ()
    adds_models: Callable[[StreamConfig, Manifest], bool] = _adds_none
    has_checks: bool = False
    has_device_checks: bool = False
    has_entities: bool = False
    remembers: str = ""

    def load(self, module: str) -> ModuleType:
        return import_module(f"agent.features.{self.name}.{module}")

    def check_installed(self) -> None:
        """Raise ConfigError if this installation lacks the feature."""
        if find_spec(f"agent.features.{self.name}") is None:
            raise ConfigError(f"{self.name}: this installation has no agent/features/{self.name}")

    def is_wanted(self, name: str, config: StreamConfig, state: Path | None) -> bool:
        if self.when(config):
            return True
        return bool(self.remembers and state and any(state.glob(self.remembers.format(name))))


def is_watched(config: StreamConfig) -> bool:
    """Return True if a stream's camera, microphone and model are watched."""
    if config.inspection is not None:
        return False
    if config.condition.enabled is not None:
        return config.condition.enabled
    try:
        return parse(config.source).live
    except SourceError:  # reported at its own line; a `when` never raises
        return False


def _has_shadow_order(_: Config) -> bool:
    from agent.storage.state import shadow_order_path

    path = shadow_order_path()
    return path is not None and path.exists()


def _records(config: StreamConfig) -> bool:
    return config.clips is not None and config.inspection is None


FEATURES = (
    # These run more models inside of the perception.
    Feature("chains", adds_models=lambda s, m: bool(m.secondary if s.secondary is None else s.secondary)),
    Feature("verification", adds_models=lambda _, m: m.verification is not None),
    # What perceives is around what is first: chains around vision, an inspection in place of gate and tracks.
    Feature(
        "inspection",
        when=lambda s: s.inspection is not None,
        verbs=("inspect",),
        has_checks=True,
        has_entities=True,
    ),
    # What learns from results comes first, then what keeps the frame, and last what may draw on it.
    Feature(
        "lines", when=lambda s: bool(s.lines), verbs=("reset",), has_entities=True, remembers="lines/{}.json"
    ),
    Feature("condition", when=is_watched, verbs=("accept",), has_entities=True),
    # After `condition`, which reads the model's newest answer: a lesson infers again.
    Feature("teaching", verbs=("teach", "forget"), has_entities=True, remembers="states/{}.*.json"),
    Feature("shadow", device=_has_shadow_order),
    Feature("fusion", device=lambda c: bool(c.fusion or c.text), has_device_checks=True),
    Feature("homeassistant", device=lambda _: True),  # also if it is off: earlier runs have announced
    Feature(
        "clips",
        when=_records,
        device=lambda c: any(s.clips is not None for s in c.streams.values()),
        verbs=("record",),
        has_checks=True,
    ),
    # Last: it draws on a frame that nobody has kept, instead of a copy of 6 MB.
    Feature("snapshots", when=lambda _: True, verbs=("snapshot",), has_entities=True),
    # The device's own, which close after the clips are written.
    Feature("metrics", device=lambda c: c.metrics is not None, device_verbs=("trace",), has_device_checks=True),
    Feature("page", device=lambda c: c.page is not None, has_device_checks=True),
    # It reads the load, and loads what decides at the first sign of trouble.
    Feature("governor", device=lambda _: True),
    # A verb alone.
    Feature("screening"),
)
