"""Search for networks on CIFAR-10 with two processes that share a study.

The target: a network that is more accurate and faster than the hand-made one, which is trained as long, by the
same recipe. Accuracies are those of the INT8 files on pictures that decided nothing in the search; the latencies
of the two are measured in turns. A search that was interrupted goes on. With --quick, two commands search on few
pictures for seconds.

With --kill, so many workers try all of eight networks on a study in PostgreSQL, and behind Optuna's own server;
six of them are killed at random, and as many begin anew. The accuracies must be those of a worker that is alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import _killed
import _recorded
import numpy as np
from _cifar import BUILD, Dataset, cifar
from common import ROOT, arguments, conclude, data_argument

from agent.optimise.evaluate import time_ms
from agent.optimise.report import read_report
from agent.optimise.search.candidate import INT8, Figures, beats, trial_folder

FOLDER = BUILD / "search"
SPACE = Path(__file__).with_name("_space.py")
HAND_MADE = {"first": 16, "second": 32, "third": 64, "block": "plain", "depth": 2, "stem": 1}
RANGES = {
    "first": "{low = 8, high = 32, step = 8}",
    "second": "{low = 16, high = 64, step = 16}",
    "third": "{low = 32, high = 128, step = 32}",
    "block": '{choices = ["plain", "residual", "separable"]}',
    "depth": "{low = 1, high = 3}",
    "stem": "{choices = [1, 2]}",
}
RECIPE = """
[search]
space = "{space}:build"
mean = 121.0
std = 64.0
rungs = {rungs}
[search.parameters]
{parameters}
[train]
batch = {batch}
learning_rate = 0.5
[data]
path = "{data}"
held_out = 0.2
"""


def write_recipe(name: str, ranges: dict[str, str], data: Path, rungs: list[float], batch: int) -> Path:
    """Write a recipe into the folder of the bench, and return its path."""
    path = FOLDER / f"{name}.toml"
    parameters = "\n".join(f"{key} = {value}" for key, value in ranges.items())
    text = RECIPE.format(space=_relative(SPACE), rungs=rungs, parameters=parameters, batch=batch, data=data.name)
    path.write_text(text, encoding="utf-8")
    return path


def _relative(path: Path) -> str:
    return "../" * len(FOLDER.relative_to(ROOT).parts) + str(path.relative_to(ROOT))


def write_data(pictures: Dataset, name: str, every: int) -> Path:
    """Write some of the pictures as a `.npz`."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.npz"
    parts = ((pictures.pictures, pictures.test_pictures), (pictures.labels, pictures.test_labels))
    arrays = [np.concatenate([part[::every] for part in pair]) for pair in parts]
    np.savez(path, x=arrays[0], y=arrays[1])
    return path


