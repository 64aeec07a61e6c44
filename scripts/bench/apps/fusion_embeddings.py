"""Whether a learned head of a fused event gains by embeddings of the picture, the sound and the text.

The staged scenes of `apps/fusion`: for each, the evidence of its three terms, and beside it the detector's
pooled features of the picture, the speech embedding of the utterance that is nearest to the keyword, or of the
longest, and the vector of the text. Each embedding is reduced to 8 or 16 numbers by the principal components of
one half of the scenes; a network of 16 hidden units learns from that half, with the weight decay that is best
there in five parts, and is judged on the other half with the threshold of those parts. Then the halves change
places. A source that is away is masked, and one in ten is masked at random while learning, as by
`agent.optimise.late_fusion.head`. The embeddings are there even where the detector or the keyword model found
nothing, which is more than events of a stream could carry.

Then scenes in which the evidence cannot tell, since it depends on how a picture looks or what a text means.
Looks: a casting is faulty, which no label of the detector says, and a text asks. Beside the embedding of the
picture the evidence of a state that was taught from 20, 60 or 120 pictures of each value; 300 scenes show about
150 of each. Texts: somebody is in view, and a text of another wording asks for one of the things in `_intents`.
Beside the vector of the text the evidence of three phrases behind `~`. Both come from the same embeddings.
"""

from __future__ import annotations

import random
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import _digits
import _intents
import common
import cv2
import numpy as np
import soxr
from numpy.typing import NDArray

from agent.comms.texts import decode_text
from agent.compute.hearing import AudioPerception
from agent.compute.infer.backends import open_session
from agent.compute.listening import UtterancePerception
from agent.compute.states import StateHead
from agent.compute.text_vectors.vectors import TextVectors
from agent.compute.track.fusion_odds import LOGIT_MAX, PER_TERM, features
from agent.compute.track.fusion_rule import Reading
from agent.compute.vision import VideoPerception
from agent.config import StreamConfig
from agent.models.catalogue import vectors_catalogue
from agent.models.fetch import fetch, file_name_of
from agent.models.library import open_model
from agent.models.text_vectors import convert_package
from agent.models.verification import open_verifier
from agent.optimise.late_fusion.recording import Recorded, to_moment
from agent.types import AudioChunk, Frame
from apps import fusion

Floats = NDArray[np.float64]
Truth = NDArray[np.bool_]
EMBEDDED = {"front": "picture", "mic": "sound", "gate": "text"}
LABELS = {"front": "person", "mic": fusion.WORD, "gate": "help"}
SIZES = (8, 16)
DECAYS = (1e-3, 1e-2, 1e-1)
FOLDS, HIDDEN, STEPS, UNKNOWN, SEEDS = 5, 16, 1000, 0.1, 3
FAR = 3.0
SHARE = 0.6
"""Share of scenes of which one condition is true."""
TAUGHT, CASTINGS = (20, 60, 120), 500
INTENTS, TEXTS_LEAST, FAINT = 4, 20, 0.2
RATE_HZ = 16_000


class Half(NamedTuple):
    """Scenes: evidence [n, terms × 3], truth [n], and the embeddings of each by source."""

    evidence: Floats
    truth: Truth
    embeddings: list[dict[str, Floats]]


def main() -> None:
    parser = common.arguments(__doc__ or "")
    common.data_argument(parser)
    parser.add_argument("--package", type=Path, help="wheel of the text vectors, if it is here already")
    parser.add_argument("--texts", type=Path, help="folder with the packages of texts; default: site-packages")
    parser.add_argument("--part", choices=("staged", "looks", "texts"), help="one part; default: all")
    given = parser.parse_args()
    count = 80 if given.quick else 300
    figures = {"scenes": 2.0 * count}
    if given.part in (None, "staged"):
        halves = [embedded(count, seed, given.data, text_vectors(given.package)) for seed in (0, 1)]
        for name, sources, size in variants(given.quick):
            figures |= both(name, halves, halves, sources, size)
    if given.part in (None, "looks") and not (given.quick and given.part is None):
        figures |= looks(given.data, count)
    if given.part in (None, "texts") and not (given.quick and given.part is None):
        figures |= texts(text_vectors(given.package), _intents.intents(given.texts), count)
    for name, value in figures.items():
        print(f"{name:24} {value:8.4f}")
    common.conclude("apps/fusion_embeddings", figures, {}, meets=True)


