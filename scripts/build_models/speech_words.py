"""The words and sentences that the small speech model learns from, and who speaks them."""

from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

from speech_voices import Utterance

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

OTHERS = tuple(Path(__file__).with_suffix(".txt").read_text().split())
"""English words that do not sound like a digit: neither "won" nor "free", "sick" or "ate" is among them."""

NEAR = tuple(Path(__file__).with_name("speech_near.txt").read_text().split())
"""Words that share sounds with a digit, so that a part of a digit is not enough."""

SENTENCES = tuple(Path(__file__).with_name("speech_sentences.txt").read_text().splitlines())
"""Sentences without a number. Words that sound like one, such as "to" and "for", are none in a sentence."""

VOICES = tuple(
    (f"{language}{variant}", speed, pitch)
    for language, variant, speed, pitch in (
        ("en-us", "", 150, 45),
        ("en-us", "+m1", 165, 40),
        ("en-us", "+m3", 140, 55),
        ("en-us", "+m7", 175, 35),
        ("en-us", "+f1", 150, 50),
        ("en-us", "+f2", 170, 60),
        ("en-us", "+f4", 140, 45),
        ("en-gb", "", 160, 50),
        ("en-gb", "+m2", 150, 35),
        ("en-gb", "+m5", 175, 50),
        ("en-gb", "+f3", 155, 55),
        ("en-gb-scotland", "+m4", 150, 45),
        ("en-gb-x-rp", "+m6", 160, 40),
        ("en-gb-x-rp", "+f5", 145, 50),
        ("en-gb-x-gbclan", "", 165, 45),
        ("en-029", "+m2", 150, 50),
    )
)
"""espeak-ng's voices: name, words a minute, and pitch 0..99."""

KOKORO = (
    *("af_heart", "am_michael", "bf_alice", "bm_daniel", "ef_dora", "af_bella", "am_puck", "bf_isabella"),
    *("bm_fable", "em_alex", "af_nicole", "am_fenrir", "bf_lily", "bm_george", "ff_siwis", "af_sarah", "am_adam"),
    *("hf_alpha", "am_echo", "if_sara", "af_alloy", "am_liam", "im_nicola", "am_onyx", "jm_kumo"),
)
"""Kokoro's voices that speak for the training."""
HELD_OUT = ("af_nova", "am_eric", "bf_emma", "bm_lewis", "pm_alex")
"""Those that speak for the test of the model."""
FLITE = ("awb", "rms", "slt", "kal16")

_SPEEDS = (0.8, 1.0, 1.2, 0.9, 1.1)
_FOREIGN = ("de", "fr-fr", "es", "it", "pl", "nl", "sv", "pt-br")
"""Languages whose voices read the English sentences as if they were their own."""


def spoken_digits() -> Iterator[tuple[int, Utterance]]:
    """Every digit in every voice."""
    for digit, word in enumerate(DIGITS):
        for voice, speed, pitch in VOICES:
            yield digit, Utterance(word, "espeak", voice, speed, pitch)
        for voice in FLITE:
            for stretched in (0.85, 1.0, 1.2):
                yield digit, Utterance(word, "flite", voice, stretched)
        for number, voice in enumerate(KOKORO):
            yield digit, Utterance(f"{word}.", "kokoro", voice, _SPEEDS[(number + digit) % len(_SPEEDS)])


def spoken_others() -> Iterator[Utterance]:
    """Other words, each by itself."""
    for number, word in enumerate(OTHERS):
        for turn in (0, 1):
            yield Utterance(word, "espeak", *VOICES[(3 * number + turn) % len(VOICES)])
    for number, word in enumerate(NEAR):
        yield Utterance(word, "espeak", *VOICES[number % len(VOICES)])
        yield Utterance(word, "flite", FLITE[number % len(FLITE)], 1.0)
    words = cycle(f"{word}." for pair in zip(NEAR * 4, OTHERS, strict=False) for word in pair)
    for number, voice in enumerate(KOKORO):
        for turn, word in enumerate(islice(words, 4)):
            yield Utterance(word, "kokoro", voice, _SPEEDS[(number + turn) % len(_SPEEDS)])


def spoken_sentences() -> Iterator[Utterance]:
    """Sentences, so that a window of one second holds parts of several words."""
    for number, text in enumerate(SENTENCES):
        for turn in range(5):
            yield Utterance(text, "espeak", *VOICES[(number + 3 * turn) % len(VOICES)])
        yield Utterance(text, "espeak", _FOREIGN[number % len(_FOREIGN)], 160, 35 + number % 30)
        for turn in (0, 1):
            yield Utterance(text, "flite", FLITE[(number + turn) % len(FLITE)], 1.0 + 0.2 * turn)
    sentences = cycle(SENTENCES)
    for number, voice in enumerate(KOKORO):
        for turn, text in enumerate(islice(sentences, 3)):
            yield Utterance(text, "kokoro", voice, _SPEEDS[(number + turn) % len(_SPEEDS)])


def held_out_digits() -> Iterator[tuple[int, Utterance]]:
    """Every digit in the voices that training does not have."""
    for digit, word in enumerate(DIGITS):
        for voice in HELD_OUT:
            yield digit, Utterance(f"{word}.", "kokoro", voice, 1.0)
