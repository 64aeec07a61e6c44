"""Compare wake words with the package `pymicro-wakeword`, on the same sound with the same models.

The recordings are separated by stretches of quiet, in one stream. A word counts as detected in a recording if the
package, which decides every 30 ms, reports it in the recording or within a second after it. The same holds for
the agent's `keyword` events, with the default configuration: gate on, one event for each word.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import _sound
import common
import numpy as np
from msgspec import Struct
from pymicro_wakeword import MicroWakeWord, MicroWakeWordFeatures

from agent.compute.hearing import AudioPerception
from agent.config import StreamConfig
from agent.models.library import open_model
from agent.models.wakeword import packaged_path
from agent.types import Samples

RATE = 16_000
MODELS = {"wakeword/alexa": "alexa", "wakeword/okay_nabu": "okay nabu", "wakeword/hey_mycroft": "hey mycroft"}
VOICES = {"alexa": "en-us+m7", "okay nabu": "en-us+m3", "hey mycroft": "en-us+f3"}
_LEAD_IN_S, _AFTER_S = 1.2, 1.0


class Clip(Struct):
    """A recording in the stream: what is said, and where, in samples."""

    said: str
    first: int
    last: int


class Result(Struct):
    """Times at which a word was heard, s, and what that cost."""

    times: list[float]
    cpu_s: float


def main() -> None:
    args = arguments()
    stream, clips = scene(args.data, quick=args.quick)
    seconds = len(stream) / RATE
    print(f"{len(clips)} recordings, {seconds:.0f} s of sound")
    figures = {"recordings": float(len(clips)), "sound_s": seconds}
    decisions = agreed = 0
    cpu = {"agent": 0.0, "package": 0.0}
    for model, word in MODELS.items():
        results = {"agent": agent(model, stream), "package": package(model, stream)}
        verdicts = {name: judged(result, clips) for name, result in results.items()}
        agreed += int((verdicts["agent"] == verdicts["package"]).sum())
        decisions += len(clips)
        said = np.array([clip.said == word for clip in clips])
        for name, verdict in verdicts.items():
            cpu[name] += results[name].cpu_s
            missed = float((~verdict[said]).mean()) if said.any() else 0.0
            alarms = float(verdict[~said].sum() / (seconds / 3600.0))
            key = word.replace(" ", "_")
            figures |= {f"{key}_{name}_miss_rate": missed, f"{key}_{name}_false_alarms_per_h": alarms}
            print(
                f"{word:12} {name:8} missed {missed:6.1%} of {said.sum():3}, {alarms:.2f} false alarms per hour"
            )
    figures["agreement"] = agreed / decisions
    for name, spent in cpu.items():
        figures[f"{name}_cpu_ms_per_s"] = spent / len(MODELS) / seconds * 1e3
    figures["cpu_ratio"] = cpu["agent"] / cpu["package"]
    targets = {"agreement": ">= 0.99", "cpu_ratio": "<= 1.2"}
    meets = figures["agreement"] >= 0.99 and figures["cpu_ratio"] <= 1.2
    common.conclude("wakeword", figures, targets, meets)


def arguments() -> argparse.Namespace:
    parser = common.arguments(__doc__ or "")
    common.data_argument(parser)
    return parser.parse_args()


def scene(data: Path, *, quick: bool) -> tuple[Samples, list[Clip]]:
    """Everything in a row."""
    recordings = [(word, _sound.spoken(word, voice, RATE)) for word, voice in VOICES.items() for _ in range(2)]
    others = ("computer", "hello there", "what time is it", "alexander", "okay now", "the weather in november")
    recordings += [("other", _sound.spoken(text, voice, RATE)) for text in others for voice in VOICES.values()]
    recordings += list(_sound.archived(common.needed(data / "wakewords_dev.tar"), RATE))[:: 8 if quick else 1]
    parts: list[Samples] = [_sound.quiet(2.0, RATE)]
    clips, at = [], len(parts[0])
    for number, (said, sound) in enumerate(recordings):
        pause = _sound.quiet(_LEAD_IN_S, RATE, seed=number)
        first = at + len(pause)
        at = first + len(sound)
        clips.append(Clip(said, first, at))
        parts += [pause, sound]
    return np.concatenate((*parts, _sound.quiet(2.0, RATE))), clips


def agent(model: str, stream: Samples) -> Result:
    hearing = AudioPerception(
        "bench", StreamConfig(source="mic:default", model=model, threads=1), open_model(model)
    )
    sound = list(_sound.chunks(stream, RATE))
    began, times = time.process_time(), []
    for chunk in sound:
        seen = hearing.process(chunk)
        times += [event.track.last_seen.timestamp() - _sound.BEGIN.timestamp() for event in seen.events]
    return Result(times, time.process_time() - began)


def package(model: str, stream: Samples) -> Result:
    word, features = MicroWakeWord.from_config(packaged_path(model)), MicroWakeWordFeatures()
    sound = [(chunk.samples.tobytes(), chunk.captured_ns / 1e9) for chunk in _sound.chunks(stream, RATE)]
    began, times = time.process_time(), []
    decide: Callable[..., bool | None] = word.process_streaming
    for content, at in sound:
        times += [at for row in features.process_streaming(content) if decide(row)]
    return Result(times, time.process_time() - began)


def judged(result: Result, clips: list[Clip]) -> np.ndarray:
    """Return for each recording whether the word was heard in it."""
    times = np.array(result.times)
    return np.array(
        [bool(((times >= c.first / RATE) & (times <= c.last / RATE + _AFTER_S)).any()) for c in clips]
    )


if __name__ == "__main__":
    main()