def both(
    name: str, tuning: Sequence[Half], judged: Sequence[Half], sources: Sequence[str] = (), size: int = 0
) -> dict[str, float]:
    """F1 and log loss, the means of both directions."""
    found = [judge(tuning[first], judged[1 - first], sources, size) for first in (0, 1)]
    score, loss = np.mean(found, 0)
    return {f"f1_{name}": float(score), f"log_loss_{name}": float(loss)}


def variants(quick: bool) -> list[tuple[str, tuple[str, ...], int]]:
    found: list[tuple[str, tuple[str, ...], int]] = [("evidence", (), 0)]
    for size in SIZES[:1] if quick else SIZES:
        found += [(f"{what}_{size}", (source,), size) for source, what in EMBEDDED.items()]
        found.append((f"all_{size}", tuple(EMBEDDED), size))
    return found


def text_vectors(package: Path | None) -> TextVectors:
    (entry,) = vectors_catalogue()
    if package is not None:
        return TextVectors(convert_package(package, entry))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, file_name_of(entry.url))
        fetch(entry.url, path, entry.sha256, size=entry.fetched_bytes)
        return TextVectors(convert_package(path, entry))


def embedded(count: int, seed: int, data: Path, vectors: TextVectors) -> Half:
    """Let the scenes of one half happen; see, hear and read them."""
    chance, material = random.Random(seed + 100), fusion.material(data, seed)
    vision = VideoPerception("front", fusion.STREAMS["front"], open_model("nanodet", "256"))
    digits = open_model("small-speech")
    verifier = open_verifier(digits, open_session)
    hearing = Overheard(AudioPerception("mic", fusion.STREAMS["mic"], digits, verifier=verifier))
    words = StreamConfig("mic:default", "speech-embedding", threads=1)
    listening = UtterancePerception("mic", words, open_model("speech-embedding"))
    rows, embeddings, made = [], [], fusion.scenes(count, seed)
    for number, scene in enumerate(made):
        at_s, found = fusion.START + number * fusion.SCENE_S, dict[str, Floats]()
        told = list(fusion.seen(vision, scene, material, at_s + 2.0 + chance.random() * 2.0, chance))
        if "front" not in scene.away:
            found["front"] = vision.embed((0.0, 0.0, 1.0, 1.0)).astype(np.float64)
        heard = list(fusion.heard(hearing, scene, material, number, at_s, chance))  # type: ignore[arg-type]
        told += heard
        if "mic" not in scene.away and (one := utterance(listening, hearing.taken(), heard)) is not None:
            found["mic"] = one
        told += fusion.sent(scene, at_s + 2.0 + chance.random() * 3.0, chance)
        if scene.text and "gate" not in scene.away:
            payload = scene.text % at_s if "%" in scene.text else scene.text
            found["gate"] = vectors.embed(decode_text(payload.encode()).text).astype(np.float64)
        rows.append(features([reading(told, scene, source) for source in fusion.SOURCES]))
        embeddings.append(found)
    return Half(np.array(rows), np.array([scene.is_situation for scene in made]), embeddings)


