"""The English dialogues of the game Flight of the Amazon Queen: their sounds, and what is said in them, and when.

The game is the Debian package `flight-of-the-amazon-queen`; its file `queen.1c` is in the format of ScummVM's
`compress_queen`. The name of a recording tells whose sentence it is a part of: sentences are in the dialogues
(`.DOG`), in the scenes (`.CUT`) and in the list of what the hero says of things (`QUEEN2.JAS`), and an asterisk
with a command ends a part. One recording of fifty has no text: nearly all of these are sounds that are no speech.
Source of the formats: ScummVM's engine `queen`, https://github.com/scummvm/scummvm

PocketSphinx finds when each word of a text is said, and its dictionary, that of Carnegie Mellon University, tells
which words sound like a digit. Each word that is said counts for one word that is told.
"""

from __future__ import annotations

import importlib
import re
import struct
from collections.abc import Iterator, Sequence
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import _sound
import numpy as np
import soxr
from msgspec import Struct

from agent.types import Samples

GAME = Path("/usr/share/scummvm/flight-of-the-amazon-queen/queen.1c")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_EARLY_S, _LATE_S = 0.12, 0.7
"""A word is told at most so long before and after its end, s: as training and this bench count digits."""
_MP3, _HEADER, _ENTRY = 1, ">4s8sBH", ">12sBII"
_DATA, _NODE = 20, 96
"""Bytes before the data of a file, and of a node of a dialogue."""
_COMMAND = re.compile(r"\*(?:XY.{11}|..)")
_ANSWERS, _FIRST_ANSWER = 40, "It doesn't seem to open"
_SPHINX_HZ = 16_000
_AFTER_S = 0.5
_TEENS = (
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


class Dialogue(Struct, frozen=True):
    """One recording: its name, its text, empty where the game has none, and its sound."""

    name: str
    text: str
    sound: Samples


class Kind(StrEnum):
    """What was said where a digit was told: it, a word of the same sound, one that holds it, or neither."""

    SAID, HOMOPHONE, CONTAINS, OTHER = "said", "homophone", "contains", "other"


class Word(Struct, frozen=True):
    """A word that is said: its spelling, its first and last second, and its phones, of each pronunciation."""

    spelling: str
    first_s: float
    last_s: float
    phones: tuple[tuple[str, ...], ...]


class Told(Struct, frozen=True):
    """A digit that was told: when, s from the begin of the recording, what was said there, and in which word."""

    label: str
    at_s: float
    kind: Kind
    word: str


def dialogues(rate_hz: int, first: int, every: int) -> list[Dialogue]:
    """Return every so manieth dialogue, from the `first` on; none where the game is not installed."""
    if not GAME.is_file():
        return []
    names, texts = [name for name in _entries() if name.endswith(".SB")], _texts()
    return [
        Dialogue(name, texts.get(name, ""), _sound.decoded(_file(name), rate_hz)) for name in names[first::every]
    ]


def spelled(text: str) -> list[str]:
    """Return the words of a text as they are said, in small letters, with numbers in words: 1948, 24, X7."""
    plain = re.sub(r"\d+", lambda number: f" {_number(int(number[0]))} ", text.lower().replace(":00", " hundred"))
    return re.findall(r"[a-z]+(?:'[a-z]+)*", plain)


def _number(value: int) -> str:
    if value < 20:
        return (*DIGITS, *_TEENS)[value]
    if value < 100:
        return f"{_TENS[value // 10]} {DIGITS[value % 10] if value % 10 else ''}"
    if value % 100 == 0 and value < 1000:
        return f"{DIGITS[value // 100]} hundred"
    return f"{_number(value // 100)} {_number(value % 100)}"


class Aligner:
    """Finds when the words of a text are said, and tells what was said where a digit was told."""

    def __init__(self) -> None:
        self._decoder: Any = importlib.import_module("pocketsphinx").Decoder(loglevel="FATAL")
        self._phones = {digit: self._pronounced(digit) for digit in DIGITS}

    def words(self, dialogue: Dialogue, rate_hz: int) -> list[Word]:
        """Return the words of a dialogue that the dictionary has; none where they do not fit its sound."""
        known = [word for word in spelled(dialogue.text) if self._decoder.lookup_word(word)]
        if not known:
            return []
        decoder = self._decoder
        # The last word needs silence after it.
        quiet = _sound.quiet(_AFTER_S, rate_hz, 4.0)
        padded = np.concatenate((dialogue.sound, quiet)).astype(np.float32)
        sound = soxr.resample(padded, rate_hz, _SPHINX_HZ)
        decoder.set_align_text(" ".join(known))
        decoder.start_utt()
        decoder.process_raw(_sound.to_int16(sound / 32768.0).tobytes(), full_utt=True)
        decoder.end_utt()
        if decoder.hyp() is None:
            return []
        rate = float(decoder.config["frate"])
        found = [(re.sub(r"\(\d+\)$", "", one.word), one.start_frame, one.end_frame + 1) for one in decoder.seg()]
        return [
            Word(spelling, first / rate, last / rate, self._pronounced(spelling))
            for spelling, first, last in found
            if spelling[0].isalpha()
        ]

    def judge(self, told: Sequence[tuple[float, str]], words: Sequence[Word]) -> list[Told]:
        """Return what was said where digits were told: when, s, and their labels. Each word counts once."""
        left, judged = list(words), []
        for at_s, label in told:
            near = [word for word in left if word.last_s - _EARLY_S <= at_s <= word.last_s + _LATE_S]
            kinds = [(self.kind(label, word), word) for word in near]
            for kind in Kind:
                if kind is Kind.OTHER or any(one is kind for one, _ in kinds):
                    break
            word = next((word for one, word in reversed(kinds) if one is kind), None)
            if word is not None and kind is not Kind.OTHER:
                left.remove(word)
            judged.append(Told(label, at_s, kind, word.spelling if word else ""))
        return judged

    def kind(self, label: str, word: Word) -> Kind:
        """Return what a word is for a digit."""
        if word.spelling.removesuffix("'s") == label:
            return Kind.SAID
        pairs = [(phones, digit) for phones in word.phones for digit in self._phones[label]]
        if any(phones == digit for phones, digit in pairs):
            return Kind.HOMOPHONE
        return Kind.CONTAINS if any(_holds(phones, digit) for phones, digit in pairs) else Kind.OTHER

    def _pronounced(self, word: str) -> tuple[tuple[str, ...], ...]:
        """Return the phones of each pronunciation in the dictionary."""
        found, number = [self._decoder.lookup_word(word)], 2
        while found[-1]:
            found.append(self._decoder.lookup_word(f"{word}({number})"))
            number += 1
        return tuple(tuple(phones.split()) for phones in found if phones)


def _holds(phones: tuple[str, ...], part: tuple[str, ...]) -> bool:
    return any(phones[at : at + len(part)] == part for at in range(len(phones) - len(part) + 1))


@cache
def _content() -> bytes:
    return GAME.read_bytes()


@cache
def _entries() -> dict[str, tuple[int, int]]:
    """Return where each file of the game begins and how long it is, by its name."""
    content = _content()
    _, _, kind, count = struct.unpack_from(_HEADER, content)
    if kind != _MP3:
        raise SystemExit(f"{GAME}: expected the version with MP3, compression 1, got {kind}")
    begin, size = struct.calcsize(_HEADER), struct.calcsize(_ENTRY)
    entries = (struct.unpack_from(_ENTRY, content, begin + number * size) for number in range(count))
    return {name.rstrip(b"\0").decode("cp437"): (at, length) for name, _, at, length in entries}


def _file(name: str) -> bytes:
    at, length = _entries()[name]
    return _content()[at : at + length]


@cache
def _texts() -> dict[str, str]:
    """Return what is said in each recording, by the name of its file."""
    said: dict[str, str] = {}
    for prefix, sentence in _sentences():
        for number, part in enumerate(_COMMAND.split(sentence), 1):
            if part.strip():
                said.setdefault(f"{prefix}{number:X}.SB", part.strip())
    return said


def _sentences() -> Iterator[tuple[str, str]]:
    """Yield all sentences, each after the begin of its recordings' names."""
    for name in _entries():
        if name.endswith(".DOG"):
            yield from _dialogue(_file(name)[_DATA:])
        elif name.endswith(".CUT"):
            yield from _scene(name.removesuffix(".CUT"), _file(name)[_DATA:])
    lines = _file("QUEEN2.JAS").decode("cp437").split("\r\n")
    begin = next(number for number, line in enumerate(lines) if line.startswith(_FIRST_ANSWER))
    of_things = lines[begin : begin + _ANSWERS] + lines[:begin]
    for number, line in enumerate(of_things, 1):
        yield f"JOE{number:04d}", line


def _dialogue(data: bytes) -> Iterator[tuple[str, str]]:
    """Yield the sentences of a dialogue: the hero's (J) and the other's (P), with the numbers of their nodes."""
    levels, _, key, hero, other = struct.unpack_from(">5h", data)
    others_at, _, again_at = struct.unpack_from(">3H", data, 22)
    for who, count, at in (("J", hero + 1, 32 + abs(levels) * _NODE), ("P", other, others_at)):
        for _ in range(count):
            if at + 4 >= len(data):
                break
            (node,) = struct.unpack_from(">H", data, at + 2)
            text, at = _string(data, at + 4, 4)
            yield f"{key:02d}{f'{node:04X}' if node else 'SSSS'}{who}", text
    text, at = _string(data, again_at, 2)
    yield f"{key:02d}XXXXP", text
    yield f"{key:02d}XXXXJ", _string(data, at, 2)[0]


def _scene(name: str, data: bytes) -> Iterator[tuple[str, str]]:
    """Yield the sentences of a scene."""
    (count,) = struct.unpack_from(">h", data, 2)
    (at,) = struct.unpack_from(">H", data, 8)
    _, at = _string(data, at, 2)
    for number in range(1, abs(count) + 1):
        text, at = _string(data, at, 2)
        yield f"{name:_<5}{number:02d}", text


def _string(data: bytes, at: int, align: int) -> tuple[str, int]:
    """Return a string and where the next begins: at a multiple of `align`, unless this one is empty."""
    size, at = data[at], at + 1
    end = at + size
    return data[at:end].decode("cp437"), -(-end // align) * align if size else end
