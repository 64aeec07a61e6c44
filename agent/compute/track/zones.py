"""Zones: named polygons in the picture, and which of them a box stands in."""

from __future__ import annotations

from collections.abc import Container, Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from agent.config import ZoneConfig
from agent.config.polygon import polygon_problem
from agent.errors import ConfigError
from agent.types import Box

_MARGIN = 0.01
"""Distance outside a zone at which a box leaves it, as a share of the frame; without it borders would flicker."""


class _Zone(Struct, frozen=True):
    """A zone prepared for tests: corners as N×1×2 float32, their bounds, and the labels that count."""

    name: str
    corners: NDArray[np.float32]
    left: float
    top: float
    right: float
    bottom: float
    labels: frozenset[str]


class Zones:
    """The enabled zones of one stream."""

    def __init__(self, zones: Sequence[ZoneConfig]) -> None:
        """Check and prepare the zones. Raises ConfigError as `check_zones`."""
        check_zones(zones)
        self._zones = tuple(_prepare(zone) for zone in zones if zone.enabled)

    def names_at(self, label: str, box: Box | None, held: Container[str] = ()) -> tuple[str, ...]:
        """Return the names of the zones that a box stands in, in config order. The border belongs to the zone.

        Args:
            label: its class; a zone with labels counts only those.
            box: stands where the middle of its lower edge is; None stands nowhere.
            held: zones that it stood in before, which it leaves only at some distance.
        """
        if not self._zones or box is None:
            return ()
        # Imported here: checking a configuration of sound must not load it.
        import cv2

        x, y = _inside((box[0] + box[2]) / 2), _inside(box[3])
        return tuple(
            zone.name
            for zone in self._zones
            if zone.left <= x <= zone.right
            and zone.top <= y <= zone.bottom
            and (not zone.labels or label in zone.labels)
            and cv2.pointPolygonTest(zone.corners, (x, y), True) >= (-_MARGIN if zone.name in held else 0.0)
        )


def describe_zones(zones: Sequence[ZoneConfig]) -> str:
    """Return names and corners of zones as text that differs if they were drawn anew; empty: there are none."""
    return "; ".join(f"{zone.name} {list(map(list, zone.polygon))}" for zone in zones)


def check_zones(zones: Sequence[ZoneConfig]) -> None:
    """Check zones.

    Raises:
        ConfigError: two zones have one name, or a polygon has fewer than three corners, corners outside the
            frame, no area, or crosses itself. The error names the zone.
    """
    names: set[str] = set()
    for zone in zones:
        if zone.name in names:
            raise ConfigError(f"two zones are named {zone.name!r}: give each zone of a stream its own name")
        names.add(zone.name)
        if problem := polygon_problem(zone.polygon):
            raise ConfigError(f"zone {zone.name!r}: {problem}")


def _inside(value: float) -> float:
    """Clip a coordinate: a box that reaches below the frame stands on its lower edge."""
    return min(1.0, max(0.0, value))


def _prepare(zone: ZoneConfig) -> _Zone:
    corners = np.array(zone.polygon, np.float32).reshape(-1, 1, 2)
    left, top = (float(v) - _MARGIN for v in corners.min(axis=(0, 1)))
    right, bottom = (float(v) + _MARGIN for v in corners.max(axis=(0, 1)))
    return _Zone(zone.name, corners, left, top, right, bottom, frozenset(zone.labels))