def looks(data: Path, count: int) -> dict[str, float]:
    """Figures of scenes in which a picture must look like a faulty casting, and a text ask."""
    pictures, halves = castings(data), list[Half]()
    for half in (0, 1):
        chance = random.Random(half)
        rows, truth, embeddings = [], [], list[dict[str, Floats]]()
        for _ in range(count):
            faulty, asks = chance.random() < SHARE, chance.random() < SHARE
            is_text_away, is_away = chance.random() < UNKNOWN, chance.random() < UNKNOWN
            one = chance.choice(pictures["faulty" if faulty else "fine"][half])
            rows.append(features([Reading(asks and not is_text_away, not is_text_away, 1.0)]))
            truth.append(faulty and asks)
            embeddings.append({} if is_away else {"front": one})
        halves.append(Half(np.array(rows), np.array(truth), embeddings))
    figures = both("looks_text_alone", halves, halves)
    for size in SIZES:
        figures |= both(f"looks_embedding_{size}", halves, halves, ("front",), size)
    for number in TAUGHT:
        heads = [StateHead({name: some[half][:number] for name, some in pictures.items()}) for half in (0, 1)]
        tuning = [with_state(halves[half], heads[half]) for half in (0, 1)]
        judged = [with_state(halves[half], heads[1 - half]) for half in (0, 1)]
        figures |= both(f"looks_taught_{number}", tuning, judged)
    return figures


def castings(data: Path) -> dict[str, list[NDArray[np.float32]]]:
    """Embeddings of faulty and fine castings, two halves of each [n, size]; of copies one half has all."""
    vision = VideoPerception("front", fusion.STREAMS["front"], open_model("nanodet", "256"))
    found: dict[str, list[Any]] = {"faulty": [], "fine": []}
    with tarfile.open(common.needed(data / "casting_dev.tar")) as archive:
        for member in sorted((one for one in archive if one.isfile()), key=lambda one: one.name):
            some = found["faulty" if "def_front" in member.name else "fine"]
            if len(some) == CASTINGS:
                continue
            content = archive.extractfile(member).read()  # type: ignore[union-attr]
            picture = np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR), np.uint8)
            at_ns = sum(map(len, found.values())) * fusion.SECOND
            vision.process(Frame(picture, "front", 0, at_ns, to_moment(at_ns), "bgr", at_ns))
            some.append(vision.embed((0.0, 0.0, 1.0, 1.0)))
    chance = np.random.default_rng(0)
    return {name: [chance.permutation(part) for part in np.array_split(some, 2)] for name, some in found.items()}


def with_state(half: Half, head: StateHead) -> Half:
    """A half with the evidence of a taught state beside its own."""
    rows = []
    for one in half.embeddings:
        answer = head.classify(one["front"].astype(np.float32)) if one else None
        is_faulty = answer is not None and answer.nearest == "faulty"
        score = 0.5 + answer.score / 2.0 if answer is not None else 0.0
        rows.append(features([Reading(is_faulty, answer is not None, score)]))
    return Half(np.hstack((half.evidence, np.array(rows))), half.truth, [{} for _ in rows])


def texts(vectors: TextVectors, made: dict[str, list[str]], count: int) -> dict[str, float]:
    """Figures of scenes in which somebody must be in view, and a text ask for one thing; means over things."""
    asked = [name for name, some in made.items() if len(some) >= 2 * TEXTS_LEAST][:INTENTS]
    found = []
    for name in asked:
        halves = [spoken(vectors, made, name, half, count) for half in (0, 1)]
        phrases = [np.stack([vectors.embed(one) for one in made[name][half::2][:3]]) for half in (0, 1)]
        tuning = [with_phrases(halves[half], phrases[half]) for half in (0, 1)]
        judged = [with_phrases(halves[half], phrases[1 - half]) for half in (0, 1)]
        figures = both("texts_phrases", tuning, judged)
        figures |= both(f"texts_embedding_{SIZES[-1]}", halves, halves, ("gate",), SIZES[-1])
        figures |= both(f"texts_phrases_and_embedding_{SIZES[-1]}", tuning, judged, ("gate",), SIZES[-1])
        found.append(figures)
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def spoken(vectors: TextVectors, made: dict[str, list[str]], asked: str, half: int, count: int) -> Half:
    """Scenes of one half of the texts, with somebody in view or not."""
    chance, others = random.Random(half), [some[half::2] for name, some in made.items() if name != asked]
    rows, truth, embeddings = [], [], []
    for _ in range(count):
        person, asks = chance.random() < SHARE, chance.random() < SHARE
        is_camera_away, is_away = chance.random() < UNKNOWN, chance.random() < UNKNOWN
        text = chance.choice(made[asked][half::2] if asks else chance.choice(others))
        rows.append(features([Reading(person and not is_camera_away, not is_camera_away, 0.7)]))
        truth.append(person and asks)
        embeddings.append({} if is_away else {"gate": vectors.embed(text).astype(np.float64)})
    return Half(np.array(rows), np.array(truth), embeddings)


