"""A wake word of microWakeWord in our own session, against the package itself, on the demo's recording."""

from __future__ import annotations

import pytest

from agent.capture.audio_file import read_whole
from agent.compute.hearing import AudioPerception
from agent.config import GateConfig, StreamConfig
from agent.models.files import ZOO
from agent.models.library import open_model
from agent.models.wakeword import packaged_path
from tests.support.sound import chunks

package = pytest.importorskip("pymicro_wakeword", reason="the extra [wakeword] is not installed")
SPOKEN = ZOO / "spoken.flac"


def theirs(model: str, samples: bytes) -> list[float]:
    """Times at which the package first says so, s."""
    word = package.MicroWakeWord.from_config(packaged_path(model))
    features = package.MicroWakeWordFeatures()
    told: list[float] = []
    for at in range(0, len(samples), 960):
        for row in features.process_streaming(samples[at : at + 960]):
            at_s = (at + 960) / 32000
            if word.process_streaming(row) and (not told or at_s - told[-1] > 1.0):
                told.append(at_s)
    return told


@pytest.mark.parametrize("model", ["wakeword/alexa", "wakeword/okay_nabu", "wakeword/hey_jarvis"])
@pytest.mark.parametrize("gate", [True, False])
def test_it_is_heard_when_the_package_hears_it(model: str, gate: bool) -> None:
    sound = read_whole(SPOKEN, 16_000)
    config = StreamConfig(source="mic:default", model=model, gate=GateConfig(voice=gate))
    hearing = AudioPerception("kitchen", config, open_model(model))
    heard = [c.captured_ns / 1e9 for c in chunks(sound) for _ in hearing.process(c).events]
    expected = theirs(model, sound.tobytes())
    assert len(heard) == len(expected)
    assert heard == pytest.approx(expected, abs=0.1)
    assert bool(expected) == (model != "wakeword/hey_jarvis"), "the recording says two of the three"
