from __future__ import annotations

import pytest

from agent.capture.portaudio import SampleRateEstimator


def told(meter: SampleRateEstimator, rate_hz: float, every_s: float = 0.06, seconds: float = 20.0) -> list[int]:
    """Return the estimates for a device that delivers so many samples per second, in bursts."""
    answers = [
        meter.add(round(rate_hz * every_s), 100 + number * every_s) for number in range(round(seconds / every_s))
    ]
    return [answer for answer in answers if answer is not None]


@pytest.mark.parametrize("rate_hz", [15400, 16000, 16600])
def test_a_device_that_is_about_right_is_believed(rate_hz: float) -> None:
    assert told(SampleRateEstimator(16000), rate_hz) == []


@pytest.mark.parametrize(
    ("rate_hz", "is_taken_for"), [(8000, 8000), (48100, 48000), (14000, 14000), (43900, 44100)]
)
def test_a_device_that_lies_is_taken_for_what_it_delivers(rate_hz: float, is_taken_for: int) -> None:
    first, *_ = told(SampleRateEstimator(16000), rate_hz)
    assert first == pytest.approx(is_taken_for, rel=0.002)


def test_sound_in_long_bursts_is_no_lie() -> None:
    assert told(SampleRateEstimator(16000), 16000, every_s=2.0, seconds=300) == []


def test_one_hiccup_is_no_lie() -> None:
    meter, now = SampleRateEstimator(16000), 100.0
    for number in range(600):
        now += 3.0 if number == 80 else 0.06
        assert meter.add(960, now) is None


def test_a_gap_begins_the_count_anew() -> None:
    meter = SampleRateEstimator(16000)
    for number in range(60):
        assert meter.add(200, 100 + number * 0.06) is None
    meter.restart()
    assert told(meter, 16000) == []
