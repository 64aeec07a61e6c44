"""The small speech model for the zoo: digits, trained and exported with four exits to one INT8 `.tflite`."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import speech_graph
import torch
from speech_corpus import Corpus, Word, read_corpora, read_digits, unheard_voices
from speech_evaluate import Answer, Chain, Logits, report, table, times_us
from speech_export import int8_file
from speech_features import FINISH, Features, epoch, real
from speech_model import Speech, folded
from speech_train import Settings, load, train

from agent.optimise.depth.stages import stage_multiply_adds

_MODEL = Path(__file__).resolve().parents[2] / "agent" / "models" / "zoo" / "small-speech.tflite"
_CALIBRATION = 1_000_003
"""Number of the epoch for calibration and for training with the rounding in place: no other training sees it."""
_SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")


def main() -> int:
    """Make what the arguments ask for; 1 if `--check` finds a difference."""
    arguments = _arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.leave_out:
        return _leave_out(arguments)
    settings = Settings(epochs=arguments.epochs, corpus="all" if arguments.all else "dev")
    corpora = read_corpora(arguments.data, arguments.work, everything=arguments.all)
    model, content = _make(arguments, settings, corpora[0])
    target = arguments.work / "all.tflite" if arguments.all else arguments.output
    if arguments.check:
        return _compare(target, content)
    _write(target, content)
    reports = _reports(model, content, _tested(arguments, corpora[1]), unheard_voices(arguments.work))
    print("\n".join(table(reports)))
    print(json.dumps({"multiply_adds": _multiply_adds(content), "us": times_us(content)}))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/build_models/small_speech", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the recordings")
    parser.add_argument("--work", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=_MODEL, help="where to write the model")
    parser.add_argument("--epochs", type=int, default=Settings().epochs)
    parser.add_argument(
        "--all", action="store_true", help="hold nothing out; write all.tflite in the work folder"
    )
    parser.add_argument("--test", type=Path, help="test on the digits of this file, like fsdd_train.npz")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the model differs")
    parser.add_argument(
        "--leave-out", choices=(*_SPEAKERS, "each"), help="learn from the other speakers, and test on this one"
    )
    return parser.parse_args()


def _make(arguments: argparse.Namespace, settings: Settings, corpus: Corpus) -> tuple[Speech, bytes]:
    """The trained model and its INT8 file. A training that was broken off goes on."""
    checkpoint = arguments.work / f"{settings.corpus}.pt"
    model = load(checkpoint, settings) or train(corpus, settings, checkpoint)
    examples = epoch(corpus, settings.seed, _CALIBRATION, FINISH)
    return model, int8_file(folded(model), examples, checkpoint.with_suffix(".qat.checkpoint"))


def _tested(arguments: argparse.Namespace, dev: Corpus) -> Corpus:
    """Return the corpus that is evaluated."""
    if arguments.test:
        return replace(dev, digits=[word for _, word in read_digits(arguments.test)])
    if arguments.all:
        print("on recordings that were learnt from, so that this is no measure of how good it is:")
    return dev


def _float(model: Speech) -> Answer:
    """The float model as it was trained."""

    def answer(features: Features) -> Logits:
        with torch.inference_mode():
            logits = model(torch.from_numpy(real(features)))
        return {depth: own.numpy() for depth, own in zip(speech_graph.DEPTHS, logits, strict=True)}

    return answer


def _reports(
    model: Speech, content: bytes, dev: Corpus, unheard: list[Word]
) -> dict[str, dict[str, dict[str, float]]]:
    answers: dict[str, Answer] = {"float": _float(model), "int8": Chain(content)}
    return {name: report(answer, dev, unheard) for name, answer in answers.items()}


def _multiply_adds(content: bytes) -> dict[str, int]:
    """Count the multiply-adds of each exit, from the features on."""
    own = stage_multiply_adds(content)
    names = [f"exit{depth}" for depth in speech_graph.DEPTHS]
    return {name: int(total) for name, total in zip(names, np.cumsum([own[name] for name in names]), strict=True)}


def _leave_out(arguments: argparse.Namespace) -> int:
    """Train without a speaker, and write what the INT8 file gets right of theirs; or so for each in turn."""
    found = {}
    for speaker in _SPEAKERS if arguments.leave_out == "each" else (arguments.leave_out,):
        settings = Settings(epochs=arguments.epochs, corpus=f"without-{speaker}")
        corpora = read_corpora(arguments.data, arguments.work, everything=False, without=speaker)
        model, content = _make(arguments, settings, corpora[0])
        found[speaker] = _reports(model, content, corpora[1], unheard_voices(arguments.work))
        print("\n".join([f"without {speaker}", *table(found[speaker])]), flush=True)
        (arguments.work / f"without-{speaker}.json").write_text(json.dumps(found[speaker], indent=1))
    return 0


def _write(path: Path, content: bytes) -> None:
    """Write the model, and its sha256 into its manifest, if there is one."""
    digest = hashlib.sha256(content).hexdigest()
    path.write_bytes(content)
    print(f"{path}: {len(content)} bytes, sha256 {digest}")
    manifest = path.with_suffix(".toml")
    if manifest.exists():
        manifest.write_text(re.sub(r'(?m)^sha256 = ".*"$', f'sha256 = "{digest}"', manifest.read_text()))


def _compare(path: Path, content: bytes) -> int:
    """0 if the file at `path` holds `content`, else 1."""
    if path.exists() and path.read_bytes() == content:
        print(f"{path}: reproduced, sha256 {hashlib.sha256(content).hexdigest()}")
        return 0
    print(f"{path}: not reproduced", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
