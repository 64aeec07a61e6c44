"""Recordings with words, and other sound, as `vedette optimise evaluate` reads them for a model of words.

- A folder with a sub-folder for each word, which holds recordings (WAV, FLAC, OGG) of one utterance each.
- A recording with a label track beside it, `talk.txt` beside `talk.wav`, as Audacity exports it: a line
  `start end word` for each utterance, times in s, separated by tabs. Lines that begin with a backslash, which
  hold frequencies, are left out. https://manual.audacityteam.org/man/importing_and_exporting_labels.html
- Folders of other sound, in which no word is said.

A folder of a label that the model does not tell, such as `unknown`, is other sound too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from msgspec import Struct
from msgspec.structs import replace

from agent.capture.audio_file import AudioFile, Resampler, open_recording
from agent.config.source_uri import parse_sound
from agent.errors import ModelError
from agent.optimise.data.annotations import DataFile
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
        seconds: its length, s.
        said: the words in it.
        counts_time: what is heard beside its words counts as false alarms of its time. That is not so for a
            recording of one utterance, which is cut where the word ends.
    """

    name: str
    path: Path
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
        found += [Recording(f"{folder.name}/{_below(folder, one)}", one, _length(one)) for one in _files(folder)]
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
    known = {_folded(label): label for label in (*words, *ignored)}
    for file in _files(path):
        name, seconds, track = _below(path, file), _length(file), file.with_suffix(".txt")
        label = known.get(_folded(name.partition("/")[0])) if "/" in name else None
        if track.is_file():
            said = (one for one in _utterances(track, known, seconds) if one.label not in ignored)
            yield Recording(name, file, seconds, tuple(sorted(said, key=lambda one: one.start_s)))
        elif label is None:
            raise ModelError(
                f"{file}: lies in no folder of a word that the model knows, {', '.join(words[:20])}, and has no "
                f"label track {track.name} beside it: rename the folder, or give it as --background"
            )
        elif label in ignored:
            yield Recording(name, file, seconds)
        else:
            yield Recording(name, file, seconds, (SpokenWord(label, 0.0, seconds),), counts_time=False)


def _utterances(track: Path, known: dict[str, str], seconds: float) -> Iterator[SpokenWord]:
    for number, line in enumerate(DataFile(track).text().splitlines(), 1):
        if not line.strip() or line.startswith("\\"):
            continue
        fields = line.split(None, 2)
        try:
            start, end = map(float, fields[:2])
        except ValueError:
            start, end = 1.0, 0.0
        label = known.get(_folded(fields[2])) if len(fields) == 3 else None
        if label is None or not 0 <= start <= end <= seconds + _SLACK_S:
            raise ModelError(
                f"{track}:{number}: expected `start end word`, times within the {seconds:.2f} s of the sound, "
                f"and one of {', '.join(known)}; found {plain(line)[:60]}"
            )
        yield SpokenWord(label, start, end)


def _folded(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _below(path: Path, file: Path) -> str:
    return file.relative_to(path).as_posix()


def _files(path: Path) -> list[Path]:
    """Return the recordings below a folder, sorted; hidden ones do not count. Raises ModelError without any."""
    if not path.is_dir():
        what = "is no folder" if path.exists() else "there is no such folder"
        raise ModelError(f"{path}: {what}; expected one with recordings, in a sub-folder for each word")
    files = sorted(one for one in path.rglob("*") if one.suffix.lower() in SOUNDS and one.is_file())
    found = [one for one in files if not any(part.startswith(".") for part in one.relative_to(path).parts)]
    if not found:
        raise ModelError(f"{path}: no recordings ({', '.join(SOUNDS)}) in it")
    return found


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
