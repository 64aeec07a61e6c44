"""Depth by difficulty: the cascade against always the deepest exit, on the same streams of words.

Held-out digits of six speakers, with pauses, clean and in noise at 10 and 0 dB, go through the audio pipeline
with the default configuration; in noise three times, with other noise. A word is right when it is the first
that is told while it is said or just after; whatever else is told is told wrongly. A word is doubled when it is
told more than once. A repeat is a word that follows the same word after 0.9 s; it is missed when it is not
told.

Each inference's multiply-adds are those of the exits that ran. The cascade's own cost is what asking it costs.
"""

from __future__ import annotations

import argparse
import time

import _digits
import _sound
import common
import numpy as np
from msgspec import Struct

from agent.compute.cascade import ExitPolicy
from agent.compute.hearing import AudioPerception
from agent.compute.manifest import Manifest
from agent.config import StreamConfig
from agent.models.library import open_model, open_whole_model
from agent.types import Event, Samples

_LATE_S = 0.6


class Run(Struct):
    """Results of one way of listening."""

    right: list[bool]
    used: dict[str, int]
    infer_ns: int
    false_words: int
    doubled: int
    repeats: list[bool]


def main() -> None:
    args = arguments()
    manifest = open_whole_model(args.model).manifest
    words = _digits.digits(args.data, learn=False)[:: 3 if args.quick else 1]
    noise = _digits.noises(args.data)
    runs: dict[str, list[Run]] = {"cascade": [], "always": []}
    figures: dict[str, float] = {"words": float(len(words))}
    for condition, snr_db in _digits.CONDITIONS.items():
        turns = 1 if snr_db is None else 1 if args.quick else 3
        streams = [_digits.stream(words, noise[turn:] + noise[:turn], snr_db) for turn in range(turns)]
        for name, variant in (("cascade", ""), ("always", manifest.variants[0].name)):
            some = [listen(args.model, variant, sound, said) for sound, said in streams]
            runs[name] += some
            share = float(np.mean([run.right for run in some]))
            wrong = sum(run.false_words for run in some)
            used = {exit_: sum(run.used[exit_] for run in some) for exit_ in some[0].used}
            figures[f"{condition.replace(' ', '')}_{name}_accuracy"] = share
            print(f"{condition:6} {name:7} right {share:6.1%}, told wrongly {wrong}, exits {used}")
    figures |= compared(manifest, runs)
    targets = {
        "accuracy_lost": "<= 0.002",
        "multiply_adds_ratio": "<= 0.45",
        "compute_ratio": "<= 0.55",
        "cascade_share": "<= 0.02",
    }
    meets = all(figures[name] <= float(text[3:]) for name, text in targets.items())
    common.conclude("depth", figures, targets, meets)


def arguments() -> argparse.Namespace:
    parser = common.arguments(__doc__ or "")
    common.data_argument(parser)
    parser.add_argument("--model", default="small-speech", help="name or path of a model of digits with depths")
    return parser.parse_args()


def listen(model: str, variant: str, sound: Samples, said: list[_digits.Said]) -> Run:
    config = StreamConfig(source="mic:default", model=model, variant=variant, threads=1)
    hearing = AudioPerception("bench", config, open_model(model, variant))
    events: list[tuple[float, Event]] = []
    infer_ns = 0
    for chunk in _sound.chunks(sound, _digits.RATE):
        seen = hearing.process(chunk)
        infer_ns += seen.stages.infer
        events += [(chunk.captured_ns / 1e9, event) for event in seen.events]
    right, claimed, doubled, repeats = [], 0, 0, []
    before = ""
    for word in said:
        window = word.first / _digits.RATE, word.last / _digits.RATE + _LATE_S
        told = [event.track.label for at, event in events if window[0] <= at <= window[1]]
        right.append(told[:1] == [word.label])
        claimed += len(told[:1])
        doubled += told.count(word.label) > 1
        if word.label == before:
            repeats.append(word.label in told)
        before = word.label
    return Run(right, hearing.used, infer_ns, len(events) - sum(right), doubled, repeats)


def compared(manifest: Manifest, runs: dict[str, list[Run]]) -> dict[str, float]:
    """Ratios over all conditions."""
    chain = manifest.chain(manifest.variants[0].name)
    costs, total = {}, 0
    for variant in chain:
        total += variant.multiply_adds
        costs[variant.name] = total
    used = {variant.name: sum(run.used[variant.name] for run in runs["cascade"]) for variant in chain}
    inferences = {name: sum(sum(run.used.values()) for run in some) for name, some in runs.items()}
    spent = sum(costs[name] * count for name, count in used.items())
    infer_ns = {name: sum(run.infer_ns for run in some) for name, some in runs.items()}
    shares = {name: [right for run in some for right in run.right] for name, some in runs.items()}
    accuracy = {name: sum(rights) / len(rights) for name, rights in shares.items()}
    each_ns = infer_ns["cascade"] / inferences["cascade"]
    figures = {
        "decisions": float(len(shares["always"])),
        "false_words_cascade": float(sum(run.false_words for run in runs["cascade"])),
        "false_words_always": float(sum(run.false_words for run in runs["always"])),
        "doubled_cascade": float(sum(run.doubled for run in runs["cascade"])),
        "doubled_always": float(sum(run.doubled for run in runs["always"])),
        "repeats_missed_cascade": missed_repeats(runs["cascade"]),
        "repeats_missed_always": missed_repeats(runs["always"]),
        "accuracy_lost": accuracy["always"] - accuracy["cascade"],
        "multiply_adds_ratio": spent / inferences["cascade"] / total,
        "compute_ratio": each_ns / (infer_ns["always"] / inferences["always"]),
        "cascade_share": cascade_ns(manifest) / each_ns,
        "inference_us": each_ns / 1e3,
    }
    return figures | {f"exit{name}_share": count / inferences["cascade"] for name, count in used.items()}


def missed_repeats(runs: list[Run]) -> float:
    """Share of the words after the same word that were not told."""
    repeats = [told for run in runs for told in run.repeats]
    return 1.0 - sum(repeats) / max(1, len(repeats))


def cascade_ns(manifest: Manifest, rounds: int = 20_000) -> float:
    """Return the cost of the policy for an inference that climbs to the top, ns."""
    chain = manifest.chain(manifest.variants[0].name)
    cascade = ExitPolicy(chain, 10**9)
    began = time.perf_counter_ns()
    for _ in range(rounds):
        cascade.first(0.5)
        for index in range(len(chain)):
            cascade.record_latency(index, 1000)
            cascade.needs_deeper(index, 0.0, 1000)
    return (time.perf_counter_ns() - began) / rounds


if __name__ == "__main__":
    main()
