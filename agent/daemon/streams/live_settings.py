"""Settings of a stream that change while it runs, without opening its source or model again."""

from __future__ import annotations

from msgspec.structs import replace

from agent.config import PublishConfig, StreamConfig

_SNAPSHOT = tuple(
    key for key in PublishConfig.__struct_fields__ if key.startswith("snapshot_") and key != "snapshot_every_s"
)


def with_live_settings(config: StreamConfig, other: StreamConfig) -> StreamConfig:
    """Return a configuration with the filters, masks, zones, lines and kind of snapshots of another one.

    Lines keep theirs if they have other names, which need other topics.
    """
    same_lines = [line.name for line in config.lines] == [line.name for line in other.lines]
    return replace(
        config,
        filters=other.filters,
        zones=other.zones,
        lines=other.lines if same_lines else config.lines,
        gate=replace(config.gate, masks=other.gate.masks, masks_enabled=other.gate.masks_enabled),
        track=replace(config.track, only_moving=other.track.only_moving),
        publish=replace(config.publish, **{key: getattr(other.publish, key) for key in _SNAPSHOT}),
    )