def with_phrases(half: Half, phrases: NDArray[np.float32]) -> Half:
    """A half with the evidence of phrases behind `~` beside its own."""
    rows = []
    for one in half.embeddings:
        alike = phrases @ one["gate"] if one else np.zeros(len(phrases))
        rows.append(features([Reading(bool(one) and score >= FAINT, bool(one), float(score)) for score in alike]))
    return Half(np.hstack((half.evidence, np.array(rows))), half.truth, half.embeddings)


class Overheard:
    """Passes sound on, and keeps it."""

    def __init__(self, inner: AudioPerception) -> None:
        self._inner, self._chunks = inner, list[AudioChunk]()

    def process(self, chunk: AudioChunk) -> Any:
        self._chunks.append(chunk)
        return self._inner.process(chunk)

    def taken(self) -> list[AudioChunk]:
        chunks, self._chunks = self._chunks, []
        return chunks


def utterance(
    listening: UtterancePerception, chunks: Sequence[AudioChunk], heard: Sequence[Recorded]
) -> Floats | None:
    """The embedding of the utterance that is nearest to a keyword, else of the longest; None: there is none."""
    begin_ns = chunks[0].captured_ns
    samples = np.concatenate([chunk.samples for chunk in chunks]).astype(np.float32) / 32768.0
    sound = np.clip(soxr.resample(samples, _digits.RATE, RATE_HZ), -1.0, 1.0)
    written = (sound * 32767.0).astype(np.int16)
    found = []
    for first in range(0, len(written) - RATE_HZ // 10, RATE_HZ // 10):
        at_ns = begin_ns + round(first / RATE_HZ * 1e9)
        part = written[first : first + RATE_HZ // 10]
        listening.process(AudioChunk(part, RATE_HZ, "mic", first, at_ns, to_moment(at_ns)))
        found += listening.utterances
    listening.finish(at_ns, to_moment(at_ns), "ended")
    found += listening.utterances
    listening.reset()
    if not found:
        return None
    keywords = [one.evidence.from_ns for one in heard if one.evidence]
    if keywords:
        return min(found, key=lambda one: abs(one.ended_ns - keywords[0])).embedding.astype(np.float64)
    return max(found, key=lambda one: one.ended - one.began).embedding.astype(np.float64)


def reading(told: Sequence[Recorded], scene: fusion.Scene, source: str) -> Reading:
    """The reading of a source's term over a whole scene."""
    scores = [
        one.evidence.score
        for one in told
        if one.evidence and (one.evidence.source, one.evidence.label) == (source, LABELS[source])
    ]
    return Reading(bool(scores), source not in scene.away, max(scores, default=0.0))


def judge(tuning: Half, half: Half, sources: Sequence[str], size: int) -> tuple[float, float]:
    """F1 and log loss on one half of a head that was made on the other."""
    (x, groups), (judged, _) = inputs(tuning, tuning, sources, size), inputs(tuning, half, sources, size)
    parts = np.arange(len(x)) % FOLDS
    best: tuple[float, float, Floats] | None = None
    for decay in DECAYS:
        held_out = np.zeros(len(x))
        for part in range(FOLDS):
            is_held = parts == part
            net = learn(x[~is_held], tuning.truth[~is_held], groups, decay, 0)
            held_out[is_held] = predict(net, x[is_held])
        loss = log_loss(held_out, tuning.truth)
        if best is None or loss < best[0]:
            best = loss, decay, held_out
    assert best is not None
    threshold = max(np.arange(0.1, 0.95, 0.05), key=lambda one: f1(best[2] >= one, tuning.truth))
    nets = [learn(x, tuning.truth, groups, best[1], seed) for seed in range(SEEDS)]
    shares = [predict(net, judged) for net in nets]
    return (
        float(np.mean([f1(share >= threshold, half.truth) for share in shares])),
        float(np.mean([log_loss(share, half.truth) for share in shares])),
    )


def inputs(tuning: Half, half: Half, sources: Sequence[str], size: int) -> tuple[Floats, NDArray[np.int64]]:
    """What the network reads of a half, and the number of the group that each column is masked with."""
    terms = half.evidence.shape[1] // PER_TERM
    columns = [half.evidence / np.tile([1.0, 1.0, LOGIT_MAX], terms)]
    groups = np.repeat(np.arange(terms), PER_TERM)
    for number, source in enumerate(sources, terms):
        columns.append(reduced(tuning, half, source, size))
        groups = np.concatenate((groups, np.full(columns[-1].shape[1], number)))
    return np.hstack(columns), groups


def reduced(tuning: Half, half: Half, source: str, size: int) -> Floats:
    """Principal components of one half for another, and if there is an embedding, [n, size + 1]."""
    known = np.array([one[source] for one in tuning.embeddings if source in one])
    mean = known.mean(0)
    _, _, directions = np.linalg.svd(known - mean, full_matrices=False)
    spread = ((known - mean) @ directions[:size].T).std(0) + 1e-6
    made = np.zeros((len(half.embeddings), size + 1))
    for row, one in zip(made, half.embeddings, strict=True):
        if source in one:
            row[:size] = np.clip((one[source] - mean) @ directions[:size].T / spread, -FAR, FAR) / np.sqrt(size)
            row[size] = 1.0
    return made


def learn(x: Floats, y: Truth, groups: NDArray[np.int64], decay: float, seed: int) -> list[Floats]:
    """Adam on the logistic loss with weight decay, with whole groups of columns masked at random."""
    chance = np.random.default_rng(seed)
    net = [
        chance.standard_normal((x.shape[1], HIDDEN)) * np.sqrt(2.0 / x.shape[1]),
        np.zeros(HIDDEN),
        chance.standard_normal((HIDDEN, 1)) * np.sqrt(2.0 / HIDDEN),
        np.zeros(1),
    ]
    means, squares = [np.zeros_like(one) for one in net], [np.zeros_like(one) for one in net]
    for step in range(1, STEPS + 1):
        masked = x * (chance.random((len(x), groups.max() + 1)) >= UNKNOWN)[:, groups]
        hidden = np.maximum(masked @ net[0] + net[1], 0.0)
        wrong = (logistic((hidden @ net[2] + net[3])[:, 0]) - y)[:, None] / len(y)
        back = (wrong @ net[2].T) * (hidden > 0)
        slopes = [masked.T @ back + decay * net[0], back.sum(0), hidden.T @ wrong + decay * net[2], wrong.sum(0)]
        rate = 0.005 * (1.0 + np.cos(np.pi * step / STEPS))
        for number, slope in enumerate(slopes):
            means[number] = 0.9 * means[number] + 0.1 * slope
            squares[number] = 0.999 * squares[number] + 0.001 * np.square(slope)
            mean, square = means[number] / (1 - 0.9**step), squares[number] / (1 - 0.999**step)
            net[number] = net[number] - rate * mean / (np.sqrt(square) + 1e-8)
    return net


def predict(net: Sequence[Floats], x: Floats) -> Floats:
    return logistic((np.maximum(x @ net[0] + net[1], 0.0) @ net[2] + net[3])[:, 0])


def logistic(odds: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(odds, -30.0, 30.0))), np.float64)


def log_loss(shares: Floats, y: Truth) -> float:
    bounded = np.clip(shares, 1e-6, 1.0 - 1e-6)
    return float(-np.where(y, np.log(bounded), np.log(1.0 - bounded)).mean())


def f1(told: Truth, true: Truth) -> float:
    return float(2.0 * (told & true).sum() / max(1, told.sum() + true.sum()))


if __name__ == "__main__":
    main()
