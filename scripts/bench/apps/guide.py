"""The model guide against files, records and the benches beside its rows.

Size, estimated memory and predicted latency of each row are compared with the model's file: those of the
catalogue are pulled, `tiny` is built as the recorded runs left it. Estimated memory is compared with what a
process grows by. Accuracies are compared with the recorded figures, and with those that a bench prints if it runs
within a minute. With --quick nothing is pulled, and no bench is run.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
from board_network import Network
from board_predictor import known_boards, predict, work_of_variant
from board_work import Arithmetic, Work
from msgspec.structs import replace

from agent.compute.manifest import Manifest
from agent.compute.tflite.model import ModelFile
from agent.compute.tflite.read import read_modelfile
from agent.models.fetch import GuideModel, GuideVariant, guide
from agent.models.library import look_up

RECORDED = common.ROOT / "scripts" / "bench" / "optimise" / "recorded.json"
RUN = {
    "scripts/bench/run accuracy": ("--quick",),
    "scripts/bench/run apps/screening": ("--quick",),
    "scripts/bench/run apps/zoo": ("--quick",),
}
"""Commands that are run for their figures, with more arguments; others take longer."""
TOLERANCE = 0.0015
"""Of an accuracy: it has three digits."""
TINY = 128, 24, (48, 96, 192), 0.53
"""Side of the picture, channels of the stem and of the stages, and the share that pruning leaves of them."""


ARENA = 2.5
"""Memory of all computed tensors, as a multiple of those of the largest operation."""


def main() -> None:
    parser = common.arguments(__doc__ or "")
    common.data_argument(parser)
    given = parser.parse_args()
    wrong = [*here(), *tiny()]
    accuracies, off = recorded()
    if not given.quick:
        wrong += pulled()
        more, others = benches(given.data)
        accuracies, off = accuracies + more, off + others
    growth = memories()
    figures = {
        "models": float(len(guide().models)),
        "rows_wrong": float(len(wrong)),
        "accuracies_checked": float(accuracies),
        "accuracies_wrong": float(len(off)),
        "memory_least": min(growth),
        "memory_most": max(growth),
    }
    for one in [*wrong, *off]:
        print(one)
    targets = {"rows_wrong": "<= 0", "accuracies_wrong": "<= 0", "memory_*": "0.5 to 2 of what was measured"}
    meets = not wrong and not off and min(growth) >= 0.5 and max(growth) <= 2.0
    common.conclude("apps/guide", figures, targets, meets)


def here() -> Iterator[str]:
    """Compare the models that are bundled or installed with their files."""
    for entry in guide().models:
        if not entry.get or entry.task == "wakeword" or entry.name == "inspection":
            known = look_up(entry.name)
            yield from differences(entry, read_modelfile(known.content), known.manifest, known.size)


def differences(entry: GuideModel, file: ModelFile, manifest: Manifest, size: int) -> Iterator[str]:
    """Yield the rows of an entry that its file does not bear out, as they should be."""
    for row, variant in zip(entry.variants, manifest.variants, strict=True):
        graphs = tuple(file.graph(one.signature) for one in manifest.chain(variant.name))
        constants = {tensor.buffer: tensor.size for graph in graphs for tensor in graph.tensors}
        tensors = replace(file, subgraphs=graphs).least_memory
        memory = size + sum(constants.values()) + int(ARENA * tensors)
        yield from difference(entry, row, size, memory, work_of_variant(file, manifest, variant.name))


def difference(
    entry: GuideModel, row: GuideVariant, size: int, memory: int, work: dict[Arithmetic, Work]
) -> Iterator[str]:
    """Yield a row as it should be, if it differs."""
    right = replace(row, bytes=size, memory=memory, ms=latencies(work))
    if right != row:
        yield f"{entry.name}: expected {right}"


def latencies(work: dict[Arithmetic, Work]) -> dict[str, tuple[float, float, float]]:
    """Return the latencies of a row by board."""
    found = {}
    for name, board in known_boards().items():
        one, four = (predict(work, board, threads) for threads in (1, 4))
        found[name] = (rounded(one.ms), rounded(four.ms), rounded(four.high_ms))
    return found


def rounded(ms: float) -> float:
    return round(ms, 2 if ms < 10.0 else None)


def vedette(words: list[str]) -> None:
    """Call `vedette`."""
    command = [sys.executable, "-m", "agent", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=common.ROOT)
    if done.returncode:
        sys.exit(f"{shlex.join(command)}: {done.stderr}")


def tiny() -> Iterator[str]:
    """Compare `tiny`, whose channels are 0.53 of those of its network."""
    side, stem, widths, left = TINY
    net = Network(side)
    net.conv(round(stem * left), 3, 2)
    for width in (round(one * left) for one in widths):
        net.conv(width, 3, 2)
        net.conv(width, 3)
        net.moves(2.0)
    net.mean()
    net.full(net.channels, 2)
    size = round(json.loads(RECORDED.read_text("utf-8"))["tiny/castings"]["figures"]["int8_kb"] * 1e3)
    tensors = 2 * (side // 2) ** 2 * round(stem * left)
    memory = size + net.work.weights + net.work.small_weights + int(ARENA * tensors)
    entry = model("tiny")
    yield from difference(entry, entry.variants[0], size, memory, {"int8": net.work})


def model(name: str) -> GuideModel:
    """The entry of the guide."""
    return next(one for one in guide().models if one.name == name)


def pulled() -> Iterator[str]:
    """Pull the models of the catalogue, and compare what the guide tells of their files."""
    with tempfile.TemporaryDirectory() as name:
        for entry in guide().models:
            if entry.get and entry.get[0].startswith("vedette models pull"):
                vedette(["models", "pull", entry.name, "--to", name])
                known = look_up(str(Path(name, f"{entry.name}.tflite")))
                yield from differences(entry, read_modelfile(known.content), known.manifest, known.size)


def recorded() -> tuple[int, list[str]]:
    """Compare accuracies with recorded figures."""
    kept = json.loads(RECORDED.read_text("utf-8"))
    count, wrong = 0, list[str]()
    for entry in guide().models:
        if entry.recorded:
            number, found = compared(entry, kept[entry.recorded]["figures"])
            count, wrong = count + number, wrong + found
    return count, wrong


def compared(entry: GuideModel, figures: dict[str, Any]) -> tuple[int, list[str]]:
    """Return the number of accuracies of an entry, and those that figures do not bear out."""
    count, wrong = 0, list[str]()
    for row in entry.variants:
        for value, key in ((row.accuracy, row.figure), (row.noisy, row.noisy_figure)):
            if value is None:
                continue
            count += 1
            if abs(figures[key] - value) > TOLERANCE:
                wrong.append(
                    f"{entry.name} {row.name}: {figures[key]} by {entry.command}, and the guide tells {value}"
                )
    return count, wrong


def benches(data: Path) -> tuple[int, list[str]]:
    """Run the benches of `RUN` and compare what they print."""
    count, wrong = 0, list[str]()
    for entry in guide().models:
        if entry.command not in RUN:
            continue
        script = common.ROOT / "scripts" / "bench" / f"{entry.command.split()[-1]}.py"
        command = [sys.executable, str(script), *RUN[entry.command], "--data", str(data)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=common.ROOT)
        number, found = compared(entry, json.loads(done.stdout.splitlines()[-1])["figures"])
        count, wrong = count + number, wrong + found
    return count, wrong


def memories() -> list[float]:
    """Estimated memory of bundled picture models, as a share of what a process grows by, file and all."""
    folders = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(folders)
    ratios = []
    for entry, variant in (
        ("nanodet", "416"),
        ("nanodet", "256"),
        ("blood-cells", "full"),
        ("inspection", "full"),
    ):
        rows = {row.name or "full": row for row in model(entry).variants}
        grown = common.child("guide:grown", entry, variant)["bytes"] + look_up(entry).size
        ratios.append(rows[variant].memory / grown)
        print(f"{entry} {variant}: {rows[variant].memory / 1e6:.1f} MB estimated, {grown / 1e6:.1f} MB measured")
    return ratios


def grown(name: str, variant: str) -> None:
    """Print by how much this process grows as a model is opened and run once."""
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    from agent.models.library import open_model

    opened = open_model(name, "" if variant == "full" else variant)
    Interpreter(model_content=open_model("small-speech", "3").content, num_threads=1).allocate_tensors()
    before = resident()
    interpreter = Interpreter(model_content=opened.content, num_threads=1)
    signature = opened.manifest.variants[0].signature
    if signature:
        runner = interpreter.get_signature_runner(signature)
        details = runner.get_input_details().items()
        runner(**{key: np.ones(one["shape"], one["dtype"]) for key, one in details})
    else:
        interpreter.allocate_tensors()
        interpreter.invoke()
    print(json.dumps({"bytes": resident() - before}))


def resident() -> int:
    """Proportional set size of this process, bytes."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main()
