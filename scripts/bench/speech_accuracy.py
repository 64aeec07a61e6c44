"""How often small-speech is right, in INT8, on recordings that training never saw: at each depth, in noise too.

Each recording stands in the middle of the model's second, as it does at one moment of a stream. What quantising
costs, and what a speaker costs who was not in training, is printed by `scripts/build_models/small_speech`, which
has the float model.
"""

from __future__ import annotations

import argparse

import _digits
import common
import numpy as np

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


def main() -> None:
    args = arguments()
    calibrator = _NewestWindow(args.model)
    words = [*_digits.digits(args.data, learn=True), *_digits.digits(args.data, learn=False)]
    words = words[:: 3 if args.quick else 1]
    noise = _digits.noises(args.data)
    figures: dict[str, float] = {"recordings": float(len(words))}
    for condition, snr_db in _digits.CONDITIONS.items():
        right = np.zeros(len(calibrator.variants))
        for number, (label, sound) in enumerate(words):
            loud = _digits.mixed(centred(sound), noise[number % len(noise)], snr_db, number)
            said = [calibrator.labels[int(np.argmax(scores))] for scores in calibrator.predict(loud)]
            right += [one == label for one in said]
        for variant, count in zip(calibrator.variants, right, strict=True):
            figures[f"{condition.replace(' ', '')}_exit{variant}"] = float(count / len(words))
        print(
            f"{condition:6}",
            "  ".join(
                f"exit {r}: {c / len(words):6.1%}" for r, c in zip(calibrator.variants, right, strict=True)
            ),
        )
    deepest = figures[f"clean_exit{calibrator.variants[-1]}"]
    common.conclude(
        "speech_accuracy", figures, {f"clean_exit{calibrator.variants[-1]}": ">= 0.982"}, meets=deepest >= 0.982
    )


def arguments() -> argparse.Namespace:
    parser = common.arguments(__doc__ or "")
    common.data_argument(parser)
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
