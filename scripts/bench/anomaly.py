"""Measure a model of anomalies on castings: `vedette optimise anomaly` on the bundled backbone.

The castings are split in two halves by looks, since rotated copies of one are in the data. The sound ones of one
half are learned from; all that is measured is on those of the other half and on broken ones, none of which was
learned from; then the halves change places. AUROC: the share of pairs of a sound and a broken casting that the
score puts in order. Time: the model against its bare backbone, in turns, one thread.

`by_10` and the like are an operating point chosen on so many broken castings of the half that is learned from:
the least score among them is the threshold. Shares are those of the other half, means of many draws.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import common
import numpy as np
from numpy.typing import NDArray
from shrink import CASTINGS, castings_of, folds_of

from agent.compute.decode.maps import picture_score
from agent.compute.manifest import Manifest, Model, OutputManifest
from agent.models.library import open_whole_model
from agent.optimise.anomaly.file import AnomalySettings, make_anomaly_model
from agent.optimise.anomaly.memory import roc_area
from agent.optimise.data import Examples, read_examples
from agent.optimise.evaluate import open_content, outputs_of

HALF = np.isin(np.arange(10), (0, 1, 4, 5, 8, 9))
"""Folds of the first half: neighbours, whose castings look most alike, are in the same one but for their ends."""
AREA, SLOWER = 0.95, 1.2
MAKER = common.ROOT / "scripts" / "build_models" / "inspection"
FLOAT = common.ROOT / "build" / "models" / "inspection_float.tflite"
FALSE_ALARMS = (0.01, 0.05)
FEW, DRAWS = (10, 30, 100), 300


class Castings(NamedTuple):
    """Pictures: learned from, other sound ones, broken ones, and which of these are of the learned half."""

    sound: NDArray[Any]
    others: NDArray[Any]
    broken: NDArray[Any]
    known: NDArray[np.bool_]


def main() -> None:
    parser = common.arguments(__doc__ or "")
    common.data_argument(parser)
    args = parser.parse_args()
    castings, broken = castings_of(common.needed(args.data / CASTINGS))
    halves = HALF[folds_of(castings, broken)]
    pictures = np.stack([one[..., ::-1] for one in castings])
    backbone = open_whole_model("inspection")
    figures: dict[str, float] = {}
    for number, learned in enumerate((halves,) if args.quick else (halves, ~halves)):
        sound, known = pictures[learned & (broken == 0)], learned[broken == 1]
        others, faulty = pictures[~learned & (broken == 0)], pictures[broken == 1]
        parts = Castings(sound, *(one[:: 3 if args.quick else 1] for one in (others, faulty, known)))
        figures |= {f"half{number + 1}_{name}": value for name, value in measure(backbone, parts).items()}
        if not args.quick and number == 0 and (reference := float_model(backbone)) is not None:
            whole = measure(reference, parts)
            figures["float_auroc"] = whole["auroc"]
    areas = [value for name, value in figures.items() if name.endswith("_auroc") and name.startswith("half")]
    figures["auroc"] = float(np.mean(areas))
    figures["time_ratio"] = max(value for name, value in figures.items() if name.endswith("time_ratio"))
    meets = figures["auroc"] >= AREA and figures["time_ratio"] <= SLOWER
    common.conclude("anomaly", figures, {"auroc": f">= {AREA}", "time_ratio": f"<= {SLOWER}"}, meets)


def measure(backbone: Model, parts: Castings) -> dict[str, float]:
    """Figures of a model learned from sound castings, on other sound ones and on broken ones."""
    found, scores = dict[str, float](), list[NDArray[np.float32]]()
    for share in FALSE_ALARMS:
        made = make_anomaly_model(
            backbone, examples(parts.sound, backbone), settings=AnomalySettings(false_alarms=share)
        )
        if not scores:
            scores = [distances(made.content, backbone, one) for one in (parts.others, parts.broken)]
            before, after = (step.latency_ms for step in made.report.steps)
            assert before
            assert after
            found |= {"auroc": roc_area(*scores), "time_ratio": after / before, "ms": after}
        limit = made.keys["output"]["options"]["limit"]
        normal, faulty = (part >= limit for part in scores)
        found |= {f"false_alarms_{share:g}": float(np.mean(normal)), f"found_{share:g}": float(np.mean(faulty))}
    found |= chosen(scores[0], scores[1][parts.known], scores[1][~parts.known])
    told = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
    print(
        f"{len(parts.sound)} sound castings learned from, {len(scores[0])} and {len(scores[1])} measured: {told}",
        flush=True,
    )
    return found


def chosen(sound: NDArray[Any], known: NDArray[Any], new: NDArray[Any]) -> dict[str, float]:
    """Shares of sound and of new broken castings at the least score among a few known broken ones."""
    random, found = np.random.default_rng(0), dict[str, float]()
    for count in FEW:
        limits = [random.choice(known, count, replace=False).min() for _ in range(DRAWS)]
        for name, scores in (("false_alarms", sound), ("found", new)):
            found[f"{name}_by_{count}"] = float(np.mean([scores >= limit for limit in limits]))
    return found


def examples(pictures: NDArray[Any], backbone: Model) -> Examples:
    """Pictures in RGB as the step reads them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "castings.npz")
        np.savez(path, x=pictures)
        return read_examples(path, backbone)


def distances(content: bytes, backbone: Model, pictures: NDArray[Any]) -> NDArray[np.float32]:
    """What each picture is judged by."""
    manifest = Manifest(
        "castings", OutputManifest("anomaly", options={"limit": 1.0}), input=backbone.manifest.input
    )
    with open_content(content, manifest) as session:
        runs = outputs_of(session, examples(pictures, backbone))
        return np.array([picture_score(one[0][0, ..., 0]) for one in runs], np.float32)


def float_model(backbone: Model) -> Model | None:
    """The same backbone before it was quantised, made once; None: it cannot be made here."""
    if not FLOAT.is_file():
        done = subprocess.run([str(MAKER), "--float", str(FLOAT)], check=False)
        if done.returncode != 0:
            print(f"{MAKER.name} --float failed: INT8 is not compared with float", file=sys.stderr)
            return None
    return Model(FLOAT.read_bytes(), "", backbone.manifest, "inspection, float")


if __name__ == "__main__":
    main()
