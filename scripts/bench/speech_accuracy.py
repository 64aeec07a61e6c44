"""How often small-speech is right, in INT8, on recordings that training never saw: at each depth, in noise too.

`exit` is the net alone: each recording stands in the middle of the model's second, as it does at one moment of a
stream. `events` is what a stream reports of the same recordings, with pauses between: gate, net, tracker and
verification. A digit counts if it is reported once and nothing else is; `events` without a depth is the cascade.
Noise is so many dB below the mean power of the recording, and goes on through the pauses. Three fifths of the
recordings, those numbered below 30, chose the thresholds of the verification: `events_new` leaves them out.

What quantising costs, and what a speaker costs who was not in training, is printed by
`scripts/build_models/small_speech`, which has the float model.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import _digits
import _recorded
import common
import numpy as np
import words

from agent.optimise.calibrate import ExitCalibrator
from agent.types import Array, Samples


class _NewestWindow(ExitCalibrator):
    """A model that answers for the newest of its windows only, as a stream's does at one moment."""

    def predict(self, samples: Samples) -> list[Array]:
        """Run every variant on the newest window of samples, int16 [n] at the model's rate."""
        self._frontend.reset()
        self._rows.reset()
        for _ in self._rows.feed(self._frontend(samples)):
            pass
        return self._exits.predict_all_exits(self._rows.fill)


class Heard(NamedTuple):
    """A stream of recordings to report: the model's name, its depth or nothing for the cascade, and the noise."""

    model: str
    variant: str
    condition: str
    recordings: list[tuple[str, Samples]]
    noise: list[Samples]

    @property
    def name(self) -> str:
        return f"{self.condition.replace(' ', '')}_events"


def main() -> None:
    args = arguments()
    calibrator = _NewestWindow(args.model)
    every, noise = 3 if args.quick else 1, _digits.noises(args.data)
    new, old = (_digits.digits(args.data, learn=learn)[::every] for learn in (False, True))
    figures: dict[str, float] = {"recordings": float(len(new + old)), "new_recordings": float(len(new))}
    for condition, snr_db in _digits.CONDITIONS.items():
        shares = exits(calibrator, new + old, noise, snr_db)
        figures |= {f"{condition.replace(' ', '')}_exit{variant}": share for variant, share in shares.items()}
    streams = [
        Heard(args.model, variant, condition, new + old, noise)
        for condition in _digits.CONDITIONS
        for variant in ("", *calibrator.variants)
    ]
    with ProcessPoolExecutor(args.workers) as workers:
        for stream, right in zip(streams, workers.map(reported, streams), strict=True):
            figures[f"{stream.name}{stream.variant}"] = float(np.mean(right))
            figures[f"{stream.name}_new{stream.variant}"] = float(np.mean(right[: len(new)]))
    for name, value in figures.items():
        print(f"{name:20} {value:7.3f}")
    if args.record:
        _recorded.record("speech_accuracy", figures)
    target = ">= 0.96 of a third of them" if args.quick else ">= 0.982"
    common.conclude("speech_accuracy", figures, {f"clean_exit{calibrator.variants[-1]}": target})


def reported(stream: Heard) -> list[bool]:
    """Return for each recording whether its digit was reported, once and nothing else."""
    snr_db = _digits.CONDITIONS[stream.condition]
    made = words.stream([[one] for one in stream.recordings], 0.0, stream.noise, snr_db)
    told = words.told_in(stream.model, made, _digits.RATE, stream.variant)
    return [labels == one.labels for labels, one in zip(told, made.said, strict=True)]


def exits(
    calibrator: _NewestWindow, recordings: list[tuple[str, Samples]], noise: list[Samples], snr_db: float | None
) -> dict[str, float]:
    """Return the share of recordings whose label is the net's likeliest, by depth."""
    right = np.zeros(len(calibrator.variants))
    for number, (label, sound) in enumerate(recordings):
        loud = centred(sound)
        if snr_db is not None:
            power = np.square(sound.astype(np.float64)).mean() / 10.0 ** (snr_db / 10.0)
            loud = words.with_noise(loud, noise[number % len(noise)], power)
        said = [calibrator.labels[int(np.argmax(scores))] for scores in calibrator.predict(loud)]
        right += [one == label for one in said]
    return dict(zip(calibrator.variants, (right / len(recordings)).tolist(), strict=True))


def arguments() -> argparse.Namespace:
    parser = common.arguments(__doc__ or "")
    common.data_argument(parser)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="streams that are heard at once")
    parser.add_argument("--record", action="store_true", help="keep the figures in recorded.json")
    parser.add_argument("--model", default="small-speech", help="name or path of a model of digits with depths")
    return parser.parse_args()


def centred(sound: Samples) -> Samples:
    """In the middle of a second, or cut to it."""
    spare = _digits.RATE - len(sound)
    if spare < 0:
        return sound[-spare // 2 :][: _digits.RATE]
    return np.pad(sound, (spare // 2, spare - spare // 2))


if __name__ == "__main__":
    main()
