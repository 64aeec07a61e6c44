from __future__ import annotations

import numpy as np
import pytest

from agent.compute.gate.voice import VoiceDecision, VoiceGate
from agent.config import GateConfig
from agent.types import Samples

pytestmark = pytest.mark.numerics

RATE = 16000
random = np.random.default_rng(7)


def noise(seconds: float, level: float) -> Samples:
    return (random.standard_normal(round(seconds * RATE)) * level).astype(np.int16)


def word(seconds: float, level: float = 6000.0) -> Samples:
    """Harmonics of 140 Hz whose strength moves as in speech."""
    t = np.arange(round(seconds * RATE)) / RATE
    voice = sum(np.sin(2 * np.pi * 140 * k * t + k) / k for k in range(1, 25))
    return np.asarray(voice * level / 2 * (0.6 + 0.4 * np.sin(2 * np.pi * 5 * t)), np.int16)


def heard(gate: VoiceGate, samples: Samples, step: int = 480) -> list[VoiceDecision]:
    return [gate.evaluate(samples[at : at + step]) for at in range(0, len(samples), step)]


def test_silence_and_steady_noise_keep_it_closed() -> None:
    for quiet in (np.zeros(10 * RATE, np.int16), noise(10, 30), noise(10, 1500)):
        sounds = heard(VoiceGate(GateConfig(), RATE), quiet)
        assert sum(sound.open for sound in sounds[40:]) <= 2


@pytest.mark.parametrize("level", [0.0, 30.0, 800.0])
def test_a_word_opens_it_at_once_and_it_closes_again(level: float) -> None:
    gate = VoiceGate(GateConfig(hold_s=0.5), RATE)
    heard(gate, noise(5, level))
    during = heard(gate, word(0.6) + noise(0.6, level))
    assert [sound.open for sound in during[:3]].index(True) <= 2
    assert sum(sound.began for sound in during) == 1
    after = heard(gate, noise(3, level))
    assert after[0].open
    assert not any(sound.open for sound in after[60:])


def test_a_noise_that_begins_is_learned() -> None:
    gate = VoiceGate(GateConfig(), RATE)
    heard(gate, noise(3, 20))
    sounds = heard(gate, noise(30, 3000))
    assert sounds[2].open
    assert not sounds[-1].open


def test_noise_makes_a_word_harder() -> None:
    hardness = []
    for level in (0.0, 300.0, 1200.0):
        gate = VoiceGate(GateConfig(), RATE)
        heard(gate, noise(5, level))
        hardness.append(heard(gate, word(0.6) + noise(0.6, level))[-1].complexity)
    assert hardness == sorted(hardness)
    assert all(0.0 <= value <= 1.0 for value in hardness)


def test_it_opens_by_itself_now_and_then_and_always_when_switched_off() -> None:
    gate = VoiceGate(GateConfig(max_idle_s=2.0), RATE)
    assert 3 <= sum(sound.began for sound in heard(gate, np.zeros(8 * RATE, np.int16))) <= 4
    off = VoiceGate(GateConfig(voice=False), RATE)
    assert all(sound.open for sound in heard(off, np.zeros(RATE, np.int16)))


def test_chunks_of_any_size_are_judged_alike() -> None:
    samples = np.concatenate((noise(3, 50), word(0.6), noise(2, 50)))
    runs = []
    for step in (160, 480, 1024, 4000):
        gate = VoiceGate(GateConfig(), RATE)
        runs.append(sum(sound.began for sound in heard(gate, samples, step)))
    assert runs == [2] * 4, "at first, and for the word"


def test_what_lies_above_a_voice_opens_it_where_it_is_listened_for() -> None:
    bird = (8000.0 * np.sin(2 * np.pi * 6500 * np.arange(RATE // 2) / RATE)).astype(np.int16)
    for high_hz, opens in ((3800.0, False), (8000.0, True)):
        gate = VoiceGate(GateConfig(), RATE, high_hz)
        assert not any(sound.open for sound in heard(gate, noise(5, 30))[40:])
        assert any(sound.open for sound in heard(gate, bird + noise(0.5, 30))) is opens
