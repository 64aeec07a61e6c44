"""The model guide against what the commands beside its rows give.

For every task and three boards, with --quick one, the command of each row's latency is run and must give the
latency of the row, and the TOML must be a configuration that the daemon takes. File sizes, operations and tensors
of models that are not here are compared with their files: those of the catalogue are pulled, `tiny` is built as
the recorded runs left it. Estimated memory is compared with what a process grows by. Accuracies are compared with
the recorded figures, and with those that a bench prints if it runs within a minute. With --quick nothing is
pulled, and no bench is run.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import msgspec

sys.path.append(str(common.ROOT / "scripts" / "build_models"))
from board_network import Network

from agent.compute.tflite.read import read_modelfile
from agent.compute.tflite.work import Arithmetic, Work, work_of
from agent.config.load import parse
from agent.models.library import look_up
from agent.models.recommend import TASKS, GuideModel, Recommendation, known_models, recommend

BOARDS = ("pi4b", "pi5", "sd865")
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


def main() -> None:
    parser = common.arguments(__doc__ or "")
    common.data_argument(parser)
    given = parser.parse_args()
    wrong = [*latencies(BOARDS[:1] if given.quick else BOARDS), *tiny()]
    checked = len(known_models())
    accuracies, off = recorded()
    if not given.quick:
        wrong += pulled()
        more, others = benches(given.data)
        accuracies, off = accuracies + more, off + others
    growth = memories()
    figures = {
        "models": float(checked),
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


def latencies(boards: Sequence[str]) -> list[str]:
    """Run the command of each row whose model is here, and parse its TOML; return what differs."""
    wrong = []
    for task in TASKS:
        for board in boards:
            for row in recommend(task, board):
                if row.toml:
                    parse(row.toml, "the guide")
                if row.prediction is None or (row.get and row.model != "inspection"):
                    continue
                command = row.bench.replace("/opt/models/castings.tflite", row.model)
                wrong += told(row, command)
    return wrong


def told(row: Recommendation, command: str) -> list[str]:
    """Run the command of a row, and return what differs from the row."""
    assert row.prediction is not None
    found = json.loads(vedette([*shlex.split(command)[1:], "--json"]))
    latency = found["variants"][0]["predictions"][row.prediction.threads - 1]["ms"]
    if abs(latency / row.prediction.ms - 1) < 1e-6:
        return []
    return [f"{command}: {latency} ms, and the row tells {row.prediction.ms}"]


def vedette(words: list[str]) -> str:
    """Call `vedette` and return what it prints."""
    command = [sys.executable, "-m", "agent", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=common.ROOT)
    if done.returncode:
        sys.exit(f"{shlex.join(command)}: {done.stderr}")
    return done.stdout


def tiny() -> list[str]:
    """Compare the work of `tiny`, whose channels are 0.53 of those of its network."""
    side, stem, widths, left = TINY
    net = Network(side)
    net.conv(round(stem * left), 3, 2)
    for width in (round(one * left) for one in widths):
        net.conv(width, 3, 2)
        net.conv(width, 3)
        net.moves(2.0)
    net.mean()
    net.full(net.channels, 2)
    kept = json.loads(RECORDED.read_text("utf-8"))["tiny/castings"]["figures"]
    tensors = 2 * (side // 2) ** 2 * round(stem * left)
    return differences(model("tiny"), {"int8": net.work}, round(kept["int8_kb"] * 1e3), tensors)


def model(name: str) -> GuideModel:
    """The entry of the guide."""
    return next(one for one in known_models() if one.name == name)


def differences(entry: GuideModel, work: dict[Arithmetic, Work], size: int, tensors: int) -> list[str]:
    """Return what an entry of the guide tells wrongly, with what is right."""
    if (entry.work, entry.bytes, entry.tensors) == (work, size, tensors):
        return []
    counts = {kind: {k: v for k, v in msgspec.structs.asdict(one).items() if v} for kind, one in work.items()}
    tables = [f"{kind} = {{ {', '.join(f'{k} = {v}' for k, v in one.items())}" for kind, one in counts.items()]
    inner = ", ".join(f"{table} }}" for table in tables)
    return [f'name = "{entry.name}"\nbytes = {size}\ntensors = {tensors}\nwork = {{ {inner} }}']


def pulled() -> list[str]:
    """Pull the models of the catalogue, and compare what the guide tells of their files."""
    wrong = []
    with tempfile.TemporaryDirectory() as name:
        for entry in known_models():
            if not entry.get or not entry.get[0].startswith("vedette models pull"):
                continue
            vedette(["models", "pull", entry.name, "--to", name])
            path = Path(name, f"{entry.name}.tflite")
            wrong += file_of(entry, path)
            for row in recommend(entry.task, BOARDS[0]):
                if row.model == entry.name:
                    wrong += told(row, row.bench.replace(entry.file, str(path)))
    return wrong


def file_of(entry: GuideModel, path: Path) -> list[str]:
    """Compare an entry with a model file."""
    file = read_modelfile(path.read_bytes())
    return differences(entry, work_of(file.subgraphs[0]), path.stat().st_size, file.least_memory)


def recorded() -> tuple[int, list[str]]:
    """Compare accuracies with recorded figures."""
    kept = json.loads(RECORDED.read_text("utf-8"))
    count, wrong = 0, list[str]()
    for entry in known_models():
        if entry.recorded:
            found = compared(entry, kept[entry.recorded]["figures"])
            count, wrong = count + len(entry.accuracy) + len(entry.noisy), wrong + found
    return count, wrong


def compared(entry: GuideModel, figures: dict[str, Any]) -> list[str]:
    """Return the accuracies of an entry that figures do not bear out."""
    wrong: list[str] = []
    for values, keys in ((entry.accuracy, entry.figures), (entry.noisy, entry.noisy_figures)):
        for variant, value in values.items():
            right = figures[keys[variant]]
            if abs(right - value) > TOLERANCE:
                wrong.append(f"{entry.name}, {variant}: {right} by {entry.command}, and the guide tells {value}")
    return wrong


def benches(data: Path) -> tuple[int, list[str]]:
    """Run the benches of `RUN` and compare what they print."""
    count, wrong = 0, list[str]()
    for entry in known_models():
        if entry.command not in RUN:
            continue
        script = common.ROOT / "scripts" / "bench" / f"{entry.command.split()[-1]}.py"
        command = [sys.executable, str(script), *RUN[entry.command], "--data", str(data)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=common.ROOT)
        wrong += compared(entry, json.loads(done.stdout.splitlines()[-1])["figures"])
        count += len(entry.accuracy)
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
        rows = {row.variant or "full": row for row in recommend(model(entry).task, "pi4b") if row.model == entry}
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
