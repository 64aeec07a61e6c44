"""Filters: which detections count, by label, and how sure a track must be before it is announced."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from agent.compute.track.geometry import foot_of, holds
from agent.config.places import FilterConfig, Polygon, polygon_problem
from agent.errors import ConfigError
from agent.types import Detection


class DetectionFilters:
    """The filters of one stream."""

    def __init__(self, filters: Sequence[FilterConfig], threshold: float) -> None:
        """Check and prepare the filters.

        Args:
            filters: of the stream.
            threshold: least score of labels that no filter gives another, 0..1.

        Raises:
            ConfigError: see `check_filters`.
        """
        check_filters(filters)
        self._filters, self._threshold = tuple(one for one in filters if one.enabled), threshold
        self._by_label: dict[str, tuple[FilterConfig, ...]] = {}

    @property
    def least_score(self) -> float:
        """Score from which on a detection of some label may count: what the decoder must give."""
        return min((self._threshold, *(one.min_score for one in self._filters if one.min_score is not None)))

    def keep(self, found: list[Detection], aspect: float) -> list[Detection]:
        """Return the detections that count, in their order. `aspect`: width of the frame by its height."""
        if not self._filters:
            return found
        return [one for one in found if self._passes(one, aspect)]

    def may_begin(self, label: str, best_score: float) -> bool:
        """Return True if a track with this best score may be announced."""
        return not self._filters or all(
            one.start_score is None or best_score >= one.start_score for one in self._for(label)
        )

    def _passes(self, found: Detection, aspect: float) -> bool:
        filters = self._for(found.label)
        least = max((one.min_score for one in filters if one.min_score is not None), default=self._threshold)
        return found.score >= least and all(_fits(one, found, aspect) for one in filters)

    def _for(self, label: str) -> tuple[FilterConfig, ...]:
        known = self._by_label.get(label)
        if known is None:
            known = tuple(one for one in self._filters if not one.labels or label in one.labels)
            self._by_label[label] = known
        return known


def _fits(one: FilterConfig, found: Detection, aspect: float) -> bool:
    """Return True if a detection has the wanted size and place; without a box it has none."""
    if found.box is None:
        return True
    x0, y0, x1, y1 = found.box
    width, height = max(0.0, x1 - x0), max(0.0, y1 - y0)
    if not one.min_area <= width * height <= one.max_area:
        return False
    ratio = width * aspect / height if height > 0.0 else math.inf
    if not (one.min_ratio or 0.0) <= ratio <= (one.max_ratio or math.inf):
        return False
    return not one.masks or not any(holds(mask, foot_of(found.box)) for mask in one.masks)


def check_filters(filters: Sequence[FilterConfig]) -> None:
    """Check filters.

    Raises:
        ConfigError: nothing could pass one, one of its masks cannot be used, or two have one name. The error
            names the filter.
    """
    names: set[str] = set()
    for one in filters:
        name = f"filter {one.name!r}" if one.name else f"filter of {', '.join(one.labels) or 'all labels'}"
        for low, high in (("min_area", "max_area"), ("min_ratio", "max_ratio")):
            least, most = getattr(one, low), getattr(one, high)
            if least is not None and most is not None and least > most:
                raise ConfigError(f"{name}: {low}, {least:g}, is more than {high}, {most:g}")
        if one.min_score is not None and one.start_score is not None and one.start_score < one.min_score:
            raise ConfigError(
                f"{name}: start_score, {one.start_score:g}, is less than min_score, {one.min_score:g}"
            )
        check_polygons(one.masks, name)
        if one.name in names:
            raise ConfigError(f"two filters are named {one.name!r}: give each filter of a stream its own name")
        names |= {one.name} - {""}


def check_polygons(masks: Iterable[Polygon], name: str) -> None:
    """Check masks. Raises ConfigError, with `name`, if one is not a polygon inside the frame."""
    for number, mask in enumerate(masks, 1):
        if problem := polygon_problem(mask):
            raise ConfigError(f"{name}: mask {number}: {problem}")
