"""Recordings of people and of noise: the archives of the data folder, and prompts for telephones, of Asterisk.

The prompts are those of the Debian packages asterisk-core-sounds-en-wav, -es-wav, -fr-wav and -it-wav, with what
is said in them; one without a number is speech in which no digit is.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import soundfile
from speech_sound import Sound, resampled

PROMPTS = {
    "en_US_f_Allison": "asterisk-core-sounds-en-wav",
    "es_MX_f_Allison": "asterisk-core-sounds-es-wav",
    "fr_CA_f_June": "asterisk-core-sounds-fr-wav",
    "it_IT_m_Carlo": "asterisk-core-sounds-it-wav",
}
"""Folders of the prompts, and the packages that they are from."""
_SOUNDS, _DOCUMENTS = Path("/usr/share/asterisk/sounds"), Path("/usr/share/doc")
_NUMBERS = re.compile(
    r"\d|\b(zero|one|two|three|four|five|six|seven|eight|nine|once|z[eé]ro|cinq|sept|neuf|cero|seis|siete|sei|sette)\b",
    re.IGNORECASE,
)
"""In the text of a prompt: a digit, or a word of another language that is nearly one."""
NOT_FREE = "2-96460-A.ogg"
"""The one clip of noise whose licence, Sampling Plus, is neither CC BY nor CC0."""
_SHORTEST_S = 0.3


def archived(path: Path, suffix: str) -> dict[str, Sound]:
    """Return the sound files of a tar file by their names, in the order of these."""
    sounds = {}
    with tarfile.open(path) as tar:
        files = (member for member in tar.getmembers() if member.isfile() and member.name.endswith(suffix))
        for member in sorted(files, key=lambda member: member.name):
            if content := tar.extractfile(member):
                sounds[member.name] = _decoded(io.BytesIO(content.read()))
    return sounds


def prompts() -> list[Sound]:
    """Return the prompts in which no digit is said."""
    english = _texts("en")
    sounds = []
    for folder in PROMPTS:
        texts = _texts(folder[:2])
        for name, path in _files(folder):
            said = f"{texts.get(name, '')} {english.get(name, '')}"
            if _is_speech(name, said) and not _NUMBERS.search(said):
                sounds.append(_decoded(path))
    return [sound for sound in sounds if len(sound) >= _SHORTEST_S * 8000]


def prompted_digits() -> list[Sound]:
    """Return the digits zero to nine, as the English prompts say them."""
    return [_decoded(_SOUNDS / "en_US_f_Allison" / "digits" / f"{digit}.wav") for digit in range(10)]


def _is_speech(name: str, said: str) -> bool:
    """Return whether a prompt is words: it has a text that is not a description in brackets."""
    return bool(said.strip()) and "[" not in said and not name.startswith(("digits/", "silence/", "letters/"))


def _files(folder: str) -> Iterator[tuple[str, Path]]:
    root = _SOUNDS / folder
    if not root.is_dir():
        raise SystemExit(f"{root}: not found: sudo apt-get install {PROMPTS[folder]}")
    for path in sorted(root.rglob("*.wav")):
        yield path.relative_to(root).with_suffix("").as_posix(), path


def _texts(language: str) -> dict[str, str]:
    """Return what each prompt of a language says, by its name."""
    package = f"asterisk-core-sounds-{language}"
    path = _DOCUMENTS / package / f"core-sounds-{language}.txt.gz"
    if not path.is_file():
        raise SystemExit(f"{path}: not found: sudo apt-get install {package}")
    lines = gzip.decompress(path.read_bytes()).decode(errors="replace").splitlines()
    return {name: said for name, colon, said in (line.partition(":") for line in lines) if colon}


def _decoded(file: io.BytesIO | Path) -> Sound:
    sound, rate_hz = soundfile.read(file, dtype="float32", always_2d=True)
    return resampled(sound.mean(axis=1), rate_hz)
