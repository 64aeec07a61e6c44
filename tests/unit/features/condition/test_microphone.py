from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.features.condition.microphone import MicrophoneWatcher, is_clipped
from agent.types import Array

pytestmark = pytest.mark.numerics
RATE_HZ = 8000
CHUNK = 800


class Listening:
    """A microphone that is watched, on a made clock."""

    def __init__(self) -> None:
        self.condition = MicrophoneWatcher(RATE_HZ)
        self._random = np.random.default_rng(0)
        self.now_s = 0.0

    def hear(self, sound: Array) -> list[str]:
        """Hear sound, -1..1; return the problems at its end."""
        samples = np.clip(np.rint(sound * 32768.0), -32768, 32767).astype(np.int16)
        for at in range(0, samples.size, CHUNK):
            self.now_s += CHUNK / RATE_HZ
            self.condition.update(samples[at : at + CHUNK], round(self.now_s * 1e9))
        return list(self.condition.problems)

    def noise(self, seconds: float, level: float) -> Array:
        return level * self._random.standard_normal(round(seconds * RATE_HZ))

    def words(self, seconds: float, level: float = 0.1) -> Array:
        """Return bursts of sound with pauses, as speech has."""
        t = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
        pitch = 140.0 + 20.0 * np.sin(2 * np.pi * 0.7 * t)
        voice = sum(np.sin(2 * np.pi * k * np.cumsum(pitch) / RATE_HZ) / k for k in range(1, 15))
        return np.asarray(level * voice * (np.sin(2 * np.pi * 1.3 * t) > -0.3)) + self.noise(seconds, 0.003)


def hum(seconds: float, hz: float, level: float = 0.1) -> Array:
    t = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    return np.asarray(level * (np.sin(2 * np.pi * hz * t) + 0.5 * np.sin(4 * np.pi * hz * t)))


def test_no_sample_for_half_a_minute_is_silent_until_there_is_sound() -> None:
    listening = Listening()
    listening.hear(listening.words(60))
    assert listening.hear(np.zeros(15 * RATE_HZ)) == []
    assert listening.hear(np.zeros(20 * RATE_HZ)) == ["silent"]
    assert listening.hear(listening.words(10)) == []


def test_far_below_the_quietest_that_it_was_is_silent() -> None:
    listening = Listening()
    listening.hear(listening.words(200))
    assert listening.hear(listening.noise(40, 0.0001)) == ["silent"]


def test_a_quiet_microphone_is_not_silent() -> None:
    listening = Listening()
    assert listening.hear(listening.noise(600, 0.0001)) == []
    listening.hear(listening.words(60))
    assert listening.hear(listening.noise(600, 0.0001)) == []


def test_a_gain_that_is_too_high_is_clipped() -> None:
    listening = Listening()
    assert listening.hear(40.0 * listening.words(60)) == ["clipped"]
    listening.hear(listening.words(90, 0.2))
    assert listening.hear(listening.words(60, 0.2)) == []


@settings(max_examples=25, deadline=None)
@given(st.floats(40.0, 3000.0), st.floats(0.3, 0.95))
def test_a_sine_below_full_scale_is_not_clipped(hz: float, level: float) -> None:
    sound = (32767.0 * level * np.sin(2 * np.pi * hz * np.arange(RATE_HZ) / RATE_HZ)).astype(np.float32)
    assert not is_clipped(sound, float(np.abs(sound).max()))
    flat = np.clip(sound, -0.6 * sound.max(), 0.6 * sound.max())
    assert hz > 1000.0 or is_clipped(flat, float(np.abs(flat).max()))


@pytest.mark.parametrize("hz", [50.0, 60.0])
def test_the_mains_hum_is_told_with_its_frequency(hz: float) -> None:
    listening = Listening()
    assert listening.hear(hum(60, hz) + listening.words(60, 0.02)) == ["humming"]
    assert listening.condition.problems["humming"] == f"{hz:g} Hz"
    assert listening.hear(listening.words(60)) == []


@pytest.mark.parametrize("hz", [44.0, 55.0, 73.0, 130.0])
def test_another_steady_tone_is_no_hum(hz: float) -> None:
    listening = Listening()
    assert listening.hear(hum(90, hz) + listening.noise(90, 0.001)) == []


def test_a_faint_hum_in_a_quiet_room_is_not_told() -> None:
    listening = Listening()
    assert listening.hear(hum(90, 50.0, 0.001)) == []


def test_speech_has_no_problem() -> None:
    listening = Listening()
    assert listening.hear(listening.words(300)) == []
