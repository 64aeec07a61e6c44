"""What `vedette optimise evaluate` tells of words and clips, against counts that are made another way.

- Words: `wakeword/alexa` on the wake words (200 alexas; the other five words and the noises of ESC-10 are other
  sound), and `small-speech` on digits that training never saw, with held-out words and noises. The same sound
  runs through the daemon's own class in a loop of this bench, whose events are counted by hand: the figures must
  agree. The curve, which is computed from the answers at one threshold, is compared with hearing everything again
  at three others. Other speech that is installed here, see `_speech`, gives hours of it.
- Clips: published detections of MOT15 through the tracker, by motmetrics and by TrackEval. IDF1 must be the same.
  Which track an object is matched with need not: motmetrics prefers that of its newest match, however long ago,
  and TrackEval that of the picture before alone. Switches, and a few boxes that count as missed, differ by that.
- Cost: processor time for an hour of sound, and the memory that more of it needs, in one recording.

With --quick a twentieth of the recordings, and one clip.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _digits
import _sound
import _speech
import common
import numpy as np
import soundfile
from _mot import read_clips, track, tracking_figures

from agent.compute.hearing import AudioPerception
from agent.compute.infer.backends import open_session
from agent.config import CascadeConfig, DecodeConfig, StreamConfig
from agent.features.verification.models import open_verifier
from agent.models.library import open_model
from agent.optimise.evaluation.listening import AFTER_S, LEAD_S, THRESHOLDS, open_listener
from agent.optimise.evaluation.sound_data import Recording, read_sounds

WAKE, OTHERS = "wakeword/alexa", ("computer", "jarvis", "smart_mirror", "snowboy", "view_glass")
_TRIED = (0.5, 0.8, 0.97)
_NOISE = 8.0
_RATE_HZ = 16_000
_QUICK = 20
_MINUTES, _MINUTES_QUICK = 6, 3
"""Minutes of the longer of two recordings, of which cost and memory are the difference."""
TARGETS = {
    "alexa_agreement": "= 1",
    "digits_agreement": "= 1",
    "curve_agreement": ">= 0.99",
    "boxes_difference": "<= 0.002",
    "mota_difference": "<= 0.005",
    "idf1_difference": "<= 0.001",
    "cpu_s_per_hour": "<= 120",
    "memory_mb_per_hour": "<= 40",
}


def main() -> None:
    given = arguments()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wake_words(given, folder)
        spoken_digits(given, folder)
        figures |= words("alexa", WAKE, folder / "alexa", [folder / "others", folder / "noise"])
        figures |= words("digits", "small-speech", folder / "digits", [folder / "held_out"])
        figures["curve_agreement"] = curve_agreement(WAKE, folder / "alexa", [folder / "others"])
        figures |= tracked(given, folder)
        figures |= cost(folder, _MINUTES_QUICK if given.quick else _MINUTES)
    meets = all(
        (
            figures["alexa_agreement"] == figures["digits_agreement"] == 1.0,
            figures["curve_agreement"] >= 0.99,
            figures["boxes_difference"] <= 0.002,
            figures["mota_difference"] <= 0.005,
            figures["idf1_difference"] <= 0.001,
            figures["cpu_s_per_hour"] <= 120,
            figures["memory_mb_per_hour"] <= 40,
        )
    )
    common.conclude("apps/evaluate", figures, TARGETS, meets)


def arguments() -> argparse.Namespace:
    parser = common.arguments(__doc__ or "")
    common.data_argument(parser)
    return parser.parse_args()


def wake_words(given: argparse.Namespace, folder: Path) -> None:
    """Write the wake words, other words and noises, each to its folder."""
    every = _QUICK if given.quick else 1
    found = list(_sound.archived(common.needed(given.data / "wakewords_dev.tar"), _RATE_HZ))
    for number, (word, sound) in enumerate(found[::every]):
        top = "alexa/alexa" if word == "alexa" else f"others/{word}"
        write(folder / top / f"{number}.wav", sound, _RATE_HZ)
    noises = list(_sound.archived(common.needed(given.data / "esc10_dev.tar"), _RATE_HZ))
    for number, (kind, sound) in enumerate(noises[::every]):
        write(folder / "noise" / kind / f"{number}.wav", sound, _RATE_HZ)


def spoken_digits(given: argparse.Namespace, folder: Path) -> None:
    """Write digits, words and noises that training did not have, and other speech that is here."""
    every = _QUICK if given.quick else 1
    said = _digits.spoken_digits(given.data, learn=True) + _digits.spoken_digits(given.data, learn=False)
    for number, (digit, speaker, sound) in enumerate(said[::every]):
        write(folder / "digits" / digit / speaker / f"{number}.wav", sound, _digits.RATE)
    speech = [*_speech.acted(_digits.RATE, 7, 20), *_speech.prompts(_digits.RATE, 5), *_speech.read(_digits.RATE)]
    others = {"word": _digits.unknown(given.data), "noise": _digits.noises(given.data), "speech": speech}
    for kind, sounds in others.items():
        for number, sound in enumerate(sounds[::every]):
            write(folder / "held_out" / kind / f"{number}.wav", sound, _digits.RATE)


def write(path: Path, sound: np.ndarray, rate_hz: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound, rate_hz)


def words(name: str, model: str, data: Path, background: Sequence[Path]) -> dict[str, float]:
    """What the command tells, and how often it agrees with a count by hand."""
    args = [value for one in background for value in ("--background", one)]
    told = vedette(model, data, *args)
    in_use = told["in_use"]
    counted = by_hand(model, data, background)
    agreed = counted[:2] == (in_use["missed"], in_use["alarms"]) and abs(counted[2] - told["hours"]) < 1e-6
    print(
        f"{name}: {in_use['missed']} of {in_use['said']} missed, {in_use['alarms']} false alarms in "
        f"{told['hours']:.3f} h; by hand {counted[0]} and {counted[1]}",
        flush=True,
    )
    return {
        f"{name}_words": float(in_use["said"]),
        f"{name}_told_rightly": told["value"],
        f"{name}_missed": in_use["reject_rate"],
        f"{name}_hours": told["hours"],
        f"{name}_false_alarms_per_h": in_use["alarms_per_hour"],
        f"{name}_false_alarms_at_most": in_use["alarms_interval"][1],
        f"{name}_agreement": float(agreed),
    }


def vedette(model: str, data: Path, *args: object) -> Any:
    """Call `vedette optimise evaluate` and return what it prints."""
    command = [sys.executable, "-m", "agent", "optimise", "evaluate", model, str(data), *map(str, args), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=common.ROOT)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    return json.loads(done.stdout)


def by_hand(model: str, data: Path, background: Sequence[Path]) -> tuple[int, int, float]:
    """Missed words, false alarms and hours, counted on the events of the daemon's class."""
    missed = alarms = 0
    seconds = 0.0
    for path in sorted(data.rglob("*.wav")):
        word, sound = path.relative_to(data).parts[0], decoded(model, path)
        length = len(sound) / rate_of(model)
        told = [label for label, at in events(model, sound) if 0.0 <= at <= length + AFTER_S + 1e-6]
        missed += word not in [label.casefold() for label in told]
    for folder in background:
        for path in sorted(folder.rglob("*.wav")):
            sound = decoded(model, path)
            alarms += len(events(model, sound))
            seconds += soundfile.info(path).duration
    return missed, alarms, seconds / 3600.0


