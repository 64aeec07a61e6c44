"""Recordings with words, and other sound, as `vedette models evaluate` reads them for a model of words.

- A folder with a sub-folder for each word, which holds recordings (WAV, FLAC, OGG) of one utterance each.
- A recording with a label track beside it, `talk.txt` beside `talk.wav`, as Audacity exports it: a line
  `start end word` for each utterance, times in s, separated by tabs. Lines that begin with a backslash, which
  hold frequencies, are left out. https://manual.audacityteam.org/man/importing_and_exporting_labels.html
- Folders of other sound, in which no word is said.

A folder of a label that the model does not tell, such as `unknown`, is other sound too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from msgspec import Struct
from msgspec.structs import replace

from agent.capture.audio_file import AudioFile, Resampler, open_recording
from agent.config.source_uri import parse_sound
from agent.errors import ModelError, reason_of
from agent.text import plain, plural
from agent.types import Samples

SOUNDS = (".wav", ".flac", ".ogg")
_SLACK_S = 0.1
"""How far a label may end behind the sound: editors round."""


class SpokenWord(Struct, frozen=True):
    """A word that is said in a recording.

    Attributes:
        label: the model's name of it.
        start_s, end_s: where, s from the beginning.
    """

    label: str
    start_s: float
    end_s: float


class Recording(Struct, frozen=True):
    """A recording.

    Attributes:
        name: path below the folder that was given.
        path: of the file.
        folder: of the word, or of the other sound.
        seconds: its length, s.
        said: the words in it.
        counts_time: what is heard beside its words counts as false alarms of its time. That is not so for a
            recording of one utterance, which is cut where the word ends.
    """

    name: str
    path: Path
    folder: str
    seconds: float
    said: tuple[SpokenWord, ...] = ()
    counts_time: bool = True


class SoundExamples(Struct, frozen=True):
    """Recordings to evaluate a model of words on.

    Attributes:
        recordings: sorted by name.
        words: that the model tells, in its order.
        source: path that they came from.
        remarks: doubts.
    """

    recordings: tuple[Recording, ...]
    words: tuple[str, ...]
    source: str
    remarks: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """What was read from where, in a line."""
        told = f"{plural(self.count, 'word')} in {plural(len(self.recordings), 'recording')}"
        return f"{self.source}: {told}, {self.hours:.2f} h of other sound"

    @property
    def hours(self) -> float:
        """Length of the sound in which false alarms are counted, h."""
        return sum(one.seconds for one in self.recordings if one.counts_time) / 3600.0

    @property
    def count(self) -> int:
        """Number of words that are said."""
        return sum(len(one.said) for one in self.recordings)


def read_sounds(
    path: Path, background: Sequence[Path], words: Sequence[str], ignored: Sequence[str]
) -> SoundExamples:
    """Read recordings for a model. Each file is opened now, so that no later step stops at it.

    Args:
        path: folder of a sub-folder for each word, or of recordings with label tracks.
        background: folders of other sound.
        words: labels that the model tells.
        ignored: its other labels, such as `silence`.

    Raises:
        ModelError: there is nothing to evaluate, or a folder or label is none of the model's.
        SourceError: a recording cannot be read.
    """
    found = list(_labelled(path, words, ignored))
    for folder in dict.fromkeys(one.resolve() for one in background):
        if path.resolve().is_relative_to(folder):
            raise ModelError(f"{folder}: holds the words, and is given as sound without any: give another folder")
        others = list(_files(folder))
        if not others:
            raise ModelError(f"{folder}: no recordings ({', '.join(SOUNDS)}) in it")
        found += [_background(folder, file) for file in others]
    found.sort(key=lambda one: one.name)
    examples = SoundExamples(tuple(found), tuple(words), str(path))
    if not examples.count:
        known = ", ".join(words)
        raise ModelError(f"{path}: no word is said in it: give a folder for each word of the model: {known}")
    unheard = [word for word in words if not any(one.label == word for each in found for one in each.said)]
    remarks = [f"not said: {', '.join(unheard)}: nothing is known of how they are heard"] if unheard else []
    if not any(one.counts_time for one in found):
        remarks.append("no other sound: false alarms per hour are not known; --background gives it")
    return replace(examples, remarks=tuple(remarks))


def _labelled(path: Path, words: Sequence[str], ignored: Sequence[str]) -> Iterator[Recording]:
    if not path.is_dir():
        what = "is no folder" if path.exists() else "there is no such folder"
        raise ModelError(f"{path}: {what}; expected one with a sub-folder of recordings for each word")
    known = {_folded(label): label for label in (*words, *ignored)}
    files = list(_files(path))
    if not files:
        raise ModelError(f"{path}: no recordings ({', '.join(SOUNDS)}) in it")
    for file in files:
        name = _below(path, file)
        folder = name.partition("/")[0] if "/" in name else ""
        track = file.with_suffix(".txt")
        if track.is_file():
            yield _tracked(file, track, name, folder, known, set(ignored))
            continue
        label = known.get(_folded(folder))
        if label is None:
            _refuse_folder(path, file, folder, words)
        elif label in ignored:
            yield _other(file, name, folder)
        else:
            seconds = _length(file)
            yield Recording(name, file, folder, seconds, (SpokenWord(label, 0.0, seconds),), counts_time=False)


def _refuse_folder(path: Path, file: Path, folder: str, words: Sequence[str]) -> None:
    if not folder:
        track = file.with_suffix(".txt").name
        raise ModelError(f"{file}: lies in no folder of a word, and has no label track {track} beside it")
    known = f"the model does not know the word {plain(folder)!r}, but {', '.join(words[:20])}"
    raise ModelError(f"{path / plain(folder)}: {known}: rename the folder, or give it as --background")


def _background(folder: Path, file: Path) -> Recording:
    name = f"{folder.name}/{_below(folder, file)}"
    return _other(file, name, name.rpartition("/")[0])


def _other(file: Path, name: str, folder: str) -> Recording:
    return Recording(name, file, folder or ".", _length(file))


def _tracked(
    file: Path, track: Path, name: str, folder: str, known: dict[str, str], ignored: set[str]
) -> Recording:
    seconds, said = _length(file), []
    for number, line in enumerate(_text(track).splitlines(), 1):
        if not line.strip() or line.startswith("\\"):
            continue
        where = f"{track}:{number}"
        one = _utterance(line, where, known)
        if one.start_s < 0 or one.start_s > one.end_s or one.end_s > seconds + _SLACK_S:
            span = f"{one.start_s:g} to {one.end_s:g} s"
            raise ModelError(f"{where}: {span} does not lie within the sound, which has {seconds:.2f} s")
        if one.label not in ignored:
            said.append(one)
    return Recording(name, file, folder or ".", seconds, tuple(sorted(said, key=lambda one: one.start_s)))


def _utterance(line: str, where: str, known: dict[str, str]) -> SpokenWord:
    fields = line.split(None, 2)
    try:
        start, end = map(float, fields[:2])
    except ValueError:
        raise ModelError(f"{where}: expected `start end word`, times in s; found {plain(line)[:60]}") from None
    label = known.get(_folded(fields[2])) if len(fields) == 3 else None
    if label is None:
        said = plain(fields[2]) if len(fields) == 3 else ""
        raise ModelError(f"{where}: the model does not know the word {said!r}, but {', '.join(known)}")
    return SpokenWord(label, start, end)


def _text(track: Path) -> str:
    try:
        return track.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ModelError(f"{track}: is not UTF-8: export the labels anew") from None
    except OSError as error:
        raise ModelError(f"{track}: cannot be read: {reason_of(error)}") from None


def _folded(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _below(path: Path, file: Path) -> str:
    return file.relative_to(path).as_posix()


def _files(path: Path) -> Iterator[Path]:
    """Yield the recordings below a folder, sorted; hidden ones do not count."""
    if not path.is_dir():
        raise ModelError(f"{path}: {'is no folder' if path.exists() else 'there is no such folder'}")
    for file in sorted(path.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.suffix.lower() in SOUNDS and file.is_file() and not hidden:
            yield file


def _open(path: Path, rate_hz: int) -> AudioFile:
    address = replace(parse_sound(f"wav:{quote(str(path))}?pace=fast"), masked=str(path))
    return open_recording(address, 1.0, rate_hz)


def _length(path: Path) -> float:
    with closing(_open(path, 0)) as sound:
        return sound.seconds


def read_blocks(path: Path, rate_hz: int) -> Iterator[Samples]:
    """Yield a recording piece by piece, int16 [n], one channel, at a rate.

    Raises:
        SourceError: it cannot be read to its end.
    """
    with closing(_open(path, rate_hz)) as sound:
        resampler = Resampler(sound.rate_hz, rate_hz)
        while (block := sound.read()) is not None:
            yield resampler.change(block.samples)
        yield resampler.rest()


def sound_digest(path: Path) -> str:
    """Return the SHA-256 of a recording's file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
