"""Speech with no digits or few that small-speech was not trained on: of actors, of a telephone, synthetic.

- The English dialogues of the game Flight of the Amazon Queen, 277 minutes by many actors, see `_dialogues.py`.
  They say digits at times, mostly "one".
- The Russian prompts of the Debian package `asterisk-core-sounds-ru-wav`, without those of numbers.
- Sentences of the guide without numbers, read by espeak-ng in voices that training does not use.
- English books read aloud, half a minute, from the Debian package `pocketsphinx-testdata`.

Whatever is not installed is left out.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import _dialogues
import _sound
import common

from agent.types import Samples

PROMPTS = Path("/usr/share/asterisk/sounds/ru_RU_f_IvrvoiceRU")
READ_SPEECH = Path("/usr/share/pocketsphinx/test/data/librivox")
_NUMBER = re.compile(r"\d|\b(zero|one|two|three|four|five|six|seven|eight|nine|once)\b", re.IGNORECASE)
_VOICES = ("en-us+Andy", "en-gb+Annie", "en-us+Denis", "en-gb-scotland+Gene", "en-us+Jacky", "en-gb+Lee")
_LONGEST = 160
"""Characters of a sentence."""


def acted(rate_hz: int, first: int, every: int) -> list[Samples]:
    """Return every so manieth dialogue, from the `first` on."""
    return [dialogue.sound for dialogue in _dialogues.dialogues(rate_hz, first, every)]


def prompts(rate_hz: int, every: int) -> list[Samples]:
    """Return the Russian prompts of at least half a second."""
    paths = [path for path in sorted(PROMPTS.rglob("*.wav")) if path.parent.name not in ("digits", "silence")]
    sounds = [_sound.decoded(path.read_bytes(), rate_hz) for path in paths[::every]]
    return [sound for sound in sounds if len(sound) > rate_hz / 2]


def synthetic(rate_hz: int, first: int, every: int) -> list[Samples]:
    """Return every so manieth sentence by espeak-ng, from the `first` on."""
    if shutil.which("espeak-ng") is None:
        return []
    sentences = list(guide_sentences())[first::every]
    return [_read(text, _VOICES[number % len(_VOICES)], rate_hz) for number, text in enumerate(sentences)]


def read(rate_hz: int) -> list[Samples]:
    """Return the books read aloud."""
    return [_sound.decoded(path.read_bytes(), rate_hz) for path in sorted(READ_SPEECH.glob("*.wav"))]


def guide_sentences() -> Iterator[str]:
    """Yield sentences of the guide that have neither a number nor code."""
    for path in sorted((common.ROOT / "agent" / "guide").glob("*.md")):
        for paragraph in re.sub(r"(?s)```.*?```", "", path.read_text()).split("\n\n"):
            for sentence in re.split(r"(?<=[.?]) ", " ".join(paragraph.split())):
                plain = re.fullmatch(r"[A-Z][A-Za-z,;' -]{30,}\.", sentence) and len(sentence) <= _LONGEST
                if plain and not _NUMBER.search(sentence):
                    yield sentence


def _read(text: str, voice: str, rate_hz: int) -> Samples:
    command = ["espeak-ng", "-v", voice, "-s", "165", "--stdout", text]
    return _sound.decoded(subprocess.run(command, capture_output=True, check=True).stdout, rate_hz)