def rate_of(model: str) -> int:
    audio = open_model(model).manifest.audio
    assert audio is not None
    return audio.rate_hz


def decoded(model: str, path: Path) -> np.ndarray:
    return _sound.decoded(path.read_bytes(), rate_of(model))


def events(model: str, sound: np.ndarray, threshold: float | None = None) -> list[tuple[str, float]]:
    """Label and second of each event in a recording between two stretches of quiet."""
    config = StreamConfig(
        "mic:default",
        model,
        threads=1,
        decode=DecodeConfig(score_threshold=threshold),
        cascade=CascadeConfig(budget_ms=1e6),
    )
    opened = open_model(model)
    hearing = AudioPerception("bench", config, opened)
    if (verifier := open_verifier(opened, open_session)) is not None:
        hearing.verify_with(verifier)
    rate = hearing.rate_hz
    random = np.random.default_rng(0)
    quiet = [(random.standard_normal(round(s * rate)) * _NOISE).astype(np.int16) for s in (LEAD_S, AFTER_S)]
    found = []
    chunk = None
    for chunk in _sound.chunks(np.concatenate((quiet[0], sound, quiet[1])), rate):
        found += hearing.process(chunk).events
    assert chunk is not None
    found += hearing.finish(chunk.captured_ns, chunk.captured_at, "ended")
    hearing.close()
    begin = _sound.BEGIN.timestamp() + LEAD_S
    return [(one.track.label, one.track.last_seen.timestamp() - begin) for one in found]


def curve_agreement(model: str, data: Path, background: Sequence[Path]) -> float:
    """Share of recordings of which the curve has as many words and alarms as hearing them at that threshold."""
    opened = open_model(model)
    with open_listener(opened) as listener:
        examples = read_sounds(data, background, listener.words, listener.ignored)
        recordings: tuple[Recording, ...] = examples.recordings[::3]
        curves = [listener.hear(one).curve for one in recordings]
    agreed = []
    for threshold in _TRIED:
        place = THRESHOLDS.index(threshold)
        with open_listener(opened, threshold=threshold) as listener:
            for one, curve in zip(recordings, curves, strict=True):
                again = listener.hear(one).curve[place]
                agreed.append(again == curve[place])
    return float(np.mean(agreed))


