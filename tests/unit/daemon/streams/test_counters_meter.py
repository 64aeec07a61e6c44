"""What a stream's meter counts in a window."""

from __future__ import annotations

from agent.daemon.streams.counters import StreamMeter, joined
from agent.types import StageTimes, StreamResult

MS = 1_000_000
INFERRED = StreamResult([], [], StageTimes(queue=5 * MS, infer=10 * MS))
LEFT_OUT = StreamResult([], None, StageTimes(), [])
CLOSED = StreamResult([], None, StageTimes())


def test_a_window_tells_rates_latencies_and_costs_and_begins_anew() -> None:
    meter = StreamMeter()
    meter.add(CLOSED, 0, 0)
    for number, result in enumerate([INFERRED, LEFT_OUT, INFERRED, CLOSED], 1):
        meter.add(result, number * 100 * MS, number * 12 * MS)
    window = meter.take()
    assert window.inferred == 2
    assert (window.open_s, window.closed_s) == (0.3, 0.1)
    assert window.latencies_ms == (15.0, 15.0)
    assert window.costs_ms == (12.0, 12.0)
    assert meter.take().costs_ms == ()


def test_a_source_that_gives_nothing_for_long_counts_as_a_second() -> None:
    meter = StreamMeter()
    meter.add(INFERRED, 0, 0)
    meter.add(INFERRED, 3600_000 * MS, 0)
    meter.add(INFERRED, 0, 0)  # a clock that goes back
    assert meter.take().open_s == 1.0


def test_windows_join_to_one() -> None:
    meter = StreamMeter()
    windows = []
    for second in range(2):
        meter.add(INFERRED, second * 500 * MS, second * MS)
        windows.append(meter.take())
    both = joined(windows)
    assert (both.inferred, both.open_s, both.costs_ms) == (2, 0.5, (0.0, 1.0))


def test_thousands_of_inferences_in_one_window_take_no_more_memory() -> None:
    meter = StreamMeter()
    for number in range(5000):
        meter.add(INFERRED, number * MS, 0)
    window = meter.take()
    assert window.inferred == 5000
    assert len(window.latencies_ms) == len(window.costs_ms) <= 512