def begin(recipe: Path, *words: str, study: str = "", **more: Any) -> subprocess.Popen[str]:
    """Start a search whose study has the recipe's name, or another place."""
    command = [sys.executable, "-m", "agent", "optimise", "search", str(recipe), "--json", *words]
    command += ["--study", study or str(recipe.with_suffix(""))]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, **more)


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The study as a search prints it."""
    out = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"a search ended with {process.returncode}")
    found: dict[str, Any] = json.loads(out)
    return found


def properties(found: dict[str, Any]) -> dict[str, float]:
    """What must be so for each search, as numbers."""
    done = {one["number"]: _figures(one) for one in found["trials"] if one["state"] == "complete"}
    begun = [one for one in found["trials"] if one["parameters"]]
    front = [done[number].values for number in found["front"]]
    return {
        "trials": len(found["trials"]),
        "trained_to_the_end": len(done),
        "stopped": sum(one["state"] == "stopped" for one in found["trials"]),
        "failed": sum(one["state"] == "failed" for one in found["trials"]),
        "on_the_front": len(front),
        "front_beaten": sum(beats(one.values, other) for one in done.values() for other in front),
        "workers": len({one["worker"] for one in found["trials"] if one["state"] in ("complete", "stopped")}),
        "repeated": len(begun) - len({json.dumps(one["parameters"]) for one in begun}),
    }


def _figures(one: dict[str, Any]) -> Figures:
    return Figures(one["accuracy"], one["latency_ms"], one["size"])


SOUND = {"front_beaten": "= 0", "repeated": "= 0", "failed": "= 0", "workers": ">= 2"}


def is_sound(figures: dict[str, float]) -> bool:
    """If the properties are as they must be."""
    faults = figures["front_beaten"] + figures["repeated"] + figures["failed"]
    return faults == 0 and figures["workers"] >= 2 and figures["on_the_front"] >= 1


def quick(pictures: Dataset) -> None:
    """Search on few pictures, by two commands at once."""
    data = write_data(pictures, "few", 100)
    ranges = {
        **RANGES,
        "first": "{choices = [4, 8]}",
        "second": "{choices = [8, 16]}",
        "third": "{choices = [16]}",
    }
    recipe = write_recipe("quick", ranges, data, [1.0, 2.0], 64)
    journal = recipe.with_suffix("") / "study.journal"
    journal.unlink(missing_ok=True)
    running = [begin(recipe, "--for", "20s") for _ in range(2)]
    for one in running:
        result(one)
    figures = properties(result(begin(recipe, "--for", "0.001s")))
    targets: dict[str, str] = dict(SOUND)
    meets = is_sound(figures)
    for kept in _recorded.show("search/cifar").values():
        verdict = {f"recorded_{key}": float(value) for key, value in kept.items() if key in TARGETS}
        figures |= verdict
        targets |= {f"recorded_{key}": target for key, target in TARGETS.items()}
        meets = meets and wins(kept)
    conclude("optimise/search", figures, targets, meets)


TARGETS = {"accuracy_gained": "> 0", "latency_ratio": "< 1"}


def wins(figures: dict[str, float]) -> bool:
    """If a network that was found is better than the hand-made one in both."""
    return figures["accuracy_gained"] > 0 and figures["latency_ratio"] < 1


def measure(pictures: Dataset, given: Any) -> dict[str, float]:
    """Search, train the hand-made network, and compare."""
    data = write_data(pictures, "cifar", 1)
    rungs = [1.0, 3.0, 9.0]
    fixed = {name: f"{{choices = [{json.dumps(value)}]}}" for name, value in HAND_MADE.items()}
    hand = write_recipe("hand-made", fixed, data, rungs[-1:], 256)
    recipe = write_recipe("cifar", RANGES, data, rungs, 256)
    base = result(begin(hand, "--trials", "1"))["trials"][0]
    running = [begin(recipe, "--for", f"{given.minutes}m") for _ in range(given.workers)]
    found = [result(one) for one in running][-1]
    figures = properties(found)
    chosen = best(found, base)
    return figures | compare(recipe.with_suffix(""), chosen, hand.with_suffix(""), int(base["number"]))


def kill(pictures: Dataset, workers: int) -> None:
    """Search with workers that are killed, and end with the targets."""
    data, ranges = write_data(pictures, "few", 100), dict(RANGES)
    ranges |= {"first": "{choices = [4, 8]}", "second": "{choices = [8, 16]}", "third": "{choices = [16, 24]}"}
    ranges |= {"block": '{choices = ["plain"]}', "depth": "{choices = [1]}", "stem": "{choices = [1]}"}
    recipe, figures = write_recipe("killed", ranges, data, [4.0], 64), dict[str, float]()
    with tempfile.TemporaryDirectory() as folder:
        wanted = accuracies(result(begin(recipe, study=f"{folder}/alone")))
        figures["networks"] = len(wanted)
        for name, server in (("postgresql", _killed.postgresql), ("grpc", _killed.grpc)):
            with server() as study:
                told, words = {"stderr": subprocess.DEVNULL}, ("--files", f"{folder}/{name}")
                killed = _killed.until_the_end(lambda: begin(recipe, *words, study=study, **told), workers)  # noqa: B023
                found = result(begin(recipe, *words, study=study))
            differ = {one for one in wanted if accuracies(found).get(one) != wanted[one]}
            figures |= {f"{name}_{key}": value for key, value in properties(found).items()}
            figures |= {f"{name}_killed": killed, f"{name}_differ": len(differ)}
            print(f"{name}: {killed} killed, {len(found['trials'])} trials, {len(differ)} differ", flush=True)
    targets = {
        f"{name}_{key}": target
        for name in ("postgresql", "grpc")
        for key, target in {"killed": f">= {_killed.KILLS}", "differ": "== 0", "failed": "== 0"}.items()
    }
    conclude("optimise/search", figures, targets)


def accuracies(found: dict[str, Any]) -> dict[str, float]:
    """Accuracy of each network that was trained to the end."""
    done = (one for one in found["trials"] if one["state"] == "complete")
    return {json.dumps(one["parameters"], sort_keys=True): one["accuracy"] for one in done}


def best(found: dict[str, Any], base: dict[str, Any]) -> int:
    """The most accurate on the front that is as fast as another network, on the pictures of the comparison.

    If none is, the most accurate.
    """
    front = [one for one in found["trials"] if one["number"] in found["front"]]
    fast = [one for one in front if one["latency_ms"] < base["latency_ms"]] or front
    return int(max(fast, key=lambda one: float(one["accuracy"]))["number"])


def compare(study: Path, number: int, hand: Path, hand_number: int) -> dict[str, float]:
    """Accuracy on unseen pictures, and latency in turns, of a trial and of the hand-made network."""
    files = [trial_folder(place, at) / INT8 for place, at in ((study, number), (hand, hand_number))]
    one, other = (read_report(file.with_suffix(".report.json")).steps[0] for file in files)
    scores = [found.score or 0.0 for found in (one, other)]
    times = time_ms([file.read_bytes() for file in files], rounds=60)
    print("; ".join(one.notes))
    return {
        "accuracy": scores[0],
        "hand_made_accuracy": scores[1],
        "accuracy_gained": scores[0] - scores[1],
        "latency_ms": times[0],
        "hand_made_latency_ms": times[1],
        "latency_ratio": times[0] / times[1],
        "size_kB": one.size / 1e3,
        "hand_made_size_kB": other.size / 1e3,
    }


def main() -> None:
    parser = arguments(__doc__ or "")
    data_argument(parser)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kill", action="store_true", help="kill workers at random, see above")
    parser.add_argument("--record", action="store_true", help="keep the figures in recorded.json")
    given = parser.parse_args()
    pictures = cifar(given.data)
    if given.kill:
        kill(pictures, given.workers)
    if given.quick:
        quick(pictures)
    figures = measure(pictures, given)
    if given.record:
        _recorded.record("search/cifar", figures)
    conclude("optimise/search", figures, SOUND | TARGETS, is_sound(figures) and wins(figures))


if __name__ == "__main__":
    main()
