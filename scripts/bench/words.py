"""Words over time: the same word said twice, a word told twice, and words that nobody said.

Everything goes through the gate, the model, the tracker of words and their verification with the default
configuration, as fast as they can. Each recording of a digit is trimmed: what lies 32 dB or more below its
loudest 10 ms is cut off at both ends.

A pair is two digits of one speaker, with a gap from the end of the first to the start of the second. The gap
holds the noise of a quiet microphone, or recorded noise that lies 20 dB below the words and goes on through them.
A pair is told completely when its two words, in this order and nothing else, are told until 0.7 s after its end.
These digits are held-out ones from which neither the model nor the rule for pauses has learned.

False words are counted in speech without digits that training has not heard (see `_speech.py`; what is not
installed is left out), in wake words and in noise. The model was trained on most of these two, as examples of
what is no digit: those that are called new it has not heard. Actors say digits at times: a told digit is not
false where it is said, or a word of the same phones; it is where a word holds its phones, such as "someone" (see
`_dialogues.py`). How many of these digits are told, most of them amid a sentence, is said for comparison.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import _dialogues
import _digits
import _sound
import _speech
import common
import numpy as np
from msgspec import Struct

from agent.compute.hearing import AudioPerception
from agent.compute.infer.backends import open_session
from agent.config import StreamConfig
from agent.features.verification.models import open_verifier
from agent.models.library import open_model
from agent.models.wakeword import packaged
from agent.types import Samples

GAPS_S = (0.2, 0.3, 0.45, 0.6, 0.9)
CONDITIONS: dict[str, float | None] = {"": None, "_20dB": 20.0}
_LATE_S, _APART_S = 0.7, 1.6


class Spoken(Struct):
    """Speech in one piece of a stream: labels, and its first and last second."""

    labels: list[str]
    first_s: float
    last_s: float


class Stream(Struct):
    """Sound, and what is said in it."""

    sound: Samples
    said: list[Spoken]


def main() -> None:
    args = arguments()
    words = speakers(args.data)[:: 2 if args.quick else 1]
    noise = _digits.noises(args.data)
    figures: dict[str, float] = {"words": float(len(words))}
    for condition, snr_db in CONDITIONS.items():
        figures |= digits(args.model, words, noise, condition, snr_db)
    figures |= wake_word(args.data, 12 if args.quick else 3)
    figures |= false_words(args.model, args.data, 3 if args.quick else 1)
    for name, value in figures.items():
        print(f"{name:28} {value:8.3f}")
    targets = {"same_0.3s": ">= 0.95", "doubled": "<= 0.0"}
    limits = {name: 5.0 if "noise" in name else 20.0 for name in figures if name.startswith("false_per_h")}
    targets |= {name: f"<= {limit}" for name, limit in limits.items()}
    meets = figures["same_0.3s"] >= 0.95 and figures["doubled"] <= 0.0
    meets = meets and all(figures[name] <= limit for name, limit in limits.items())
    common.conclude("words", figures, targets, meets)


def arguments() -> argparse.Namespace:
    parser = common.arguments(__doc__ or "")
    common.data_argument(parser)
    parser.add_argument("--model", default="small-speech", help="name or path of a model of digits")
    return parser.parse_args()


def speakers(data: Path) -> list[tuple[str, list[tuple[str, Samples]]]]:
    """Each held-out digit: its label, and the other ones of its speaker with the digit itself in front."""
    by_speaker: dict[str, list[tuple[str, Samples]]] = {}
    for label, speaker, sound in _digits.spoken_digits(data, learn=False):
        by_speaker.setdefault(speaker, []).append((label, _sound.trimmed(sound, _digits.RATE)))
    return [
        (label, [said[n], *said[n + 1 :], *said[:n]])
        for said in by_speaker.values()
        for n, (label, _) in enumerate(said)
    ]


def digits(
    model: str,
    words: list[tuple[str, list[tuple[str, Samples]]]],
    noise: list[Samples],
    condition: str,
    snr_db: float | None,
) -> dict[str, float]:
    """Shares of pairs told completely, of single words told twice or not at all."""
    figures = {}
    for gap_s in GAPS_S:
        pairs = [same(label, said) for label, said in words]
        figures[f"same_{gap_s}s{condition}"] = complete(model, stream(pairs, gap_s, noise, snr_db))
    pairs = [different(label, said) for label, said in words]
    figures[f"different_0.3s{condition}"] = complete(model, stream(pairs, 0.3, noise, snr_db))
    single = stream([[said[0]] for _, said in words], 0.0, noise, snr_db)
    told = told_in(model, single, _digits.RATE)
    counts = [labels.count(one.labels[0]) for labels, one in zip(told, single.said, strict=True)]
    figures[f"single{condition}"] = float(np.mean([count > 0 for count in counts]))
    figures[f"doubled{condition}"] = float(np.mean([count > 1 for count in counts]))
    return figures


def same(label: str, said: list[tuple[str, Samples]]) -> list[tuple[str, Samples]]:
    """A digit and another recording of it, by the same speaker."""
    return [said[0], next(one for one in said[1:] if one[0] == label)]


def different(label: str, said: list[tuple[str, Samples]]) -> list[tuple[str, Samples]]:
    """A digit and the next one of its speaker that is another."""
    return [said[0], next(one for one in said[1:] if one[0] != label)]


def stream(
    groups: list[list[tuple[str, Samples]]],
    gap_s: float,
    noise: list[Samples],
    snr_db: float | None,
    rate_hz: int = _digits.RATE,
) -> Stream:
    """Words with a gap within a group and a long pause after it; noise, where there is any, never pauses."""
    parts, said, at = [_sound.quiet(2.0, rate_hz, 4.0)], [], 2 * rate_hz
    gap = np.zeros(round(gap_s * rate_hz), np.int16)
    for number, group in enumerate(groups):
        # Steps of the model lie differently in each group.
        before = np.zeros(rate_hz // 10 * (number % 7) // 7, np.int16)
        pieces = [piece for _, sound in group for piece in (sound, gap)][:-1]
        spoken = np.concatenate(pieces)
        part = np.concatenate((before, spoken, np.zeros(round(_APART_S * rate_hz), np.int16)))
        level = np.square(np.concatenate([sound for _, sound in group]).astype(np.float64)).mean()
        part = part + _sound.quiet(1.0 + len(part) / rate_hz, rate_hz, 4.0, number)[: len(part)]
        if snr_db is not None:
            part = with_noise(part, noise[number % len(noise)], level / 10.0 ** (snr_db / 10.0))
        first = at + len(before)
        labels = [label for label, _ in group]
        said.append(Spoken(labels, first / rate_hz, (first + len(spoken)) / rate_hz))
        parts.append(part)
        at += len(part)
    return Stream(np.concatenate(parts), said)


def with_noise(sound: Samples, noise: Samples, power: float) -> Samples:
    """Sound with noise of this power."""
    part = np.resize(noise, len(sound)).astype(np.float64)
    scale = np.sqrt(power / max(1.0, float(np.square(part).mean())))
    return np.asarray(np.clip(np.rint(sound + part * scale), -32768, 32767), np.int16)


def listen(model: str, sound: Samples, rate_hz: int, variant: str = "") -> list[tuple[float, str]]:
    """When each word was told, s, and its label."""
    opened = open_model(model, variant)
    config = StreamConfig("mic:default", model, variant=variant, threads=1)
    hearing = AudioPerception("bench", config, opened)
    if (verifier := open_verifier(opened, open_session)) is not None:
        hearing.verify_with(verifier)
    told = [
        (chunk.captured_ns / 1e9, event.track.label)
        for chunk in _sound.chunks(sound, rate_hz)
        for event in hearing.process(chunk).events
    ]
    hearing.close()
    return told


def told_in(model: str, made: Stream, rate_hz: int, variant: str = "") -> list[list[str]]:
    """Labels that were told in each group, until shortly after it."""
    told = listen(model, made.sound, rate_hz, variant)
    return [[label for at, label in told if one.first_s <= at <= one.last_s + _LATE_S] for one in made.said]


def complete(model: str, made: Stream, rate_hz: int = _digits.RATE) -> float:
    """Share of the groups whose words were told, and nothing else."""
    told = told_in(model, made, rate_hz)
    return float(np.mean([labels == one.labels for labels, one in zip(told, made.said, strict=True)]))


def wake_word(data: Path, every: int) -> dict[str, float]:
    """Count for single recordings of a wake word how often each of two is reported, and one twice."""
    model, rate_hz = "wakeword/alexa", 16_000
    if model not in packaged():
        return {}
    recordings = _sound.archived(common.needed(data / "wakewords_dev.tar"), rate_hz)
    said = [("alexa", _sound.trimmed(sound, rate_hz)) for label, sound in recordings if label == "alexa"][::every]
    one = told_in(model, stream([[word] for word in said], 0.0, [], None, rate_hz), rate_hz)
    two = told_in(model, stream([[word, word] for word in said], 0.3, [], None, rate_hz), rate_hz)
    heard = [number for number, labels in enumerate(one) if labels]
    return {
        "alexa_same_0.3s": float(np.mean([len(two[number]) == 2 for number in heard])),
        "alexa_doubled": float(np.mean([len(one[number]) > 1 for number in heard])),
    }


def false_words(model: str, data: Path, every: int) -> dict[str, float]:
    """Words per hour in recordings without any, each after a second of quiet."""
    rate_hz = _digits.RATE
    spoken = [sound for _, sound in _sound.archived(data / "wakewords_dev.tar", rate_hz)]
    noise = [sound for _, sound in _sound.archived(common.needed(data / "esc10_dev.tar"), rate_hz)]
    sounds = {
        "prompts": _speech.prompts(rate_hz, every),
        "synthetic_speech": _speech.synthetic(rate_hz, 1, 2 * every),
        "read_speech": _speech.read(rate_hz),
        "wake_words_new": spoken[_digits.UNKNOWN],
        "wake_words": spoken[::every],
        "noise_new": noise[_digits.NOISES],
        "noise": noise[::every],
    }
    figures = acted_words(model, _dialogues.dialogues(rate_hz, 0, 10 * every))
    for name, recordings in sounds.items():
        if recordings:
            sound, _ = with_pauses(recordings, rate_hz)
            hours = len(sound) / rate_hz / 3600.0
            figures[f"false_per_h_{name}"] = len(listen(model, sound, rate_hz)) / hours
            figures[f"minutes_{name}"] = hours * 60.0
    return figures


def with_pauses(recordings: Sequence[Samples], rate_hz: int) -> tuple[Samples, list[float]]:
    """Return recordings, each after a second of quiet, and when each begins, s."""
    pause = _sound.quiet(1.0, rate_hz, 4.0)
    begins = np.cumsum([len(pause) + len(one) for one in recordings]) - [len(one) for one in recordings]
    parts = [part for one in recordings for part in (pause, one)]
    return np.concatenate([*parts, pause]), (begins / rate_hz).tolist()


def acted_words(model: str, dialogues: Sequence[_dialogues.Dialogue]) -> dict[str, float]:
    """Count what is told in dialogues by what is said there, and the share of the said digits that are told."""
    if not dialogues:
        return {}
    rate_hz = _digits.RATE
    sound, begins = with_pauses([one.sound for one in dialogues], rate_hz)
    told: dict[int, list[tuple[float, str]]] = {}
    for at_s, label in listen(model, sound, rate_hz):
        number = max(0, int(np.searchsorted(begins, at_s)) - 1)
        told.setdefault(number, []).append((at_s - begins[number], label))
    aligner = _dialogues.Aligner()
    judged = [
        (number, one)
        for number, words in sorted(told.items())
        for one in aligner.judge(words, aligner.words(dialogues[number], rate_hz))
    ]
    for number, one in judged:
        print(f"{one.label:6} {one.kind:10} {one.word:12} {one.at_s:5.2f} s of {dialogues[number].text!r}")
    kinds, hours = Counter(one.kind for _, one in judged), len(sound) / rate_hz / 3600.0
    said = sum(word in _dialogues.DIGITS for one in dialogues for word in _dialogues.spelled(one.text))
    false = kinds[_dialogues.Kind.CONTAINS] + kinds[_dialogues.Kind.OTHER]
    per_hour = {f"acted_{kind}_per_h": kinds[kind] / hours for kind in _dialogues.Kind}
    return {
        "false_per_h_acted_speech": false / hours,
        "minutes_acted_speech": hours * 60.0,
        **per_hour,
        "acted_digits_per_h": said / hours,
        "acted_digits_told": kinds[_dialogues.Kind.SAID] / max(1, said),
    }


if __name__ == "__main__":
    main()