def tracked(given: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Figures of the tracker on published detections, by motmetrics and by TrackEval."""
    with tarfile.open(common.needed(given.data / "mot_dev.tar.xz")) as archive:
        archive.extractall(folder / "mot", filter="data")
    path = folder / "mot" / "MOT15"
    sequences = read_clips(path / "TUD-Stadtmitte" if given.quick else path)
    figures: dict[str, float] = {}
    differences = []
    for every in (1, 3):
        begun = time.process_time()
        one = tracking_figures([list(track(sequence, every)) for sequence in sequences])
        spent = time.process_time() - begun
        other = by_trackeval(sequences, every)
        wrong = abs(one["FN"] - other["CLR_FN"]) + abs(one["FP"] - other["CLR_FP"])
        differences.append(
            (abs(one["MOTA"] - other["MOTA"]), abs(one["IDF1"] - other["IDF1"]), wrong / one["boxes"])
        )
        name = "mot15" if every == 1 else f"mot15_every_{every}"
        figures |= {f"{name}_mota": one["MOTA"], f"{name}_idf1": one["IDF1"], f"{name}_switches": one["IDs"]}
        figures[f"{name}_trackeval_switches"] = float(other["IDSW"])
        print(
            f"{name}: MOTA {one['MOTA']:.3f} IDF1 {one['IDF1']:.3f} switches {one['IDs']:.0f}; TrackEval "
            f"{other['MOTA']:.3f} {other['IDF1']:.3f} {other['IDSW']:.0f}; {spent / one['frames'] * 1e3:.2f} ms "
            "of processor time a picture",
            flush=True,
        )
    most = np.max(differences, axis=0).tolist()
    return figures | dict(zip(("mota_difference", "idf1_difference", "boxes_difference"), most, strict=True))


def by_trackeval(sequences: Sequence[Any], every: int) -> dict[str, float]:
    """MOTA, IDF1 and switches by TrackEval 1.3.0, which shares no code with motmetrics."""
    from trackeval.metrics import CLEAR, Identity

    settings = {"PRINT_CONFIG": False}
    metrics = {"clear": CLEAR(settings), "identity": Identity(settings)}
    rows: dict[str, dict[str, Any]] = {name: {} for name in metrics}
    for one in sequences:
        frames = list(track(one, every))
        idents = sorted({ident for f in frames for ident in f.truth.ids.tolist()})
        truth = {ident: place for place, ident in enumerate(idents)}
        data = {
            "gt_ids": [np.array([truth[i] for i in f.truth.ids.tolist()], int) for f in frames],
            "tracker_ids": [f.ids for f in frames],
            "similarity_scores": [shared(f.truth.boxes, f.boxes) for f in frames],
            "num_gt_ids": len(truth),
            "num_tracker_ids": 1 + max((int(f.ids.max()) for f in frames if len(f.ids)), default=-1),
            "num_gt_dets": sum(len(f.truth.ids) for f in frames),
            "num_tracker_dets": sum(len(f.ids) for f in frames),
            "num_timesteps": len(frames),
        }
        for name, metric in metrics.items():
            rows[name][one.name] = metric.eval_sequence(data)
    clear, identity = (metric.combine_sequences(rows[name]) for name, metric in metrics.items())
    told = {key: float(clear[key]) for key in ("MOTA", "IDSW", "CLR_FN", "CLR_FP")}
    return told | {"IDF1": float(identity["IDF1"])}


def shared(truth: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes, a pair after the other."""
    found = np.zeros((len(truth), len(boxes)))
    for i, (a0, b0, a1, b1) in enumerate(truth.tolist()):
        for j, (c0, d0, c1, d1) in enumerate(boxes.tolist()):
            across, down = max(0.0, min(a1, c1) - max(a0, c0)), max(0.0, min(b1, d1) - max(b0, d0))
            both = across * down
            found[i, j] = both / max(1e-12, (a1 - a0) * (b1 - b0) + (c1 - c0) * (d1 - d0) - both)
    return found


def cost(folder: Path, longer: int) -> dict[str, float]:
    """Processor time for an hour of sound in which a word is said every two seconds, and memory."""
    sounds = [soundfile.read(path, dtype="int16")[0] for path in sorted((folder / "others").rglob("*.wav"))]
    minute = np.resize(np.concatenate(sounds), 60 * _RATE_HZ)
    used: dict[int, dict[str, float]] = {}
    for minutes in (1, longer):
        path = folder / "long" / str(minutes)
        write(path / "sound.wav", np.tile(minute, minutes), _RATE_HZ)
        used[minutes] = common.child("apps.evaluate:measured", str(folder / "alexa"), str(path))
    more = {key: (used[longer][key] - used[1][key]) * 60 / (longer - 1) for key in used[1]}
    return {"cpu_s_per_hour": more["cpu_s"], "memory_mb_per_hour": more["peak_mb"]}


def measured(words_: str, background: str) -> None:
    """Hear one recording of other sound; print processor time and the most memory."""
    with open_listener(open_model(WAKE)) as listener:
        examples = read_sounds(Path(words_), [Path(background)], listener.words, listener.ignored)
        begun = time.process_time() + children_s()
        for one in examples.recordings:
            if one.counts_time:
                listener.hear(one)
    spent = time.process_time() + children_s() - begun
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    print(json.dumps({"cpu_s": spent, "peak_mb": peak}))


def children_s() -> float:
    """Processor time of processes that have ended, s: for root, the model runs in one."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
