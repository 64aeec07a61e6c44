"""What an operator can set of a stream, and how it is set now."""

from __future__ import annotations

from msgspec import Struct

from agent.config import StreamConfig
from agent.errors import ModelError
from agent.library import open_manifest
from agent.manifest import AUTO, Manifest


class Settings(Struct, frozen=True):
    """Of one stream.

    Attributes:
        enabled: whether it is to run.
        threshold: least score of a detection; None: the model cannot be opened, or not yet, and nothing tells it.
        rung: its name, or `auto` while the model climbs; empty: the model cannot be opened.
        rungs: that may be set, `auto` among them where the model can climb.
        zones: whether each is on, by name.
        pictures: whether it sees, and has snapshots.
    """

    enabled: bool
    threshold: float | None
    rung: str
    rungs: tuple[str, ...]
    zones: dict[str, bool]
    pictures: bool

    def states(self) -> dict[str, str]:
        """Payload of `state/<what>` by `what`."""
        states = {"enabled": _switch(self.enabled)}
        if self.threshold is not None:
            states["threshold"] = f"{self.threshold:.6g}"
        if self.rung:
            states["rung"] = self.rung
        return states | {f"zone/{name}": _switch(on) for name, on in self.zones.items()}


def settings_of(config: StreamConfig) -> Settings:
    """Those of a stream with this configuration. The runtime is not asked about its model: that may take long."""
    zones = {zone.name: zone.enabled for zone in config.zones}
    try:
        manifest = open_manifest(config.model, wait_s=0.0)
        climbs = bool(manifest.climbed(config.rung))
        rung = AUTO if climbs else manifest.rung(config.rung).name
    except ModelError:
        return Settings(config.enabled, config.decode.score_threshold, config.rung, (), zones, True)
    wish, usual = config.decode.score_threshold, manifest.output.score_threshold
    threshold = usual if wish is None else wish
    pictures = manifest.audio is None
    return Settings(config.enabled, threshold, rung, _rungs(manifest), zones, pictures)


def _rungs(manifest: Manifest) -> tuple[str, ...]:
    """Pictures climb sizes, which stand alone; sound climbs depths, which go on from each other."""
    names = tuple(rung.name for rung in manifest.rungs)
    depths = any(rung.after for rung in manifest.rungs)
    return (AUTO, *names) if manifest.ladder and depths is (manifest.audio is not None) else names


def _switch(on: bool) -> str:
    return "on" if on else "off"
