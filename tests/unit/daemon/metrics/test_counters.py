"""The newest times of inferences."""

from __future__ import annotations

import pytest

from agent.daemon.metrics.counters import LatencyWindow


def recent(*ms: float) -> LatencyWindow:
    kept = LatencyWindow()
    for one in ms:
        kept.add(round(one * 1e6))
    return kept


@pytest.mark.parametrize(
    ("ms", "p95_ms"),
    [
        ((), None),
        ((7.5,), 7.5),
        ((1.0, 9.0), 9.0),
        (tuple(range(1, 21)), 19.0),
        (tuple(range(1, 101)), 95.0),
        ((*[500.0] * 300, *[2.0] * 256), 2.0),
        ((*[2.0] * 300, *[500.0] * 13), 500.0),
        ((*[2.0] * 300, *[500.0] * 12), 2.0),
    ],
)
def test_the_quantile_is_that_of_the_newest(ms: tuple[float, ...], p95_ms: float | None) -> None:
    assert recent(*ms).p95_ms == p95_ms
