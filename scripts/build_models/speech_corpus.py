"""What the small speech model learns from, at 8 kHz in -1..1: digits, other words, speech, and noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from speech_recordings import NOT_FREE, archived, prompted_digits, prompts
from speech_sound import Sound, trimmed
from speech_voices import Utterance, spoken
from speech_words import DIGITS, held_out_digits, spoken_digits, spoken_others, spoken_sentences

LABELS = (*DIGITS, "unknown", "silence")
UNKNOWN, SILENCE = 10, 11
_DEV_OF_TEN = 7
"""Recordings whose number ends so are for choosing, not for learning: five of every speaker's 45 of a digit."""
_DEV_SPEECH = slice(3, None, 12)
"""Recordings of continuous speech that are for choosing."""


@dataclass(frozen=True, slots=True)
class Word:
    """One recording: its sound, its label, and who speaks (empty: not one of the digits' six speakers)."""

    sound: Sound
    label: int
    speaker: str = ""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Recordings for training, or for validation."""

    digits: list[Word]
    synthetic: list[Word]
    unknown: list[Word]
    speech: list[Sound]
    noises: list[Sound]


def read_corpora(data: Path, cache: Path, everything: bool, without: str = "") -> tuple[Corpus, Corpus]:
    """Return the corpora for training and validation. The latter has a part of everything, or nothing.

    Args:
        data: folder with `fsdd_train.npz`, `wakewords_dev.tar` and `esc10_dev.tar`.
        cache: folder of what the engines spoke, and of the voices of Kokoro.
        everything: learn from all; the second corpus then holds a part of what was learnt.
        without: a speaker who is left out of the first corpus and is all of the second one's digits.
    """
    digits = read_digits(data / "fsdd_train.npz")
    recorded = archived(data / "wakewords_dev.tar", ".flac").values()
    wakewords = [Word(trimmed(sound), UNKNOWN) for sound in recorded]
    clips = [(i % 6 == 3, *clip) for i, clip in enumerate(archived(data / "esc10_dev.tar", ".ogg").items())]
    synthetic = [*_spoken_words(cache), *(Word(trimmed(s), digit) for digit, s in enumerate(prompted_digits()))]
    others, sentences = list(spoken_others()), list(spoken_sentences())
    unknown = wakewords + [Word(trimmed(sound), UNKNOWN) for sound in _spoken(cache, others)]
    speech = prompts() + _spoken(cache, sentences)
    held = [_is_dev(name) for name, _ in digits]
    if without:
        held = [word.speaker == without for _, word in digits]
    dev_digits = [word for (_, word), one in zip(digits, held, strict=True) if one]
    dev = Corpus(dev_digits, [], unknown[3::10], speech[_DEV_SPEECH], [noise for one, _, noise in clips if one])
    noises = [noise for one, name, noise in clips if (everything or not one) and not name.endswith(NOT_FREE)]
    if everything:
        return Corpus([word for _, word in digits], synthetic, unknown, speech, noises), dev
    train = Corpus(
        [word for (_, word), one in zip(digits, held, strict=True) if not one],
        synthetic,
        [word for i, word in enumerate(unknown) if i % 10 != 3],
        [sound for i, sound in enumerate(speech) if i % 12 != 3],
        noises,
    )
    return train, dev


def unheard_voices(cache: Path) -> list[Word]:
    """Return digits in synthetic voices that no corpus for training has."""
    plan = list(held_out_digits())
    sounds = _spoken(cache, [utterance for _, utterance in plan])
    return [Word(trimmed(sound), digit) for (digit, _), sound in zip(plan, sounds, strict=True)]


def read_digits(path: Path) -> list[tuple[str, Word]]:
    """The digits and their names, such as 7_jackson_12, of an .npz file.

    Its arrays are `pcm` int16, `offsets` of the recordings and of the end, `names`, `labels` and `speakers`.
    """
    with np.load(path) as file:
        pcm, offsets = file["pcm"].astype(np.float32) / 32768, file["offsets"]
        parts = zip(offsets[:-1], offsets[1:], file["names"], file["labels"], file["speakers"], strict=True)
        return [(str(name), Word(trimmed(pcm[a:b]), int(label), str(by))) for a, b, name, label, by in parts]


def _is_dev(name: str) -> bool:
    return int(name.rsplit("_", 1)[1]) % 10 == _DEV_OF_TEN


def _spoken_words(cache: Path) -> list[Word]:
    plan = list(spoken_digits())
    sounds = _spoken(cache, [utterance for _, utterance in plan])
    return [Word(trimmed(sound), digit) for (digit, _), sound in zip(plan, sounds, strict=True)]


def _spoken(cache: Path, utterances: Sequence[Utterance]) -> list[Sound]:
    return spoken(cache / "spoken", cache / "voices", utterances)
